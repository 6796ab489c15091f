"""Correlation and error of every gene on a test slide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit import ops
from histokit.core.errors import InputError
from histokit.data.cohort import Slide
from histokit.data.genes import moments
from histokit.data.sparse import csr_tensor
from histokit.evaluate.runs import Fold
from histokit.models.outputs import Outputs
from histokit.ops.moments import is_constant

_BLOCK = 2048  # genes correlated at a time where they do not come from a linear head


@dataclasses.dataclass(frozen=True)
class SlideScore:
    """One test slide under the model of one fold; arrays are (G,) in the order of ``genes``.

    Attributes:
        patient_seen: ``yes`` where another slide of the patient trained or validated the model,
            ``no``, or ``unknown`` where the slide names no patient.
        cancer_known: whether the model was trained on the slide's cancer, where it is told one.
        genes: the fold's gene table.
        learned: whether a training spot has a count of the gene; no other has a prediction.
        hvg: the genes of the headline PCC.
        measured: whether the slide measured the gene.
        constant_target: measured, but the same in every spot.
        constant_pred: measured, and predicted the same in every spot, or not learned.
        pcc: Pearson correlation over the slide's spots, NaN where it does not exist.
        mse: mean squared error, NaN where not measured or not learned.
        variance: the variance of the target, NaN where ``mse`` is.
        target_mean: mean of the target, NaN where ``mse`` is.
    """

    fold: str
    slide_id: str
    cancer: str
    patient: str
    patient_seen: str
    num_spots: int
    cancer_known: bool
    genes: pd.DataFrame
    hvg: np.ndarray
    learned: np.ndarray
    measured: np.ndarray
    constant_target: np.ndarray
    constant_pred: np.ndarray
    pcc: np.ndarray
    mse: np.ndarray
    variance: np.ndarray
    target_mean: np.ndarray


def choose_hvgs(fold: Fold, num_hvg: int, listed: list[str] | None = None) -> np.ndarray:
    """The genes of the headline PCC: a list, or the most variable of the fold's training slides.

    Args:
        fold: its gene table ranks genes by training slides only.
        num_hvg: how many; fewer where fewer genes have a rank.
        listed: gene names, Ensembl ids or symbols that replace the ranking; those without a count
            in training are left out.

    Returns:
        (G,) bool in the order of the model's outputs.
    """
    genes = fold.genes
    if listed is None:
        chosen = (genes["hvg_rank"] <= num_hvg).to_numpy()
        fix = "name the genes with --hvg-file"
    else:
        chosen = genes[["gene", "gene_id", "symbol"]].isin(listed).any(axis=1).to_numpy()
        chosen &= fold.learned
        fix = "the list and the panel must use the same kind of name"
        print(f"fold {fold.name}: {chosen.sum()} of the {len(listed)} listed genes are predicted")
    if not chosen.any():
        raise InputError(f"no gene of fold {fold.name} is among the genes to score; {fix}")
    return chosen


def patient_seen(split: pd.DataFrame, slide_id: str) -> str:
    """Whether the slide's patient also trained or validated the fold: yes, no or unknown."""
    patient = split.loc[split["slide_id"] == slide_id, "patient"].iloc[0]
    if not patient:
        return "unknown"
    return "yes" if patient in set(split.loc[split["split"] != "test", "patient"]) else "no"


def score_slide(
    fold: Fold,
    hvg: np.ndarray,
    slide: Slide,
    prediction: Prediction,
    target: sp.csr_matrix,
) -> SlideScore:
    """Correlate and compare, in closed form behind a linear head; target: (N, G) CSR float32."""
    spots = target.shape[0]
    pcc, mse = _pearson(prediction, target)
    mean, variance = moments(target, np.ones((1, target.shape[1])), np.zeros(spots, int))
    squares, center = torch.from_numpy(variance * spots), torch.from_numpy(mean)
    constant = is_constant(squares, center, spots, torch.finfo(torch.float32).eps).numpy()
    known = slide.measured & fold.learned
    pcc = np.where(known & ~constant, pcc.double().numpy(), np.nan)
    mse, variance, mean = (
        np.where(known, values, np.nan) for values in (mse.double().numpy(), variance, mean)
    )
    return SlideScore(
        fold=fold.name,
        slide_id=slide.slide_id,
        cancer=slide.cancer,
        patient=slide.patient,
        patient_seen=patient_seen(fold.split, slide.slide_id),
        num_spots=spots,
        cancer_known=True,
        genes=fold.genes,
        hvg=hvg,
        learned=fold.learned,
        measured=slide.measured,
        constant_target=slide.measured & constant,
        constant_pred=slide.measured & ~constant & np.isnan(pcc),
        pcc=pcc,
        mse=mse,
        variance=variance,
        target_mean=mean,
    )


@torch.inference_mode()
def _pearson(prediction: Prediction, target: sp.csr_matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlation and squared error (G,); a linear head's predictions are not formed for it."""
    outputs = prediction.outputs
    if outputs.columns is None:
        return ops.linear_pearson(
            prediction.hidden, outputs.weight, outputs.bias, csr_tensor(target)
        )
    columns, parts = target.tocsc(), []
    for start in range(0, len(outputs), _BLOCK):
        genes = slice(start, start + _BLOCK)
        score = ops.StreamingPearson(len(outputs[genes]))
        dense = torch.from_numpy(columns[:, genes].toarray())
        score.update(prediction[:, genes].contiguous(), dense)
        parts.append((score.compute()[0], score.mse()[0]))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


class Prediction:
    """A slide's predictions, computed from the hidden layer where they are asked for.

    ``prediction[:, genes]`` computes those columns, float32.

    Args:
        hidden: (N, d).
        head: from it to the genes.
        learned: (G,) bool, as of ``Fold``; the others are zero in every spot. All by default.
    """

    def __init__(
        self, hidden: torch.Tensor, head: torch.nn.Module, learned: np.ndarray | None = None
    ):
        self.hidden = hidden
        self.outputs = Outputs.of(head)
        if learned is not None:
            self.outputs = self.outputs.silencing(torch.from_numpy(learned))
        self.shape = (len(hidden), len(self.outputs))

    def __getitem__(self, key: tuple[slice, object]) -> torch.Tensor:
        rows, genes = key
        return self.outputs[genes](self.hidden[rows])
