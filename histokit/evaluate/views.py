"""The test slides of a run under the models that held them out, one in memory at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.precision import products
from histokit.data.cohort import Cohort, Slide, refuse_tuned
from histokit.data.features import difference
from histokit.data.genes import normalize
from histokit.data.sparse import csr_tensor
from histokit.data.technologies import technology_kind
from histokit.evaluate.context import Context
from histokit.evaluate.gene_lists import GeneLists
from histokit.evaluate.runs import Fold, Run
from histokit.evaluate.scores import Prediction, SlideScore, choose_hvgs, score_slide
from histokit.models.base import Model

_KEPT = 1 << 30  # bytes of models that stay in memory during an evaluation


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
            check_features(run, cohort.of_fold(fold.id), slide_id, fold)
        refuse_tuned(cohort.encoder, cohort.of_fold(fold.id).tuned_on(test), fold.name, test)
        work.append((fold, test))
    if not any(test for _, test in work):
        raise InputError(
            f"{run.folder} has no test slide in any fold; train with folds that hold some out"
        )
    return work


def check_features(run: Run, cohort: Cohort, slide_id: str, fold: Fold | None = None) -> None:
    """Compare a slide's features with those the run, or a fold, was trained on.

    Raises:
        InputError: says what differs.
    """
    known = run.config["features"] | (fold.features if fold else {})
    if found := difference(known, cohort.provenance(slide_id)):
        key, trained, here = found
        raise InputError(
            f"the features of slide {slide_id} have {key} {here}, but {run.folder} was trained on "
            f"{key} {trained}; extract the slide as the training slides were"
        )


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
    slide = cohort.of_fold(fold.id).load(slide_id, genes)
    return dataclasses.replace(slide, cancer=fold.cancer(slide_id))


def embed(
    model: Model,
    slide: Slide,
    device: str = "cpu",
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    precision: str = "float32",
) -> torch.Tensor:
    """A slide (N spots) to the input of the model's last layer, (N, d) on the CPU.

    The network runs on ``device`` and the model is on the CPU when this returns. An oncotree code
    that it does not know is told as none. One that can be told the technology is told it.

    Args:
        model: the model.
        slide: the slide.
        device: where the network runs.
        known: expression that the model is shown, as ``STPathModel.embed_told`` takes it.
        precision: of the network's matrix products (``histokit.core.precision``).
    """
    run, more = model.embed, {}
    if hasattr(model, "embed_told"):
        run, more = model.embed_told, {"technology": technology_kind(slide.technology)}
        more["known"] = known
    coords = torch.from_numpy(slide.centers)
    model.to(device)
    with products(precision, device):
        hidden = run(slide.features, slide.cancer, allow_unknown=True, coords=coords, **more)
    if precision != "float32":  # what autocast leaves in a lower type
        hidden = hidden.float()
    hidden = hidden.cpu()
    model.cpu()
    return hidden


def predict(
    run: Run,
    fold: Fold,
    model,
    slide: Slide,
    device: str = "cpu",
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    precision: str = "float32",
) -> Prediction:
    """Predicted expression of a slide that the fold held out.

    Args:
        run: the run of the fold.
        fold: the fold.
        model: its model.
        slide: the slide.
        device, known, precision: as ``embed`` takes them.

    Raises:
        InputError: the prediction is not finite.
    """
    fold.check_held_out(slide.slide_id)
    hidden = embed(model, slide, device, known, precision)
    prediction = Prediction(hidden, model.head, fold.learned)
    if not (prediction.hidden.isfinite().all() and prediction.outputs.is_finite()):
        raise InputError(
            f"the model of fold {fold.name} of {run.folder} predicts values that are not finite "
            f"on slide {slide.slide_id}; train it again with a smaller learning rate"
        )
    return prediction


@dataclasses.dataclass(frozen=True)
class SlideView:
    """A test slide under the model of a fold that held it out: read, predicted and scored once.

    Attributes:
        model: the model of the fold, in evaluation mode.
        slide: with the counts of the fold's genes.
        prediction: (N, G), computed where it is sliced.
        target: (N, G) CSR float32, the measured expression on the scale of the training.
        context: barcodes of further spots, whose expression the model was shown; no array has them.
    """

    fold: Fold
    model: Model
    slide: Slide
    prediction: Prediction
    target: sp.csr_matrix
    score: SlideScore
    context: tuple[str, ...] = ()


class Views:
    """The test slides of a run, each under the model that held it out.

    Folds that follow each other and test the same slides are gone through together, so that a slide
    is read once for all of them. Models stay in memory up to ``_KEPT`` bytes.

    Args:
        run: a finished run.
        cohort: its slides.
        num_hvg: size of the headline gene list.
        listed: genes that replace the training slides' most variable ones.
        device: where networks run.
        context: spots whose expression the models are shown; they are in no view.
        precision: of the networks' matrix products.

    Raises:
        InputError: as ``check_run``.
    """

    def __init__(
        self,
        run: Run,
        cohort: Cohort,
        num_hvg: int = 50,
        listed: GeneLists | None = None,
        device: str = "cpu",
        context: Context | None = None,
        precision: str = "float32",
    ):
        self.run, self.cohort, self.num_hvg, self.listed = run, cohort, num_hvg, listed
        self.device, self.context, self.precision = device, context, precision
        self.work = [
            (fold, slide_id)
            for tests, group in groupby(check_run(run, cohort), key=lambda item: item[1])
            for folds in [[fold for fold, _ in group]]
            for slide_id in tests
            for fold in folds
        ]
        self._models: dict[str, Model] = {}
        self._hvgs: dict[tuple[str, str], np.ndarray] = {}
        self._read: tuple[str, pd.DataFrame, Slide] | None = None

    def of(self, team: Team = ALONE) -> Iterator[SlideView]:
        """The views of this rank's share of the slides, one in memory at a time."""
        for fold, slide_id in team.share(self.work):
            yield self.again(fold, slide_id)

    def again(self, fold: Fold, slide_id: str) -> SlideView:
        """The view of one slide.

        Raises:
            InputError: the slide measured none of the fold's genes, or as ``predict`` and
                ``Context.of``.
        """
        slide, model = self._slide(fold, slide_id), self.model(fold)
        target = normalize(slide.counts, slide.library_size, self.run.config["options"]["target"])
        shown, known = np.zeros(len(slide.barcodes), bool), None
        if self.context is not None:
            shown = self.context.of(slide)
            known = csr_tensor(target), torch.from_numpy(shown)
        prediction = predict(self.run, fold, model, slide, self.device, known, self.precision)
        context = tuple(np.array(slide.barcodes)[shown].tolist())
        if context:
            slide, target = _some(slide, ~shown), target[~shown]
            rest = prediction.hidden[torch.from_numpy(~shown)]
            prediction = Prediction(rest, model.head, fold.learned)
        score = score_slide(fold, self._hvg(fold, slide.cancer), slide, prediction, target)
        score = dataclasses.replace(score, cancer_known=model.knows_cancer(slide.cancer))
        if self.run.official and score.patient_seen == "no":  # nobody knows what trained it
            score = dataclasses.replace(score, patient_seen="unknown")
        return SlideView(fold, model, slide, prediction, target, score, context)

    def model(self, fold: Fold) -> Model:
        """The model of a fold, loaded once while it is kept."""
        if fold.id not in self._models:
            model = self._models[fold.id] = fold.load_model()
            if hasattr(model, "keep_folds"):
                model.keep_folds()
            while len(self._models) > 1 and sum(map(_size, self._models.values())) > _KEPT:
                del self._models[next(iter(self._models))]
        return self._models[fold.id]

    def _hvg(self, fold: Fold, cancer: str) -> np.ndarray:
        key = (fold.id, cancer if self.listed else "")
        if key not in self._hvgs:
            listed = self.listed.of(cancer) if self.listed else None
            self._hvgs[key] = choose_hvgs(fold, self.num_hvg, listed)
        return self._hvgs[key]

    def _slide(self, fold: Fold, slide_id: str) -> Slide:
        """A slide with the genes of a fold, the last one read or a new one."""
        genes = fold.genes[["gene", "gene_id", "symbol"]]
        same = self._read and self._read[0] == slide_id and self._read[1].equals(genes)
        if same and not self.cohort.by_fold:
            fold.check_held_out(slide_id)
            return dataclasses.replace(self._read[2], cancer=fold.cancer(slide_id))
        slide = load_held_out(fold, self.cohort, slide_id, fold.genes)
        if not slide.measured.any():
            own = self.cohort.gene_table(slide_id).index
            raise InputError(
                f"slide {slide_id} measured none of the {len(fold.genes):,} genes of fold "
                f"{fold.name}: it names genes such as {own[0] if len(own) else 'none'}, the "
                f"model {fold.genes['gene'].iloc[0]}; both need the same kind of name"
            )
        self._read = (slide_id, genes, slide)
        return slide


def _some(slide: Slide, rows: np.ndarray) -> Slide:
    """A slide with some of its spots; rows: (N,) bool."""
    return dataclasses.replace(
        slide,
        barcodes=np.array(slide.barcodes)[rows].tolist(),
        centers=slide.centers[rows],
        features=slide.features[torch.from_numpy(rows)],
        counts=slide.counts[rows],
        library_size=slide.library_size[rows],
    )


def _size(model: Model) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def score_run(
    run: Run, cohort: Cohort, num_hvg: int = 50, listed: GeneLists | None = None
) -> list[SlideScore]:
    """Scores of every test slide of a run; arguments as of ``Views``."""
    return [view.score for view in Views(run, cohort, num_hvg, listed).of()]
