"""What every way of training a fold is given, and what it gives back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from histokit.core.distributed import ALONE, Team
from histokit.data.cohort import Cohort
from histokit.data.splits import Split
from histokit.models.base import Model, Standardizer
from histokit.models.registry import MODELS, ModelSpec
from histokit.train.options import Options


@dataclasses.dataclass(frozen=True)
class FoldSlides:
    """The slides of a fold.

    Attributes:
        cohort: the cohort that holds them; genes and their ranks come from it.
        taught: the cohort that the model learns from; another one in a control.
        split: which of them train, validate and test; test slides are never read.
    """

    cohort: Cohort
    taught: Cohort
    split: Split

    @property
    def members(self) -> list[str]:
        """Training and then validation slides."""
        return self.split.train + self.split.val


@dataclasses.dataclass(frozen=True)
class FoldTask:
    """The training of a model on one fold.

    Attributes:
        slides: the slides of the fold.
        panel: gene, gene_id, symbol, hvg_rank, train_mean, train_variance and train_spots (as of
            ``histokit.evaluate.runs.Fold.genes``) of the G outputs.
        standardizer: the standardizer of the features, fitted on the training and validation spots.
        options: resolved.
        folder: the folder of the fold.
        team: the processes that train together.
    """

    slides: FoldSlides
    panel: pd.DataFrame
    standardizer: Standardizer
    options: Options
    folder: Path
    team: Team = ALONE

    @property
    def split(self) -> Split:
        """The fold."""
        return self.slides.split

    @property
    def spec(self) -> ModelSpec:
        """The row of the table of models."""
        return MODELS[self.options.model]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: the model.
        arguments: those of its class, which rebuild it.
        said: a line on what was done.
        name: its row of the table of models, where that is not the task's.
    """

    model: Model
    arguments: dict
    said: str
    name: str = ""
