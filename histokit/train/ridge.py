"""Closed forms: the training mean, ridge recipes and nearest spots."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from histokit.core.progress import progress_bar
from histokit.data.genes import moments
from histokit.data.sparse import csr_tensor
from histokit.models.baselines import LinearMap, Mean
from histokit.models.retrieval import NearestSpots
from histokit.train import low_rank
from histokit.train.loader import TrainingSlide
from histokit.train.spots import Spots
from histokit.train.task import FoldTask, Trained

SEED = 1  # HEST-Bench's
HEST_COMPONENTS = 256
HEST_GENES = 50  # the recipe's penalty is 100 / (dimensions x genes), and its gene lists have 50
ALPHAS = 10.0 ** np.arange(-2, 7.5, 0.5)


def fit_closed_form(task: FoldTask, spots: Spots) -> Trained:
    """Fit a model of the table that has a closed form, by its row's settings."""
    spec, settings = task.spec, task.spec.settings
    recipe, by_gene = settings.get("recipe"), settings.get("by_gene", False)
    if spec.name == "mean":
        model, said = fit_mean(spots), "mean"
    elif recipe == "hest":
        components = settings.get("components", HEST_COMPONENTS)
        model, said = fit_ridge_hest(spots.x, spots.y, components), "HEST-Bench ridge"
    elif recipe == "library size":
        model, said = fit_library_size(spots), "line on library size"
    elif recipe == "low rank":
        model, alpha = low_rank.fit_low_rank(spots, task.standardizer.how == "none")
        said = f"{spec.name}, {low_rank.in_words(alpha)}"
    elif recipe == "nearest spots":
        return fit_nearest(task, spots)
    else:
        rescale = task.standardizer.how == "none"
        components = settings.get("components", HEST_COMPONENTS)
        model, alpha = fit_ridge(spots, rescale, components, by_gene)
        said = f"{spec.name}, {in_words(alpha)} by cross-validation"
    arguments = {"input_dim": spots.x.shape[1], "num_genes": spots.y.shape[1]}
    if isinstance(model, LinearMap):
        arguments["num_components"] = len(model.components)
    model.standardizer = task.standardizer
    return Trained(model, arguments, f"{said}, on {len(spots):,} spots")


def fit_nearest(task: FoldTask, spots: Spots) -> Trained:
    """Keep the training spots, to be found by their features."""
    arguments = {"input_dim": spots.x.shape[1], "num_genes": spots.y.shape[1]}
    arguments |= {name: getattr(task.options, name) for name in task.spec.takes}
    model = NearestSpots(**arguments)
    arguments |= model.remember(_by_slide(spots, task.slides.members))
    model.standardizer = task.standardizer
    said = f"{task.spec.name}, K {model.k}, weights {model.weights}, of {len(spots):,} spots"
    return Trained(model, arguments, said)


def _by_slide(spots: Spots, slide_ids: Sequence[str]) -> Iterator[TrainingSlide]:
    """The spots of each slide, without its cancer and places."""
    for s, slide_id in enumerate(slide_ids):
        rows = np.flatnonzero(spots.slide == s)
        x, y = torch.from_numpy(spots.x[rows]), csr_tensor(spots.y[rows])
        measured, nowhere = torch.from_numpy(spots.measured[s]), x.new_full((len(rows), 2), np.nan)
        yield TrainingSlide(slide_id, x, y, measured, "", nowhere)


def fit_mean(spots: Spots) -> Mean:
    """The mean of each gene over the training spots that measured it."""
    model = Mean(spots.x.shape[1], spots.y.shape[1])
    with torch.no_grad():
        model.head.weight.zero_()
        mean = moments(spots.y, spots.measured, spots.slide)[0]
        model.head.bias.copy_(torch.from_numpy(mean))
    return model


def fit_ridge_hest(
    x: np.ndarray, y: sp.csr_matrix, components: int | None = HEST_COMPONENTS
) -> LinearMap:
    """HEST-Bench's regression, to the letter (hest.bench, PCA + ridge).

    StandardScaler and PCA of 256 components fitted on the training spots, then ridge with
    alpha = 100 / (components x 50), solver lsqr, in float32, without an intercept. Without an
    intercept the predictions miss the mean of each gene: their PCC is meaningful, their MSE is
    that of the recipe and much larger than any other model's. Without components (None) there is
    no StandardScaler either, and alpha = 100 / (D x 50): BP-Booster's column "Ridge".

    Args:
        x: (N, D) features.
        y: (N, G) targets; a gene that a spot's slide did not measure counts as zero, as there.
        components: of the PCA.
    """
    if components is None:
        scaler, pca, scores = None, None, x.astype(np.float32)
    else:
        scaler = StandardScaler().fit(x)
        scaled = scaler.transform(x)
        pca = PCA(min(components, *x.shape), random_state=SEED).fit(scaled)
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
    bias = np.zeros(y.shape[1], np.float32)
    return _linear_map(scaler, pca, weight, bias) if pca else _bare_map(weight, bias)


def fit_ridge(
    spots: Spots,
    rescale: bool = True,
    components: int | None = HEST_COMPONENTS,
    by_gene: bool = False,
) -> tuple[LinearMap, float | np.ndarray]:
    """PCA and ridge with an intercept, the penalty chosen by grouped cross-validation.

    The components of the training spots are uncorrelated, so ridge shrinks the k-th by
    s_k^2 / (s_k^2 + alpha). The alpha with the least squared error over the held-out groups and
    their measured genes is taken; scaling and PCA are fitted inside each fold.

    Args:
        spots: where a slide did not measure a gene, its spots take the gene's mean.
        rescale: features to deviation 1 first; False where they are on one scale already.
        components: of the PCA; with all of them, None, this is ridge on the features themselves,
            for the penalty does not see a rotation.
        by_gene: an alpha for each gene; see ``choose_alpha``.

    Returns:
        The model and its alpha, (G,) where it is chosen by gene.
    """
    folds = min(5, len(np.unique(spots.group)))
    splits = GroupKFold(folds).split(spots.x, groups=spots.group)
    splits = progress_bar(splits, total=folds, desc="choosing the penalty", unit="part")
    alpha = choose_alpha(spots, splits, rescale, components, by_gene)
    return ridge_at(spots, alpha, rescale, components), alpha


def choose_alpha(
    spots: Spots,
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
        spots, rescale, components: as ``fit_ridge`` has them.
        splits: rows that train and rows held out.
        by_gene: choose (G,) penalties instead of one.
    """
    errors = np.zeros((len(ALPHAS), spots.y.shape[1] if by_gene else 1))
    for train, held in splits:
        fitted = _decompose(spots.rows(train), rescale, components)
        for s in np.unique(spots.slide[held]):
            rows, measured = held[spots.slide[held] == s], spots.measured[s]
            found = fitted.errors(spots.x[rows], spots.y[rows], measured, by_gene)
            errors[:, measured if by_gene else [0]] += found
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
    spots: Spots,
    alpha: float | np.ndarray,
    rescale: bool = True,
    components: int | None = HEST_COMPONENTS,
) -> LinearMap:
    """The model of ``fit_ridge`` at a given penalty, or at one for each gene (G,)."""
    fitted = _decompose(spots, rescale, components)
    weight = (fitted.product / (np.square(fitted.pca.singular_values_)[:, None] + alpha)).T
    return _linear_map(fitted.scaler, fitted.pca, weight, fitted.mean)


@dataclasses.dataclass(frozen=True)
class _Decomposed:
    """Principal components of spots, product scores^T (y - mean) (K, G), and mean (G,)."""

    scaler: StandardScaler
    pca: PCA
    product: np.ndarray
    mean: np.ndarray

    def errors(self, x, y, measured, by_gene: bool) -> np.ndarray:
        """Squared error at every alpha on one held-out slide, by gene (A, G) or over all (A, 1).

        With d = 1 / (s^2 + alpha), scores Z and truth T, the error |Z diag(d) P - T|^2 is quadratic
        in d: its coefficients are Z^T Z * P P^T and the diagonal of Z^T T P^T, the same for all
        alphas.
        """
        scores = self.pca.transform(self.scaler.transform(x)).astype(np.float64)
        product = self.product[:, measured]
        truth = y[:, measured].toarray().astype(np.float64) - self.mean[measured]
        gram, linear = scores.T @ scores, (scores.T @ truth) * product
        shrink = 1 / (np.square(self.pca.singular_values_) + ALPHAS[:, None])
        if by_gene:
            shrunk = (d[:, None] * product for d in shrink)
            squares = np.stack([((gram @ p) * p).sum(axis=0) for p in shrunk])
            return squares - 2 * shrink @ linear + np.square(truth).sum(axis=0)
        squares = ((shrink @ (gram * (product @ product.T))) * shrink).sum(axis=1)
        return (squares - 2 * shrink @ linear.sum(axis=1) + np.square(truth).sum())[:, None]


def _decompose(spots: Spots, rescale: bool, components: int | None) -> _Decomposed:
    x, y, measured, slide = spots.x, spots.y, spots.measured, spots.slide
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
    return _Decomposed(scaler, pca, product, mean)


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


def _bare_map(weight: np.ndarray, bias: np.ndarray) -> LinearMap:
    """A regression on the features themselves."""
    dimension = weight.shape[1]
    model = LinearMap(dimension, dimension, len(weight))
    model.components.copy_(torch.eye(dimension))
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))
    return model


def fit_library_size(spots: Spots) -> LinearMap:
    """Least-squares line of each gene on the log library size, over the spots that measured it.

    Args:
        spots: x is (N, 1), the log library size.
    """
    y, measured, slide = spots.y, spots.measured, spots.slide
    x = spots.x[:, 0].astype(np.float64)
    center = x.mean()
    x = x - center
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
        "mean": [center],
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
