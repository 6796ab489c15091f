"""Closed-form baselines: the training mean and two ridge recipes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from histokit.data.genes import moments
from histokit.models.baselines import LinearMap, Mean

SEED = 1  # HEST-Bench's
HEST_COMPONENTS = 256
HEST_GENES = 50  # the recipe's penalty is 100 / (dimensions x genes), and its gene lists have 50
ALPHAS = 10.0 ** np.arange(-2, 7.5, 0.5)


def fit_mean(x: np.ndarray, y: sp.csr_matrix, measured: np.ndarray, slide: np.ndarray) -> Mean:
    """The mean of each gene over the training spots that measured it.

    Args:
        x: (N, D) features, used for their dimension alone.
        y: (N, G) targets.
        measured: (S, G) bool, the genes that each slide measured.
        slide: (N,) int, the slide of each spot.
    """
    model = Mean(x.shape[1], y.shape[1])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.from_numpy(moments(y, measured, slide)[0]))
    return model


def fit_ridge_hest(x: np.ndarray, y: sp.csr_matrix) -> LinearMap:
    """HEST-Bench's regression, to the letter (hest.bench, PCA + ridge).

    StandardScaler and PCA of 256 components fitted on the training spots, then ridge with
    alpha = 100 / (components x 50), solver lsqr, in float32, without an intercept. Without an
    intercept the predictions miss the mean of each gene: their PCC is meaningful, their MSE is
    that of the recipe and much larger than any other model's.

    Args:
        x: (N, D) features.
        y: (N, G) targets; a gene that a spot's slide did not measure counts as zero, as there.
    """
    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)
    pca = PCA(min(HEST_COMPONENTS, *x.shape), random_state=SEED).fit(scaled)
    scores = pca.transform(scaled).astype(np.float32)
    ridge = Ridge(
        alpha=100 / (scores.shape[1] * HEST_GENES),
        solver="lsqr",
        fit_intercept=False,
        max_iter=1000,
        random_state=SEED,
    )
    weight = np.empty((y.shape[1], scores.shape[1]), np.float32)
    columns = y.tocsc()
    for start in range(0, y.shape[1], 2048):  # genes are regressed one by one; bound the dense copy
        block = slice(start, start + 2048)
        weight[block] = ridge.fit(scores, columns[:, block].toarray().astype(np.float32)).coef_
    return _linear_map(scaler, pca, weight, np.zeros(y.shape[1], np.float32))


def fit_ridge(
    x: np.ndarray,
    y: sp.csr_matrix,
    measured: np.ndarray,
    slide: np.ndarray,
    groups: np.ndarray,
    rescale: bool = True,
    components: int | None = HEST_COMPONENTS,
    by_gene: bool = False,
) -> tuple[LinearMap, float | np.ndarray]:
    """PCA and ridge with an intercept, the penalty chosen by grouped cross-validation.

    The components of the training spots are uncorrelated, so ridge shrinks the k-th by
    s_k^2 / (s_k^2 + alpha). The alpha with the least squared error over the held-out groups and
    their measured genes is taken; scaling and PCA are fitted inside each fold.

    Args:
        x: (N, D) features.
        y: (N, G) targets.
        measured: (S, G) bool, the genes that each slide measured; where one did not, its spots
            take the gene's mean.
        slide: (N,) int, the slide of each spot.
        groups: (N,) patient, slide or region of each spot; one group is never on both sides.
        rescale: features to deviation 1 first; False where they are on one scale already.
        components: of the PCA; with all of them, None, this is ridge on the features themselves,
            for the penalty does not see a rotation.
        by_gene: an alpha for each gene; see ``choose_alpha``.

    Returns:
        The model and its alpha, (G,) where it is chosen by gene.
    """
    folds = min(5, len(np.unique(groups)))
    splits = GroupKFold(folds).split(x, groups=groups)
    alpha = choose_alpha(x, y, measured, slide, splits, rescale, components, by_gene)
    return ridge_at(x, y, measured, slide, alpha, rescale, components), alpha


def choose_alpha(
    x: np.ndarray,
    y: sp.csr_matrix,
    measured: np.ndarray,
    slide: np.ndarray,
    splits: Iterable[tuple[np.ndarray, np.ndarray]],
    rescale: bool = True,
    components: int | None = HEST_COMPONENTS,
    by_gene: bool = False,
) -> float | np.ndarray:
    """The penalty of ``fit_ridge`` with the least squared error over what splits hold out.

    One penalty for all genes is that of the many weak ones, and too strong for the few that the
    image shows well. A gene's own error is noisy, though: by gene, its error over its least and the
    mean of that over all genes count alike.

    Args:
        x, y, measured, slide, rescale, components: of ``fit_ridge``.
        splits: rows that train and rows held out.
        by_gene: choose (G,) penalties instead of one.
    """
    errors = np.zeros((len(ALPHAS), y.shape[1] if by_gene else 1))
    for train, held in splits:
        fitted = _decompose(x[train], y[train], measured, slide[train], rescale, components)
        for s in np.unique(slide[held]):
            rows = held[slide[held] == s]
            found = _errors(*fitted, x[rows], y[rows], measured[s], by_gene)
            errors[:, measured[s] if by_gene else [0]] += found
    if not by_gene:
        return float(ALPHAS[errors.argmin()])
    least = errors.min(axis=0)
    relative = errors / np.where(least > 0, least, 1)
    return ALPHAS[(relative + relative.mean(axis=1, keepdims=True)).argmin(axis=0)]


def in_words(alpha: float | np.ndarray) -> str:
    """``alpha 3.16``, or with the range that holds 80 % of the genes."""
    low, middle, high = np.quantile(alpha, [0.1, 0.5, 0.9])
    return f"alpha {middle:.3g}" + f" ({low:.3g} to {high:.3g})" * isinstance(alpha, np.ndarray)


def ridge_at(
    x: np.ndarray,
    y: sp.csr_matrix,
    measured: np.ndarray,
    slide: np.ndarray,
    alpha: float | np.ndarray,
    rescale: bool = True,
    components: int | None = HEST_COMPONENTS,
) -> LinearMap:
    """The model of ``fit_ridge`` at a given penalty, or at one for each gene (G,)."""
    scaler, pca, product, mean = _decompose(x, y, measured, slide, rescale, components)
    weight = (product / (np.square(pca.singular_values_)[:, None] + alpha)).T
    return _linear_map(scaler, pca, weight, mean)


def _decompose(x, y, measured, slide, rescale, components):
    """Scaler, PCA, scores^T (y - mean) (K, G) and mean (G,)."""
    scaler = StandardScaler(with_std=rescale).fit(x)
    scaled = scaler.transform(x)
    most = min(len(x) - 1, x.shape[1])
    pca = PCA(min(components or most, most), random_state=SEED).fit(scaled)
    scores = pca.transform(scaled).astype(np.float64)
    mean = moments(y, measured, slide)[0]
    # Scores have mean zero, so the mean of y drops out except where y was not measured.
    product = np.asarray((y.T @ scores).T)
    for s in np.unique(slide):
        if not measured[s].all():
            product += np.outer(scores[slide == s].sum(axis=0), np.where(measured[s], 0, mean))
    return scaler, pca, product, mean


def _errors(scaler, pca, product, mean, x, y, measured, by_gene: bool) -> np.ndarray:
    """Squared error at every alpha on one held-out slide, by gene (A, G) or over all (A, 1).

    With d = 1 / (s^2 + alpha), scores Z and truth T, the error |Z diag(d) P - T|^2 is quadratic in
    d: its coefficients are Z^T Z * P P^T and the diagonal of Z^T T P^T, the same for all alphas.
    """
    scores = pca.transform(scaler.transform(x)).astype(np.float64)
    product = product[:, measured]
    truth = y[:, measured].toarray().astype(np.float64) - mean[measured]
    gram, linear = scores.T @ scores, (scores.T @ truth) * product
    shrink = 1 / (np.square(pca.singular_values_) + ALPHAS[:, None])
    if by_gene:
        shrunk = (d[:, None] * product for d in shrink)
        squares = np.stack([((gram @ p) * p).sum(axis=0) for p in shrunk])
        return squares - 2 * shrink @ linear + np.square(truth).sum(axis=0)
    squares = ((shrink @ (gram * (product @ product.T))) * shrink).sum(axis=1)
    return (squares - 2 * shrink @ linear.sum(axis=1) + np.square(truth).sum())[:, None]


def _linear_map(scaler, pca, weight: np.ndarray, bias: np.ndarray) -> LinearMap:
    model = LinearMap(scaler.n_features_in_, *weight.shape[::-1])
    values = {
        "mean": scaler.mean_,
        "scale": np.ones(len(scaler.mean_)) if scaler.scale_ is None else scaler.scale_,
        "components": pca.components_,
        "offset": pca.mean_ @ pca.components_.T,
        "head.weight": weight,
        "head.bias": bias,
    }
    model.load_state_dict({k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()})
    return model


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
