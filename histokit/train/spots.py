"""What a fold's choices need of its training slides, gathered one slide at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch

from histokit.core.errors import InputError
from histokit.data.cohort import Slide
from histokit.data.genes import detected, moments_of_sums, normalize, power_sums
from histokit.models.base import Standardizer


class TrainingMoments:
    """Moments of genes and features over slides; no slide is kept.

    Args:
        num_genes: G.
        target: scale of the targets, of ``histokit.data.genes.TRANSFORMS``.

    Attributes:
        detected: (G,) bool, genes seen in at least 10 % of the spots of every slide.
        train_spots: (G,) int, spots with a count of a gene, of slides that fit a model's weights.
    """

    def __init__(self, num_genes: int, target: str):
        self.target = target
        self.detected = np.ones(num_genes, bool)
        self.train_spots = np.zeros(num_genes, int)
        self._counted = np.zeros(num_genes)  # spots that measured a gene
        self._sums = np.zeros((2, num_genes))  # of the targets and of their squares
        self._spots = 0
        self._scaled = np.zeros((2, num_genes))  # the same of counts10k-log1p, for HVGs
        self._features = None  # mean and sum of squared deviations, each (D,) float64

    def add(self, slide: Slide, fits: bool = True) -> None:
        """Take one slide into account.

        Args:
            slide: the slide.
            fits: whether weights are fitted on it, and not only when to stop is chosen by it.
        """
        self.detected &= detected(slide.counts)
        self.train_spots += fits * slide.counts.getnnz(axis=0)
        self._counted += len(slide.barcodes) * slide.measured
        y = normalize(slide.counts, slide.library_size, self.target)
        self._sums += power_sums(y)
        if self.target != "counts10k-log1p":
            y = normalize(slide.counts, slide.library_size, "counts10k-log1p")
        self._scaled += power_sums(y)
        variance, mean = torch.var_mean(slide.features.double(), 0, correction=0)
        self._join(len(slide.barcodes), mean, variance * len(slide.barcodes))

    def merge(self, other: TrainingMoments) -> None:
        """Take what another one has seen into account."""
        self.detected &= other.detected
        self.train_spots += other.train_spots
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


@dataclasses.dataclass(frozen=True)
class Spots:
    """Spots of the training slides, one slide after another.

    Attributes:
        x: (N, D) float32 features as the model sees them.
        y: (N, G) CSR targets.
        measured: (S, G) bool, the genes that each slide measured.
        slide: (N,) int, the slide of each spot.
        group: (N,) patient, slide or region of each spot; cross-validation holds out whole groups.
    """

    x: np.ndarray
    y: sp.csr_matrix
    measured: np.ndarray
    slide: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.slide)

    def rows(self, chosen: np.ndarray) -> Spots:
        """Some of the spots; ``measured`` keeps all slides."""
        return Spots(
            self.x[chosen], self.y[chosen], self.measured, self.slide[chosen], self.group[chosen]
        )


def stack(
    slides: Sequence[Slide], target: str, seen: np.ndarray, standardizer: Standardizer
) -> Spots:
    """The spots of slides.

    Args:
        slides: with the counts of one panel.
        target: scale of the targets.
        seen: (G,) bool, the genes of the panel that are kept.
        standardizer: the standardizer of the features.

    Raises:
        InputError: slides whose features have different dimensions.
    """
    widths = {s.features.shape[1] for s in slides}
    if len(widths) > 1:
        raise InputError(
            f"the slides' features have {sorted(widths)} dimensions; extract them with one encoder"
        )
    counts = sp.vstack([s.counts for s in slides], format="csr")
    library_size = np.concatenate([s.library_size for s in slides])
    sizes = [len(s.barcodes) for s in slides]
    return Spots(
        torch.cat([standardizer(s.features) for s in slides]).numpy(),
        normalize(counts, library_size, target)[:, seen],
        np.stack([s.measured for s in slides])[:, seen],
        np.repeat(np.arange(len(slides)), sizes),
        _groups(slides),
    )


def _groups(slides: list) -> np.ndarray:
    """What cross-validation holds out: patients, slides of one patient, or stripes of one slide."""
    sizes = [len(s.barcodes) for s in slides]
    if len({s.patient for s in slides}) > 1:
        return np.repeat([s.patient for s in slides], sizes)
    if len(slides) > 1:
        return np.repeat([s.slide_id for s in slides], sizes)
    x = slides[0].centers[:, 0]
    stripes = np.searchsorted(np.quantile(x, [0.25, 0.5, 0.75]), x)
    if stripes.any():
        return stripes
    # most spots stand in one column: stripes of as many spots each, along x and then along it
    ranks = np.lexsort(slides[0].centers.T[::-1]).argsort()
    return ranks * 4 // len(ranks)
