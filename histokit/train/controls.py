"""Controls of a training: what a PCC is without the image, and without the right image."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path

from histokit.data.cohort import Cohort
from histokit.data.splits import Split
from histokit.data.views import (
    DRAW,
    LABELS,
    LIBRARY_SIZE,
    SHUFFLED,
    LibrarySizeCohort,
    ShuffledCohort,
)
from histokit.train.options import Options

DRAWS = 5


@dataclasses.dataclass(frozen=True)
class Control:
    """The training of a control.

    Attributes:
        options: the options of its training; ``run`` is a folder in ``RUN/controls``.
        cohort: what describes the data: genes, their ranks, features.
        note: for its config.json.
        draws: how often each fold is trained; 0 is once, on the cohort itself.
    """

    options: Options
    cohort: Cohort
    note: dict
    draws: int = 0

    @property
    def label(self) -> str:
        """What it is called."""
        return LABELS[self.note["kind"]]

    def folds(self, folds: Sequence[Split]) -> list[Split]:
        """The folds of the run, each as often as it is drawn, under a name of its own."""
        if not self.draws:
            return list(folds)
        return [
            dataclasses.replace(fold, name=f"{fold.name}{DRAW}{draw}")
            for fold in folds
            for draw in range(1, self.draws + 1)
        ]

    def taught(self, fold: Split) -> Cohort:
        """What a model of one of these folds learns from."""
        if not self.draws:
            return self.cohort
        seed = [self.options.seed, zlib.crc32(fold.name.encode())]
        return ShuffledCohort(self.cohort, fold.train + fold.val, seed)


def controls_of(cohort: Cohort, cfg: Options, folder: Path) -> list[Control]:
    """The controls of a training.

    Args:
        cohort: the cohort that is trained on.
        cfg: its options, resolved.
        folder: the folder of the run; controls become runs in ``folder/controls``.
    """
    place = folder / "controls" / SHUFFLED
    options = dataclasses.replace(cfg, run=str(place), controls=False)
    shuffled = Control(options, cohort, {"kind": SHUFFLED, "draws": DRAWS}, DRAWS)
    options = dataclasses.replace(
        options,
        run=str(folder / "controls" / LIBRARY_SIZE),
        model=LIBRARY_SIZE,
        encoder="none",
        neighbors="none",
        standardize="none",
    )
    note = {"kind": LIBRARY_SIZE, "encoder": cfg.encoder}
    return [shuffled, Control(options, LibrarySizeCohort(cohort), note)]
