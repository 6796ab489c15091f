"""Ridge whose targets are drawn toward the few patterns that genes share."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import LinearOperator, svds
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold

from histokit.core.progress import progress_bar
from histokit.data.genes import moments
from histokit.models.baselines import LinearMap
from histokit.train.correlation import mean_pcc
from histokit.train.spots import Spots

RANKS = (2, 4, 8, 16, 32)  # beside the full one
ALPHAS = 10.0 ** np.arange(0, 8.5, 0.5)
COMPONENTS = 512  # of the features
GENES = 50  # the most variable, by whose correlation the penalty is chosen
SEED = 1


def fit_low_rank(spots: Spots, rescale: bool = True) -> tuple[LinearMap, float]:
    """The mean of ridge regressions of all targets and of their first 2, 4, 8, 16, 32 components.

    What tells tumor, stroma and immune cells apart is in the first principal components of
    expression, and carries to other patients better than what follows. The mean over ranks shrinks
    the components as these do: the first two not at all, those after the 32nd to a sixth. Genes
    have mean 0 and deviation 1 within each slide for it, and features are centered there: levels
    between slides are left to the mean of the genes.

    The penalty has the largest mean correlation of the 50 most variable genes on held-out groups of
    slides, up to the square of the features' first singular value. (Reduced-rank regression,
    Izenman 1975; its penalized form, Mukherjee and Zhu 2011; here with components of the targets,
    which need no penalty of their own, and averaged.)

    Args:
        spots: where a slide did not measure a gene, its spots take the gene's mean.
        rescale: features to deviation 1 first; False where they are on one scale already.

    Returns:
        The model and its penalty.
    """
    folds = min(5, len(np.unique(spots.group)))
    splits = GroupKFold(folds).split(spots.x, groups=spots.group)
    total = np.zeros(len(ALPHAS))
    for train, held in progress_bar(splits, total=folds, desc="choosing the penalty", unit="part"):
        total += correlations(spots, train, held, rescale)
    fitted = _decompose(spots, rescale)
    # a correlation does not see that a penalty beyond the first component flattens the prediction
    usable = max(1, int((np.square(fitted.pca.singular_values_[0]) >= ALPHAS).sum()))
    alpha = float(ALPHAS[total[:usable].argmax()])
    return fitted.linear_map(alpha), alpha


def correlations(
    spots: Spots, train: np.ndarray, held: np.ndarray, rescale: bool = True
) -> np.ndarray:
    """Mean PCC (A,) at every penalty over the held-out slides, constant predictions as zero.

    Args:
        spots, rescale: as ``fit_low_rank`` has them.
        train: rows that train; their most variable genes count.
        held: rows held out.
    """
    fitted = _decompose(spots.rows(train), rescale)
    genes = np.argsort(-fitted.deviation, kind="stable")[:GENES]
    genes = genes[fitted.deviation[genes] > 0]
    found = []
    for s in np.unique(spots.slide[held]):
        rows = held[spots.slide[held] == s]
        chosen = genes[spots.measured[s, genes]]
        if len(chosen) and len(rows) > 1:
            scores = fitted.scores(spots.x[rows])
            truth = torch.from_numpy(spots.y[rows][:, chosen].toarray())
            predicted = (torch.from_numpy(scores @ fitted.slopes(a, chosen)) for a in ALPHAS)
            found.append([mean_pcc(p, truth) for p in predicted])
    # a slide on which no gene varies has no say between the penalties
    return np.nan_to_num(found).mean(axis=0) if found else np.zeros(len(ALPHAS))


@dataclasses.dataclass(frozen=True)
class _Decomposed:
    """What the regression needs at any penalty.

    Attributes:
        mean, scale: (D,) of the features.
        pca: K components of the features, centered within slides.
        product: (K, G), scores^T times the targets of ``within_slides``.
        rotated: (K, R), scores^T times the components of the targets.
        loadings: (R, G) of the components, each times the share of ranks that have it.
        average: (G,) mean of the targets.
        deviation: (G,) their deviation within slides.
    """

    mean: np.ndarray
    scale: np.ndarray
    pca: PCA
    product: np.ndarray
    rotated: np.ndarray
    loadings: np.ndarray
    average: np.ndarray
    deviation: np.ndarray

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(N, D) to (N, K)."""
        return ((x - self.mean) / self.scale) @ self.pca.components_.T

    def slopes(self, alpha: float, genes: np.ndarray | slice = slice(None)) -> np.ndarray:
        """(K, genes) of the scores, on the targets' scale."""
        shrink = 1 / (np.square(self.pca.singular_values_) + alpha)[:, None]
        full = self.product[:, genes] / (len(RANKS) + 1)
        return shrink * (full + self.rotated @ self.loadings[:, genes]) * self.deviation[genes]

    def linear_map(self, alpha: float) -> LinearMap:
        """The model at a penalty."""
        model = LinearMap(len(self.mean), *self.product.shape)
        values = {
            "mean": self.mean,
            "scale": self.scale,
            "components": self.pca.components_,
            "offset": np.zeros(len(self.pca.components_)),
            "head.weight": self.slopes(alpha).T,
            "head.bias": self.average,
        }
        values = {k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()}
        model.load_state_dict({k: v.contiguous() for k, v in values.items()})
        return model


def _decompose(spots: Spots, rescale: bool) -> _Decomposed:
    centered = spots.x.astype(np.float32, copy=True)
    for s in np.unique(spots.slide):
        centered[spots.slide == s] -= centered[spots.slide == s].mean(axis=0)
    scale = centered.std(axis=0, dtype=np.float64) if rescale else np.ones(centered.shape[1])
    scale = np.where(scale > 0, scale, 1)
    centered /= scale.astype(np.float32)
    most = min(COMPONENTS, len(centered) - 1, centered.shape[1])
    pca = PCA(most, random_state=SEED).fit(centered)
    scores = pca.transform(centered).astype(np.float64)
    targets, deviation = within_slides(spots)
    left, loadings = components(targets, max(RANKS))
    shares = [sum(place < rank for rank in RANKS) for place in range(len(loadings))]
    return _Decomposed(
        spots.x.mean(axis=0, dtype=np.float64),
        scale,
        pca,
        targets.rmatmat(scores).T,
        scores.T @ left,
        loadings * (np.array(shares) / (len(RANKS) + 1))[:, None],
        moments(spots.y, spots.measured, spots.slide)[0],
        deviation,
    )


def within_slides(spots: Spots) -> tuple[LinearOperator, np.ndarray]:
    """Targets of mean 0 and deviation 1 within each slide, without a dense copy.

    Slides that were sequenced deeply and slides that were not count alike then, spot by spot.

    Returns:
        An operator (N, G), zero where a slide did not measure a gene or a gene does not vary there,
        and the deviations (G,) of the genes within slides over the spots that measured them.
    """
    slides, place = np.unique(spots.slide, return_inverse=True)
    membership = sp.csr_matrix((place[:, None] == np.arange(len(slides))).astype(np.float64))
    count = np.asarray(membership.sum(axis=0))[0]
    y = spots.y.astype(np.float64)
    means = (membership.T @ y).toarray() / count[:, None]
    squares = (membership.T @ y.multiply(y)).toarray() / count[:, None]
    variances = np.maximum(squares - np.square(means), 0)
    counted = count @ spots.measured[slides]
    deviation = np.sqrt(count @ variances / np.maximum(counted, 1))
    varies = variances > 1e-9
    inverse = np.divide(1, np.sqrt(variances), out=np.zeros_like(means), where=varies)
    rows = np.repeat(place, np.diff(y.indptr))
    scaled = sp.csr_matrix((y.data * inverse[rows, y.indices], y.indices, y.indptr), y.shape)
    means = means * inverse

    def times(x: np.ndarray) -> np.ndarray:
        return scaled @ x - membership @ (means @ x)

    def transposed(x: np.ndarray) -> np.ndarray:
        return scaled.T @ x - means.T @ (membership.T @ x)

    operator = LinearOperator(
        y.shape, times, transposed, matmat=times, rmatmat=transposed, dtype=np.float64
    )
    return operator, deviation


def components(targets: LinearOperator, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of the targets: left vectors (N, R), loadings (R, G)."""
    if min(targets.shape) <= most + 1:
        dense = targets.matmat(np.eye(targets.shape[1]))
        left = np.linalg.svd(dense, full_matrices=False)[0][:, :most]
    else:
        start = np.random.default_rng(SEED).standard_normal(min(targets.shape))
        left, values, _ = svds(targets, most, v0=start)
        left = left[:, np.argsort(-values)]
    return left, targets.rmatmat(left).T


def in_words(alpha: float) -> str:
    """``alpha 100, mean over ranks 2, 4, ... and all``."""
    return f"alpha {alpha:.3g}, mean over ranks {', '.join(map(str, RANKS))} and all"
