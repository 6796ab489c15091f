"""What a fold's choices need of its training slides, gathered one slide at a time."""

from __future__ import annotations

import numpy as np
import torch

from histokit.data.cohort import Slide
from histokit.data.genes import detected, moments_of_sums, normalise, power_sums


class Survey:
    """Moments of genes and features over slides; no slide is kept.

    Args:
        num_genes: G.
        target: scale of the targets, of ``histokit.data.genes.TRANSFORMS``.

    Attributes:
        detected: (G,) bool, genes seen in at least 10 % of the spots of every slide.
        groups: slides by patient.
    """

    def __init__(self, num_genes: int, target: str):
        self.target = target
        self.detected = np.ones(num_genes, bool)
        self._counted = np.zeros(num_genes)  # spots that measured a gene
        self._sums = np.zeros((2, num_genes))  # of the targets and of their squares
        self._spots = 0
        self._scaled = np.zeros((2, num_genes))  # the same of counts10k-log1p, for HVGs
        self._features = None  # mean and sum of squared deviations, each (D,) float64

    def add(self, slide: Slide) -> None:
        """Take one slide into account."""
        self.detected &= detected(slide.counts)
        self._counted += len(slide.barcodes) * slide.measured
        y = normalise(slide.counts, slide.library_size, self.target)
        self._sums += power_sums(y)
        if self.target != "counts10k-log1p":
            y = normalise(slide.counts, slide.library_size, "counts10k-log1p")
        self._scaled += power_sums(y)
        variance, mean = torch.var_mean(slide.features.double(), 0, correction=0)
        self._join(len(slide.barcodes), mean, variance * len(slide.barcodes))

    def merge(self, other: Survey) -> None:
        """Take what another survey has seen into account."""
        self.detected &= other.detected
        self._counted += other._counted
        self._sums += other._sums
        self._scaled += other._scaled
        if other._features:
            self._join(other._spots, *other._features)

    def _join(self, spots: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Join moments of features (Chan et al. 1979)."""
        if self._features:
            total, (old_mean, old_squares) = self._spots + spots, self._features
            step = mean - old_mean
            squares = old_squares + squares + step**2 * (self._spots * spots / total)
            mean = old_mean + step * (spots / total)
        self._features = mean, squares
        self._spots += spots

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (G,) of each gene's target over the spots that measured it."""
        return moments_of_sums(self._sums, self._counted)

    def variability(self) -> np.ndarray:
        """Variance (G,) of counts10k-log1p over all spots."""
        return moments_of_sums(self._scaled, self._spots)[1]

    def feature_moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation (D,) of the features over all patches."""
        mean, squares = self._features
        return mean.float(), (squares / self._spots).sqrt().float()
