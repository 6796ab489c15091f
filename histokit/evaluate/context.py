"""Spots of a test slide whose measured expression a model is shown, and which no score counts."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from histokit.core.errors import InputError
from histokit.core.tables import read_table
from histokit.data.cohort import Slide
from histokit.evaluate.runs import Run
from histokit.models.registry import MODELS

FEWEST = 2  # spots that have to be left: one has no correlation
FILE = "context_spots.csv"


@dataclasses.dataclass(frozen=True)
class Context:
    """Which spots of each test slide are shown.

    Attributes:
        share: of a slide's spots, drawn anew for each slide; NaN where a file names them.
        seed: of that draw, which depends on nothing else but the slide's id and barcodes.
        source: the file that names them; empty where they are drawn.
        listed: their barcodes by slide, of the file.
    """

    share: float
    seed: int = 0
    source: str = ""
    listed: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    def of(self, slide: Slide) -> np.ndarray:
        """(N,) bool, the spots of a slide that are shown; at least one.

        Raises:
            InputError: the file names no spot of the slide or one that it lacks, or fewer than two
                spots are left to score.
        """
        barcodes = np.array(slide.barcodes)
        chosen = self._listed(slide) if self.source else self._drawn(slide)
        left = len(barcodes) - len(chosen)
        if left < FEWEST:
            raise InputError(
                f"slide {slide.slide_id} has {len(barcodes)} spots, of which --context-genes shows "
                f"{len(chosen)}: {left} are left and two are needed to score; show fewer"
            )
        return np.isin(barcodes, chosen)

    def _drawn(self, slide: Slide) -> list[str]:
        names = sorted(slide.barcodes)
        random = np.random.default_rng([self.seed, zlib.crc32(slide.slide_id.encode())])
        count = max(1, round(self.share * len(names)))
        return [names[i] for i in random.permutation(len(names))[:count]]

    def _listed(self, slide: Slide) -> list[str]:
        names = sorted(self.listed.get(slide.slide_id, ()))
        if not names:
            raise InputError(
                f"{self.source} names no spot of the test slide {slide.slide_id}; figures with and "
                "without context do not go together, so list spots of every test slide"
            )
        if foreign := sorted(set(names) - set(slide.barcodes)):
            raise InputError(
                f"{self.source} names the spot {foreign[0]} of slide {slide.slide_id}, which has "
                f"no such barcode ({slide.barcodes[0]} is one); correct the file"
            )
        return names

    def __str__(self) -> str:
        if self.source:
            return f"context of the spots in {self.source}"
        return f"context of {self.share:.3g} of the spots, seed {self.seed}"

    @property
    def warning(self) -> str:
        """What a reader has to know of every figure."""
        if self.source:
            which = f"the spots of each test slide that {self.source} names"
        else:
            which = f"{self.share:.3g} of the spots of each test slide (seed {self.seed})"
        return (
            f"Test expression was shown to the model: the measured genes of {which} were part of "
            f"its input. These spots, listed in {FILE}, are left out of every figure, map and "
            "prediction here. Do not set the figures beside any that were reached without context."
        )


def read_context(text: str, seed: int) -> Context:
    """What ``--context-genes`` asks for: a share between 0 and 1, or a CSV slide_id,barcode.

    Raises:
        InputError: neither.
    """
    try:
        share = float(text)
    except ValueError:
        return _read(text)
    if not 0 < share < 1:
        raise InputError(
            f"--context-genes {text}: a share of the spots lies between 0 and 1, such as 0.05; or "
            "give a CSV slide_id,barcode of the spots"
        )
    return Context(share, seed)


def _read(path: str) -> Context:
    if not Path(path).is_file():
        raise InputError(
            f"--context-genes {path} is neither a share of the spots, such as 0.05, nor a file; "
            "give a CSV slide_id,barcode of the spots"
        )
    table = read_table(Path(path), ("slide_id", "barcode"), "list of spots shown as context")
    listed = {name: frozenset(rows) for name, rows in table.groupby("slide_id")["barcode"]}
    return Context(float("nan"), 0, path, listed)


def refuse_context(runs: Sequence[Run], published: str | None) -> None:
    """Raise InputError for runs whose models take no context, and for what it must not mix with."""
    if published:
        raise InputError(
            "--published lists figures that were reached without any test expression, which those "
            "with --context-genes must not stand beside; leave one of the two out"
        )
    for run in runs:
        model = run.config["options"]["model"]
        if not hasattr(MODELS[model].load_class(), "embed_told"):
            raise InputError(
                f"--context-genes: {run.folder} holds {model}, which takes no measured genes as "
                "context (stpath does); evaluate it by itself, without context"
            )
