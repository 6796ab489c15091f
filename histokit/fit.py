"""Closed-form baselines: the training mean and two ridge recipes."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from histokit.genes import moments
from histokit.models.baselines import LinearMap, Mean

SEED = 1  # HEST-Bench's
HEST_COMPONENTS = 256
HEST_GENES = 50  # the recipe's penalty is 100 / (dimensions x genes), and its gene lists have 50
ALPHAS = 10.0 ** np.arange(-2, 7.5, 0.5)


def fit_mean(x: np.ndarray, y: sp.csr_matrix, measured: np.ndarray) -> Mean:
    """The mean of each gene over the training spots that measured it.

    Args:
        x: (N, D) features, used for their dimension alone.
        y: (N, G) targets.
        measured: (N, G) bool, or (1, G) where all spots measured the same genes.
    """
    model = Mean(x.shape[1], y.shape[1])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.from_numpy(moments(y, measured)[0]))
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
    x: np.ndarray, y: sp.csr_matrix, measured: np.ndarray, groups: np.ndarray
) -> tuple[LinearMap, float]:
    """PCA and ridge with an intercept, the penalty chosen by grouped cross-validation.

    The components of the training spots are uncorrelated, so ridge shrinks each by
    s^2 / (s^2 + alpha) and every alpha costs one rescaling. The alpha with the least squared error
    over the held-out groups and all genes is taken; scaling and PCA are fitted inside each fold.

    Args:
        x: (N, D) features.
        y: (N, G) targets.
        measured: (N, G) or (1, G) bool; entries that were not measured take the gene's mean.
        groups: (N,) patient, slide or region of each spot; one group is never on both sides.

    Returns:
        The model and its alpha.
    """
    errors = np.zeros(len(ALPHAS))
    folds = min(5, len(np.unique(groups)))
    for train, held in GroupKFold(folds).split(x, groups=groups):
        inner = measured[train] if len(measured) > 1 else measured
        scaler, pca, spectrum, product, mean = _decompose(x[train], y[train], inner)
        scores = pca.transform(scaler.transform(x[held]))
        truth = y[held].toarray() - mean
        keep = np.broadcast_to(measured[held] if len(measured) > 1 else measured, truth.shape)
        for i, alpha in enumerate(ALPHAS):
            predicted = (scores / (spectrum + alpha)) @ product
            errors[i] += np.square(predicted - truth, where=keep, out=np.zeros_like(truth)).sum()
    alpha = float(ALPHAS[errors.argmin()])
    scaler, pca, spectrum, product, mean = _decompose(x, y, measured)
    weight = (product / (spectrum + alpha)[:, None]).T
    return _linear_map(scaler, pca, weight, mean), alpha


def _decompose(x, y, measured):
    """Scaler, PCA, squared singular values (K,), scores^T (y - mean) (K, G) and mean (G,)."""
    scaler = StandardScaler().fit(x)
    scaled = scaler.transform(x)
    pca = PCA(min(HEST_COMPONENTS, len(x) - 1, x.shape[1]), random_state=SEED).fit(scaled)
    scores = pca.transform(scaled)
    mean = moments(y, measured)[0]
    # Scores have mean zero, so subtracting the mean of y matters only where y is not measured.
    product = np.asarray((y.T @ scores).T, np.float64)
    if not measured.all():
        product += scores.T @ np.where(measured, 0, mean)
    return scaler, pca, np.square(pca.singular_values_), product, mean


def _linear_map(scaler, pca, weight: np.ndarray, bias: np.ndarray) -> LinearMap:
    model = LinearMap(scaler.n_features_in_, *weight.shape[::-1])
    values = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "components": pca.components_,
        "offset": pca.mean_ @ pca.components_.T,
        "head.weight": weight,
        "head.bias": bias,
    }
    model.load_state_dict({k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()})
    return model
