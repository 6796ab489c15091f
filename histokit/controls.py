"""Controls of a training: what a PCC is without the image, and without the right image."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from histokit.cohort import Cohort, Slide
from histokit.errors import InputError
from histokit.genes import moments
from histokit.models.baselines import LinearMap
from histokit.runs import Run

SHUFFLED, LIBRARY_SIZE = "shuffled", "library-size"
LABELS = {SHUFFLED: "shuffled spots", LIBRARY_SIZE: "library size"}
MEANING = (
    "Shuffled spots: the same model trained on the same slides after the counts of each were dealt "
    "out anew among its spots, so that no image belongs to its expression; what is left of the PCC "
    "is chance. Library size: a line through each gene on the log of the spot's total counts, "
    "which it is told for the test spots too; no image is seen, so this much of a PCC says how "
    "many molecules were caught and nothing of the tissue's genes."
)


class ShuffledCohort(Cohort):
    """A cohort in which the counts of each slide are dealt out anew among its spots.

    Features and coordinates stay, so whatever a model takes from neighbouring patches is intact;
    only the pairing with expression is lost. The order depends on the seed and the slide alone.
    """

    def __init__(self, cohort: Cohort, seed: int):
        vars(self).update(vars(cohort))
        self.seed = seed

    def load(self, slide_id: str, genes: list[str] | None = None) -> Slide:
        """As Cohort.load, with counts and library sizes of permuted spots."""
        slide = super().load(slide_id, genes)
        rng = np.random.default_rng([self.seed, zlib.crc32(slide_id.encode())])
        order = rng.permutation(len(slide.barcodes))
        return dataclasses.replace(
            slide, counts=slide.counts[order], library_size=slide.library_size[order]
        )


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


def trainings(cohort: Cohort, cfg, folder: Path) -> Iterator[tuple[Path, object, Cohort, dict]]:
    """Folder, options, cohort and a note for config.json of each control of a training.

    Args:
        cohort: of the training.
        cfg: its options.
        folder: of the run; controls become runs in ``folder/controls``.
    """
    place = folder / "controls" / SHUFFLED
    options = dataclasses.replace(cfg, run=str(place), controls=False)
    yield place, options, ShuffledCohort(cohort, cfg.seed), {"kind": SHUFFLED}
    place = folder / "controls" / LIBRARY_SIZE
    options = dataclasses.replace(
        options,
        run=str(place),
        model=LIBRARY_SIZE,
        encoder="none",
        neighbors="none",
        standardize="none",
    )
    note = {"kind": LIBRARY_SIZE, "encoder": cfg.encoder}
    yield place, options, LibrarySizeCohort(cohort), note


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
