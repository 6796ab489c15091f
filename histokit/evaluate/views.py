"""Score the test slides of a run, one slide in memory at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit import ops
from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort, Slide
from histokit.data.features import difference
from histokit.data.genes import moments, normalise
from histokit.data.sparse import csr_tensor
from histokit.evaluate.runs import Fold, Run
from histokit.ops.gemm import linear
from histokit.ops.reference import is_constant


@dataclasses.dataclass(frozen=True)
class SlideScore:
    """One test slide under the model of one fold; arrays are (G,) in the order of ``genes``.

    Attributes:
        patient_seen: ``yes`` where another slide of the patient trained or validated the model,
            ``no``, or ``unknown`` where the slide names no patient.
        cancer_known: whether the model was trained on the slide's cancer, where it is told one.
        genes: the fold's gene table.
        hvg: the genes of the headline PCC.
        measured: whether the slide measured the gene.
        constant_target: measured, but the same in every spot.
        constant_pred: predicted the same in every spot.
        pcc: Pearson correlation over the slide's spots, NaN where it does not exist.
        mse: mean squared error, NaN where not measured.
        variance: of the target, NaN where not measured.
        target_mean: of the target, NaN where not measured.
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
    measured: np.ndarray
    constant_target: np.ndarray
    constant_pred: np.ndarray
    pcc: np.ndarray
    mse: np.ndarray
    variance: np.ndarray
    target_mean: np.ndarray


def check_run(run: Run, cohort: Cohort) -> list[tuple[Fold, list[str]]]:
    """Folds of a run with their test slides, once everything that scoring needs is there.

    Raises:
        InputError: a fold that is not trained to its end, no test slide, a slide that the data
            lack, features other than those the run was trained on.
    """
    work = []
    for fold in run.folds:
        for name in ("split.csv", "genes.csv", "model.json", "model.safetensors"):
            if not (fold.folder / name).is_file():
                raise InputError(
                    f"fold {fold.name} of {run.folder} holds no {name}: it is not trained to its "
                    "end; give run_train.py the same command again"
                )
        split = fold.split
        test = list(split.loc[split["split"] == "test", "slide_id"])
        for slide_id in test:
            if slide_id not in cohort.slides.index:
                raise InputError(
                    f"test slide {slide_id} of fold {fold.name} is not in "
                    f"{cohort.folder / 'slides.csv'}; extract it or give the folder the run was "
                    "trained on with --data"
                )
            check_features(run, cohort, slide_id)
        work.append((fold, test))
    if not any(test for _, test in work):
        raise InputError(
            f"{run.folder} has no test slide in any fold; train with folds that hold some out"
        )
    return work


def check_features(run: Run, cohort: Cohort, slide_id: str) -> None:
    """Compare a slide's features with those the run was trained on; raises InputError."""
    if found := difference(run.config["features"], cohort.provenance(slide_id)):
        key, trained, here = found
        raise InputError(
            f"the features of slide {slide_id} have {key} {here}, but {run.folder} was trained on "
            f"{key} {trained}; extract the slide as the training slides were"
        )


def choose_hvgs(fold: Fold, num_hvg: int, listed: list[str] | None = None) -> np.ndarray:
    """The genes of the headline PCC: a list, or the most variable of the fold's training slides.

    Args:
        fold: its gene table ranks genes by training slides only.
        num_hvg: how many; fewer where fewer genes have a rank.
        listed: gene names, Ensembl ids or symbols that replace the ranking.

    Returns:
        (G,) bool in the order of the model's outputs.
    """
    genes = fold.genes
    if listed is None:
        chosen = (genes["hvg_rank"] <= num_hvg).to_numpy()
        fix = "name the genes with --hvg-file"
    else:
        chosen = genes[["gene", "gene_id", "symbol"]].isin(listed).any(axis=1).to_numpy()
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


class Prediction:
    """A slide's predictions through a linear head: the (N, G) matrix is never formed.

    ``prediction[:, genes]`` computes those columns, float32.
    """

    def __init__(self, hidden: torch.Tensor, head: torch.nn.Linear):
        self.hidden, self.head = hidden, head
        self.shape = (len(hidden), head.out_features)

    @torch.inference_mode()
    def __getitem__(self, key: tuple[slice, object]) -> torch.Tensor:
        rows, genes = key
        weight, bias = self.head.weight[genes], self.head.bias[genes]
        if weight.ndim == 1:  # one gene
            return self.hidden[rows] @ weight + bias
        return linear(self.hidden[rows], weight, bias)


def load_held_out(
    fold: Fold, cohort: Cohort, slide_id: str, genes: pd.DataFrame | Sequence[str] | None = None
) -> Slide:
    """A test slide for the model of its fold, with the oncotree code that the fold gave it.

    Every table, map and prediction of an evaluation reads its slides here.

    Raises:
        RuntimeError: the fold did not hold the slide out.
        InputError: as ``Cohort.load``.
    """
    fold.check_held_out(slide_id)
    return dataclasses.replace(cohort.load(slide_id, genes), cancer=fold.cancer(slide_id))


def predict(run: Run, fold: Fold, model, slide: Slide) -> Prediction:
    """Predicted expression of a slide that the fold held out.

    Raises:
        InputError: the prediction is not finite.
    """
    fold.check_held_out(slide.slide_id)
    hidden = model.embed(slide.features, slide.cancer, allow_unknown=True)
    prediction = Prediction(hidden, model.head)
    parts = (prediction.hidden, model.head.weight, model.head.bias)
    if not all(part.isfinite().all() for part in parts):
        raise InputError(
            f"the model of fold {fold.name} of {run.folder} predicts values that are not finite "
            f"on slide {slide.slide_id}; train it again with a smaller learning rate"
        )
    return prediction


def score_slide(
    fold: Fold,
    hvg: np.ndarray,
    slide: Slide,
    prediction: Prediction,
    target: sp.csr_matrix,
    cancer_known: bool = True,
) -> SlideScore:
    """Correlate and compare in closed form; target: (N, G) CSR float32."""
    head, spots = prediction.head, target.shape[0]
    with torch.inference_mode():
        pcc, mse = ops.linear_pearson(prediction.hidden, head.weight, head.bias, csr_tensor(target))
    mean, variance = moments(target, np.ones((1, target.shape[1])), np.zeros(spots, int))
    squares, centre = torch.from_numpy(variance * spots), torch.from_numpy(mean)
    constant = is_constant(squares, centre, spots, torch.float32).numpy()
    pcc = np.where(slide.measured & ~constant, pcc.double().numpy(), np.nan)
    mse, variance, mean = (
        np.where(slide.measured, values, np.nan)
        for values in (mse.double().numpy(), variance, mean)
    )
    return SlideScore(
        fold=fold.name,
        slide_id=slide.slide_id,
        cancer=slide.cancer,
        patient=slide.patient,
        patient_seen=patient_seen(fold.split, slide.slide_id),
        num_spots=spots,
        cancer_known=cancer_known,
        genes=fold.genes,
        hvg=hvg,
        measured=slide.measured,
        constant_target=slide.measured & constant,
        constant_pred=slide.measured & ~constant & np.isnan(pcc),
        pcc=pcc,
        mse=mse,
        variance=variance,
        target_mean=mean,
    )


def score_run(
    run: Run,
    cohort: Cohort,
    num_hvg: int = 50,
    listed: list[str] | None = None,
    keep: Callable | None = None,
    progress: Callable | None = None,
    team: Team = ALONE,
) -> list[SlideScore]:
    """Score every test slide of every fold, each rank of the team its share.

    Args:
        run: a finished run.
        cohort: its slides.
        num_hvg: size of the headline gene list.
        listed: genes that replace the training slides' most variable ones.
        keep: called with (fold, slide, prediction, target, score) while they are in memory.
        progress: called without arguments after each slide.
        team: the processes that score together; every one gets all scores.
    """
    work = [(fold, slide_id) for fold, test in check_run(run, cohort) for slide_id in test]
    scores = []
    for fold, own in groupby(team.share(work), key=lambda item: item[0]):
        model = fold.load_model()
        hvg = choose_hvgs(fold, num_hvg, listed)
        for _, slide_id in own:
            slide = load_held_out(fold, cohort, slide_id, fold.genes)
            if not slide.measured.any():
                own = cohort.gene_table(slide_id).index
                raise InputError(
                    f"slide {slide_id} measured none of the {len(fold.genes):,} genes of fold "
                    f"{fold.name}: it names genes such as {own[0] if len(own) else 'none'}, the "
                    f"model {fold.genes['gene'].iloc[0]}; both need the same kind of name"
                )
            prediction = predict(run, fold, model, slide)
            target = normalise(slide.counts, slide.library_size, run.config["options"]["target"])
            known = model.knows_cancer(slide.cancer)
            score = score_slide(fold, hvg, slide, prediction, target, known)
            scores.append(score)
            if keep is not None:
                keep(fold, slide, prediction, target, score)
            if progress is not None:
                progress()
    return team.gather_shares(scores)
