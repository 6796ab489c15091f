"""How far the patches of a slide lie from those that a run was trained on.

The distance is Mahalanobis' under a Gaussian of the training patches with 32 directions of their
own variance and one variance for all others (probabilistic PCA, Tipping and Bishop 1999, Eq. 7), in
the features as the models see them. It is calibrated on slides that folds held out: 1 is the 95th
percentile of their patches, each under the Gaussian of its own fold's training slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.controls import open_cohort
from histokit.evaluate.runs import Fold, Run
from histokit.models.base import Standardizer

DIRECTIONS = 32
PATCHES = 20_000  # of the training slides, drawn evenly from all
CALIBRATED = 5  # folds at most whose held-out slides are looked at
QUANTILE = 0.95
CLEARLY = 0.5  # share of patches beyond it from which a slide is another kind of slide
_AT = 8192  # patches in float64 at a time


@dataclass(frozen=True)
class Gaussian:
    """Training patches as a Gaussian.

    Attributes:
        mean: (D,).
        directions: (k, D), orthonormal.
        variances: (k,) along them.
        rest: the variance along each other direction.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    rest: float

    @classmethod
    def fit(cls, patches: np.ndarray) -> Gaussian:
        """Of patches (N, D)."""
        from sklearn.decomposition import PCA

        count = max(1, min(DIRECTIONS, min(patches.shape) - 1))
        pca = PCA(count, svd_solver="covariance_eigh" if patches.shape[1] <= 2000 else "randomized",
                  random_state=0).fit(patches)  # fmt: skip
        floor = 1e-6 * max(float(pca.explained_variance_.max()), 1e-12)
        variances = np.maximum(pca.explained_variance_, floor)
        return cls(pca.mean_, pca.components_, variances, max(float(pca.noise_variance_), floor))

    def distance(self, patches: torch.Tensor) -> np.ndarray:
        """Of patches (N, D) from the mean, (N,) float64, in standard deviations a dimension."""
        return np.concatenate(
            [self._distance(part.double().numpy()) for part in patches.split(_AT)]
        )

    def _distance(self, patches: np.ndarray) -> np.ndarray:
        away = patches - self.mean
        along = away @ self.directions.T
        outside = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        squares = (along**2 / self.variances).sum(axis=1) + outside / self.rest
        return np.sqrt(squares / patches.shape[1])


@dataclass(frozen=True)
class Reference:
    """What new slides are held against.

    Attributes:
        standardizers: of the models, whose features the distances are in.
        gaussians: one a model.
        usual: the 95th percentile of distances on held-out slides.
        outside: of each held-out slide, the share of its patches beyond that.
    """

    standardizers: list[Standardizer]
    gaussians: list[Gaussian]
    usual: float
    outside: list[float]

    def novelty(self, features: torch.Tensor) -> np.ndarray:
        """Patches (N, D) as extracted: (N,) float32, 1 where 5 % of held-out patches are farther.

        The mean over the models.
        """
        distances = [
            gaussian.distance(standardizer(features))
            for standardizer, gaussian in zip(self.standardizers, self.gaussians, strict=True)
        ]
        return (np.mean(distances, axis=0) / self.usual).astype(np.float32)

    def verdict(self, novelty: np.ndarray) -> str:
        """One sentence on a slide with these values (N,)."""
        share, most, count = float((novelty > 1).mean()), max(self.outside), len(self.outside)
        said = (
            f"{share:.0%} of its patches look unlike the training slides; on the {count} slides "
            f"that were held out it is at most {most:.0%}"
        )
        if share > CLEARLY:  # also where a held-out slide was of another kind itself
            return (
                f"The slide lies outside what the model was trained on: {said}. Its map may be "
                "wrong everywhere; look at stain, magnification and tissue before using it."
            )
        if share <= most:
            return f"The slide looks like the training slides: {said}."
        once = f"a slide like those would exceed that once in {count + 1} times"
        return f"The slide may lie outside what the model was trained on: {said} ({once})."


def make_reference(
    run: Run, folds: Sequence[Fold], models: Sequence, data: str | None = None
) -> Reference:
    """Fit the training patches of each fold, and calibrate on the slides that it held out.

    Args:
        run: the run.
        folds: those that predict; of more than five, five spread over them are looked at.
        models: their models.
        data: the extraction that the run was trained on, where it lies elsewhere by now.

    Raises:
        InputError: the training slides are not at hand, or no fold held a slide out.
    """
    if run.official:
        raise InputError(f"{run.folder} holds published weights, without their training slides")
    cohort = open_cohort(run, data)
    places = np.linspace(0, len(folds) - 1, min(len(folds), CALIBRATED)).round().astype(int)
    chosen = [(folds[i], models[i]) for i in places]
    gaussians, distances = [], []
    for fold, model in chosen:
        split = fold.split
        train = split.loc[split["split"] != "test", "slide_id"].to_list()
        gaussian = Gaussian.fit(_sample(cohort, train, model.standardizer))
        gaussians.append(gaussian)
        for slide_id in split.loc[split["split"] == "test", "slide_id"]:
            patches = model.standardizer(cohort.load(slide_id, counts=False).features)
            distances.append(gaussian.distance(patches))
    if not distances:
        raise InputError(f"no fold of {run.folder} held a slide out")
    usual = float(np.quantile(np.concatenate(distances), QUANTILE))
    outside = [float((d > usual).mean()) for d in distances]
    return Reference([model.standardizer for _, model in chosen], gaussians, usual, outside)


def _sample(cohort: Cohort, slides: list[str], standardizer: Standardizer) -> np.ndarray:
    """Patches (N, D) of slides as a model sees them, evenly from all, float64."""
    each, rng, parts = max(2, PATCHES // len(slides)), np.random.default_rng(0), []
    for slide_id in slides:
        patches = standardizer(cohort.load(slide_id, counts=False).features)
        rows = rng.permutation(len(patches))[:each]
        parts.append(patches[torch.from_numpy(np.sort(rows))].double().numpy())
    return np.concatenate(parts)
