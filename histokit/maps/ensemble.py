"""The models of a run's folds as one: their mean, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from histokit.core.errors import InputError
from histokit.data.cohort import Slide
from histokit.evaluate.runs import Fold, Run
from histokit.evaluate.views import embed
from histokit.models.outputs import Outputs
from histokit.report.page import plural


def choose_folds(run: Run, name: str) -> list[Fold]:
    """The folds that predict: one by its name, or ``all``.

    Raises:
        InputError: no such fold, or one that is not trained to its end.
    """
    folds = [fold for fold in run.folds if name in ("all", fold.name, fold.id)]
    if not folds:
        names = ", ".join(fold.name for fold in run.folds)
        raise InputError(f"{run.folder} has no fold {name!r}; choose all or one of {names}")
    for fold in folds:
        if not fold.is_finished():
            raise InputError(
                f"fold {fold.name} of {run.folder} is not trained to its end; give run_train.py "
                "the same command again, or choose another with --fold"
            )
    return folds


def common_genes(folds: Sequence[Fold]) -> pd.DataFrame:
    """gene, gene_id, symbol, train_mean, train_sd of the genes that all folds predict.

    A gene without a count in a fold's training is an output of its model but no prediction.
    The moments of the training targets are means over the folds.
    """
    tables = [fold.genes[fold.learned].set_index("gene") for fold in folds]
    genes = [gene for gene in tables[0].index if all(gene in table.index for table in tables)]
    means = np.mean([table.loc[genes, "train_mean"] for table in tables], axis=0)
    variances = np.mean([table.loc[genes, "train_variance"] for table in tables], axis=0)
    names = tables[0].loc[genes, ["gene_id", "symbol"]]
    return names.assign(train_mean=means, train_sd=np.sqrt(variances))


class Ensemble:
    """The mean of the models of some folds.

    Args:
        run: the run.
        folds: which of its folds.
        device: where networks run.

    Attributes:
        genes: as ``common_genes`` returns them.
    """

    def __init__(self, run: Run, folds: Sequence[Fold], device: str = "cpu"):
        self.run, self.folds, self.device = run, folds, device
        self.genes = common_genes(folds)
        if self.genes.empty:
            raise InputError(f"the folds of {run.folder} predict no gene in common; choose one")
        everywhere = set.intersection(*(set(fold.genes["gene"]) for fold in folds))
        self._unlearned = len(everywhere) - len(self.genes)
        self.models = [fold.load_model() for fold in folds]
        self._columns = [
            torch.from_numpy(pd.Index(fold.genes["gene"]).get_indexer(self.genes.index))
            for fold in folds
        ]

    def knows_cancer(self, cancer: str) -> bool:
        """Whether every model was trained on this oncotree code, or is told none."""
        return all(model.knows_cancer(cancer) for model in self.models)

    def cancers(self) -> list[str]:
        """The oncotree codes that the models are told; empty where they are told none."""
        return sorted({code for model in self.models for code in model.known_cancers()})

    def said(self, slide: Slide) -> list[str]:
        """Sentences on what the models knew of a slide before, and what they are not told."""
        said = self._seen(slide)
        if self._unlearned:
            said.append(
                f"{plural(self._unlearned, 'gene')} of the panel are not predicted: no training "
                "spot has a count of them."
            )
        if not self.knows_cancer(slide.cancer):
            said.append(
                f"The model was not trained on the cancer code {slide.cancer} (it knows "
                f"{', '.join(self.cancers())}), and is told none."
            )
        return said

    def _seen(self, slide: Slide) -> list[str]:
        """A sentence where the slide, or its patient, trained a model that predicts it."""
        for column, own, what in (
            ("slide_id", slide.slide_id, f"A slide of this name ({slide.slide_id})"),
            ("patient", slide.patient, f"Another slide of this patient ({slide.patient})"),
        ):
            count = sum(
                own in set(fold.split.loc[fold.split["split"] != "test", column])
                for fold in self.folds
            )
            if own and count:
                return [
                    f"{what} trained {count} of the {len(self.folds)} models: that the map agrees "
                    "with what was measured says little."
                ]
        return []

    def on(self, slide: Slide) -> EnsembleMap:
        """The prediction of one slide.

        Raises:
            InputError: features of another dimension, or values that are not finite.
        """
        hidden = []
        for fold, model in zip(self.folds, self.models, strict=True):
            h = embed(model, slide, self.device)
            if not h.isfinite().all():
                raise InputError(
                    f"the model of fold {fold.name} of {self.run.folder} predicts values that are "
                    f"not finite on slide {slide.slide_id}; train it again, or leave the fold out"
                )
            hidden.append(h)
        outputs = [
            Outputs.of(model.head)[columns]
            for model, columns in zip(self.models, self._columns, strict=True)
        ]
        return EnsembleMap(hidden, outputs)


class EnsembleMap:
    """One slide's prediction, computed where it is asked for.

    Args:
        hidden: of each model, (N, d), the input of its last layer.
        outputs: of each model, the G genes of that layer.
    """

    def __init__(self, hidden: list[torch.Tensor], outputs: list[Outputs]):
        self._hidden, self._outputs = hidden, outputs

    @torch.inference_mode()
    def _parts(self, genes: slice | np.ndarray) -> list[np.ndarray]:
        return [
            outputs[genes](h).float().numpy()
            for h, outputs in zip(self._hidden, self._outputs, strict=True)
        ]

    def take(self, genes: slice | np.ndarray) -> np.ndarray:
        """(N, k) float32: the mean over the models, of some genes."""
        return np.mean(self._parts(genes), axis=0, dtype=np.float32)

    def block(self, start: int, stop: int) -> np.ndarray:
        """(N, stop - start) float32: the mean over the models, of the genes from start to stop."""
        return self.take(slice(start, stop))

    def spread(self, start: int, stop: int) -> np.ndarray:
        """(N, stop - start) float32: the standard deviation over the models (n - 1)."""
        return np.std(self._parts(slice(start, stop)), axis=0, ddof=1, dtype=np.float32)
