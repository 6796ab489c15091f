"""Controls of a training: what a PCC is without the image, and without the right image."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort, Slide
from histokit.data.genes import moments
from histokit.data.splits import Split
from histokit.evaluate.runs import Run
from histokit.models.baselines import LinearMap

SHUFFLED, LIBRARY_SIZE = "shuffled-spots", "library-size"
LABELS = {SHUFFLED: "shuffled spots", LIBRARY_SIZE: "library size"}
DRAWS = 5
MEANING = (
    "Shuffled spots: the same model trained on the same images after the counts of all training "
    "spots of a fold were dealt out anew among them, over the borders of slides, so that neither a "
    "spot nor a slide has its own expression; the genes and the test slides stay as they are. What "
    "is left of the PCC is chance. It is the mean of several draws, whose range says how far "
    "chance reaches. Library size: a line through each gene on the log of the spot's total counts, "
    "which it is told for the test spots too; no image is seen, so this much of a PCC says how "
    "many molecules were caught and nothing of the tissue's genes."
)
_OLD = "shuffled"  # dealt within each slide, whose level a model could still learn from the image
_DRAW = ", draw "


class ShuffledCohort(Cohort):
    """A cohort in which the counts of some slides are dealt out anew among all their spots.

    Features and coordinates stay, so whatever a model takes from neighboring patches is intact;
    the pairing with expression is lost, and with it what differs between slides: within a slide
    alone, a model still learns from the image which slides have much of a gene, which also tells
    spots of a test slide apart. Slides are dealt together that measured the same of the genes asked
    for, so one that is alone in this keeps its own counts, in another order.

    The counts of all these slides are held in memory, for the genes last asked for.

    Args:
        cohort: of the slides.
        members: slides to deal; others are left as they are.
        seed: of the dealing.
    """

    def __init__(self, cohort: Cohort, members: Sequence[str], seed: Sequence[int]):
        vars(self).update(vars(cohort))
        self.members, self.seed = list(members), list(seed)
        self._dealt: tuple[list[str], dict] = ([], {})

    def load(self, slide_id: str, genes: list[str] | None = None) -> Slide:
        """As Cohort.load, a member with counts and library sizes of other spots."""
        slide = super().load(slide_id, genes)
        if slide_id not in self.members:
            return slide
        if genes is None:
            genes = list(self.gene_table(slide_id).index)
        names = list(genes["gene"] if isinstance(genes, pd.DataFrame) else genes)
        if self._dealt[0] != names or not self._dealt[1]:
            self._dealt = names, self._deal(genes)
        counts, library_size = self._dealt[1][slide_id]
        return dataclasses.replace(slide, counts=counts, library_size=library_size)

    def _deal(self, genes) -> dict[str, tuple[sp.csr_matrix, np.ndarray]]:
        """Counts (N, G) and library sizes (N,) of each member after the dealing."""
        slides = [super(ShuffledCohort, self).load(name, genes) for name in self.members]
        alike: dict[bytes, list[int]] = {}
        for place, slide in enumerate(slides):
            alike.setdefault(slide.measured.tobytes(), []).append(place)
        rng, dealt = np.random.default_rng(self.seed), {}
        for places in alike.values():
            counts = sp.vstack([slides[i].counts for i in places], format="csr")
            sizes = np.concatenate([slides[i].library_size for i in places])
            order, start = rng.permutation(len(sizes)), 0
            for i in places:
                rows = order[start : start + len(slides[i].barcodes)]
                dealt[self.members[i]] = counts[rows], sizes[rows]
                start += len(rows)
        return dealt


class LibrarySizeCohort(Cohort):
    """A cohort whose only feature is log(1 + library size) of the spot itself: (N, 1)."""

    def __init__(self, cohort: Cohort):
        vars(self).update(vars(cohort))

    def load(self, slide_id: str, genes: list[str] | None = None) -> Slide:
        """As Cohort.load, with library sizes in place of features."""
        slide = super().load(slide_id, genes)
        x = np.log1p(slide.library_size).astype(np.float32)[:, None]
        return dataclasses.replace(slide, features=torch.from_numpy(x))

    def provenance(self, slide_id: str) -> dict:
        """What stands in for the encoder."""
        return {"encoder": LIBRARY_SIZE, "dimension": 1}


def fit_library_size(
    x: np.ndarray, y: sp.csr_matrix, measured: np.ndarray, slide: np.ndarray
) -> LinearMap:
    """Least-squares line of each gene on x over the training spots that measured it.

    Args:
        x: (N, 1) log library size.
        y: (N, G) CSR targets.
        measured: (S, G) bool, the genes that each slide measured.
        slide: (N,) int, the slide of each spot.
    """
    x = x[:, 0].astype(np.float64)
    centre = x.mean()
    x = x - centre
    mean_y = moments(y, measured, slide)[0]
    count, sum_x, sum_xx = (
        np.bincount(slide, weights, minlength=len(measured)) @ measured
        for weights in (np.ones_like(x), x, x * x)
    )
    count = np.maximum(count, 1)
    mean_x = sum_x / count
    covariance = y.T @ x / count - mean_x * mean_y
    variance = sum_xx / count - mean_x**2
    slope = np.divide(covariance, variance, out=np.zeros_like(mean_y), where=variance > 1e-12)
    model = LinearMap(1, 1, y.shape[1])
    values = {
        "mean": [centre],
        "scale": [1.0],
        "components": [[1.0]],
        "offset": [0.0],
        "head.weight": slope[:, None],
        "head.bias": mean_y - slope * mean_x,
    }
    model.load_state_dict(
        {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    )
    return model


@dataclasses.dataclass(frozen=True)
class Control:
    """The training of a control.

    Attributes:
        options: of its training; ``run`` is a folder in ``RUN/controls``.
        cohort: what describes the data: genes, their ranks, features.
        note: for its config.json.
        draws: how often each fold is trained; 0 is once, on the cohort itself.
    """

    options: object
    cohort: Cohort
    note: dict
    draws: int = 0

    def folds(self, folds: Sequence[Split]) -> list[Split]:
        """The folds of the run, each as often as it is drawn, under a name of its own."""
        if not self.draws:
            return list(folds)
        return [
            dataclasses.replace(fold, name=f"{fold.name}{_DRAW}{draw}")
            for fold in folds
            for draw in range(1, self.draws + 1)
        ]

    def taught(self, fold: Split) -> Cohort:
        """What a model of one of these folds learns from."""
        if not self.draws:
            return self.cohort
        seed = [self.options.seed, zlib.crc32(fold.name.encode())]
        return ShuffledCohort(self.cohort, fold.train + fold.val, seed)


def draw_of(fold: str) -> str:
    """The draw in the name of a fold of a control; empty in any other."""
    return fold.rpartition(_DRAW)[2] if _DRAW in fold else ""


def trainings(cohort: Cohort, cfg, folder: Path) -> list[Control]:
    """The controls of a training.

    Args:
        cohort: of the training.
        cfg: its options.
        folder: of the run; controls become runs in ``folder/controls``.
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


def open_cohort(run: Run, data: str | None = None) -> Cohort:
    """The slides that a run predicts from: ``data``, or the folder it was trained on.

    Raises:
        InputError: that folder is not there, or as ``Cohort``.
    """
    if data is None and not Path(run.config["options"]["data"]).is_dir():
        raise InputError(
            f"{run.folder} was trained on the data in {run.config['options']['data']}, which is "
            f"not there (looked for from {Path.cwd()}); give its present place with --data"
        )
    options, control = run.config["options"], run.config.get("control") or {}
    encoder = control.get("encoder", options["encoder"])
    cohort = Cohort(data or options["data"], encoder, options.get("neighbors", "none"))
    return LibrarySizeCohort(cohort) if control.get("kind") == LIBRARY_SIZE else cohort


def controls_of(run: Run) -> dict[str, Run]:
    """The finished controls beside a run, by label.

    Raises:
        InputError: a control that was begun and not trained to its end.
    """
    found = {}
    for kind, label in LABELS.items():
        folder = run.folder / "controls" / kind
        if not (folder / "config.json").is_file():
            continue
        control = Run(folder)
        for fold in control.folds:
            if not fold.is_finished():
                raise InputError(
                    f"the control {folder} is not trained to its end; give run_train.py the same "
                    "command again"
                )
        found[label] = control
    return found


def outdated(run: Run) -> str:
    """A sentence on a control of another kind that lies beside a run; empty where there is none."""
    old = run.folder / "controls" / _OLD
    if not (old / "config.json").is_file() or (run.folder / "controls" / SHUFFLED).is_dir():
        return ""
    return (
        f"The control in {old} is left out: it was dealt within each slide, so its model could "
        "still learn what differs between slides; give run_train.py the same command again for one "
        "that is dealt over all training slides."
    )
