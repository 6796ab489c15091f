"""The predicted map of one slide, as every writer of it takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from histokit.core.errors import InputError


@dataclass(frozen=True)
class SlideMap:
    """Predicted expression of one slide; genes are computed where they are asked for.

    Attributes:
        slide_id: the slide.
        barcodes: (N,) names of the patches.
        centers: (N, 2) float64 patch centers x, y in pixels of level 0.
        side: side of a patch in pixels of level 0.
        mpp: microns per pixel of level 0, or None.
        unit: what a predicted value is, such as ``log1p of counts per 10,000``.
        genes: (G,) rows by unique gene name with ``gene_id``, ``symbol``, ``train_mean``,
            ``train_sd`` (of the target on training slides), ``pcc``, ``pcc_low``, ``pcc_high``
            (held-out Pearson correlation and its 95 % interval, NaN where the run has no
            evaluation), ``rank`` (1 is the best held-out PCC) and ``trusted`` (bool).
        block: block(start, stop) -> (N, stop - start) float32, the predicted values of these genes.
        spread: the same for the standard deviation over the folds; None for a single fold.
        scores: pathway and signature scores by name, each (N,) float32.
        novelty: (N,) float32, how far a patch lies from the training features: 1 is the 95th
            percentile of held-out training patches. None where it could not be measured.
        picture: small RGB picture of the slide, and ``scale``: its pixels for one of level 0.
        measured: (N, G) CSR float32 in the unit of the prediction; None without counts.
        about: provenance and settings, flat, as JSON takes it.
        said: sentences on how far to trust the map.
    """

    slide_id: str
    barcodes: list[str]
    centers: np.ndarray
    side: float
    mpp: float | None
    unit: str
    genes: pd.DataFrame
    block: Callable[[int, int], np.ndarray]
    picture: Image.Image
    scale: float
    spread: Callable[[int, int], np.ndarray] | None = None
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    novelty: np.ndarray | None = None
    measured: sp.csr_matrix | None = None
    about: dict = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def blocks(self, width: int) -> Iterator[tuple[int, np.ndarray]]:
        """Start and values (N, at most width) of all genes, one block after the other."""
        for start in range(0, len(self.genes), width):
            yield start, self.block(start, min(start + width, len(self.genes)))

    def columns(self, genes: list[str]) -> np.ndarray:
        """Predicted values (N, len(genes)) of named genes; raises InputError for an unknown one."""
        places = self.genes.index.get_indexer(genes)
        if (places < 0).any():
            absent = genes[int(np.argmin(places))]
            raise InputError(f"slide {self.slide_id} has no predicted gene {absent!r}")
        if len(genes) == 0:
            return np.empty((len(self.barcodes), 0), np.float32)
        return np.concatenate([self.block(int(k), int(k) + 1) for k in places], axis=1)
