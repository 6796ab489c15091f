"""Choose a model on held-out training patients of a fold, then train it on all of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from histokit.core.errors import InputError
from histokit.core.files import write_rows
from histokit.core.progress import within
from histokit.core.tables import read_table
from histokit.data.cohort import Slide
from histokit.data.genes import normalize
from histokit.data.splits import Split, choose_validation, groups_of
from histokit.models.average import Average
from histokit.models.base import Model
from histokit.models.outputs import Outputs
from histokit.models.registry import AVERAGE, AVERAGED, CANDIDATES, CHOSEN
from histokit.train import average, fold
from histokit.train.correlation import mean_pcc
from histokit.train.task import FoldTask, Trained

HELD_OUT = 4  # inner folds at most
GENES = 50  # whose mean PCC chooses
CHOICE = "choice.csv"
COLUMNS = ("candidate", "held_out", "pcc")


def fit(task: FoldTask, slides: Sequence[Slide], seen: np.ndarray) -> Trained:
    """Train the model of a task, one that is made of others too; arguments as ``fold.fit``."""
    made_of_others = {AVERAGED: average.fit_average, CHOSEN: fit_auto}
    return made_of_others.get(task.spec.trained_by, fold.fit)(task, slides, seen)


def fit_auto(task: FoldTask, slides: Sequence[Slide], seen: np.ndarray) -> Trained:
    """Choose among the candidates on held-out training patients, and train the best on all.

    The patients are dealt to at most four inner folds; where there is one patient, its slides are.
    Each inner fold trains every candidate on the others, as ``run_train.py`` would, and correlates
    what it predicts with what was measured. The candidate with the largest mean over held-out
    patients is taken, the simplest where some are equal; of a single slide the first of them.

    Writes choice.csv: candidate, held_out (patient, or slide where there is one patient), pcc.

    Args:
        task: the fold; its test slides have no say.
        slides: training and then validation slides.
        seen: (G,) bool, which genes of the slides are in the panel.

    Raises:
        InputError: as the candidates' trainings, or predictions that are not finite.
    """
    slides = average.panel_slides(slides, seen)
    chosen, everything = choose(task, slides), np.ones(len(task.panel), bool)
    if chosen == AVERAGE:
        return average.fit_average(task, slides, everything)
    with within(chosen):
        return average.fit_member(task, slides, chosen, task.folder)


def choose(task: FoldTask, slides: Sequence[Slide]) -> str:
    """The candidate that predicts held-out training patients best; says it, writes choice.csv.

    Args:
        task: the fold.
        slides: its training and then validation slides, of the panel's genes.
    """
    name, path = f"fold {task.split.name}", task.folder / CHOICE
    if len(slides) < 2:
        print(f"{name}: one training slide, nothing can be held out; {CANDIDATES[0]} is taken")
        return CANDIDATES[0]
    if not path.is_file():
        write_rows(path, _compare(task, slides))
    table = read_table(path, COLUMNS, "table of a choice")
    scores = table.assign(pcc=table["pcc"].map(float)).groupby("candidate", sort=False)["pcc"]
    means = scores.mean().dropna()
    if means.empty:
        print(f"{name}: no gene to compare by in what was held out; {CANDIDATES[0]} is taken")
        return CANDIDATES[0]
    chosen, units = str(means.idxmax()), table["held_out"].nunique()
    kind = "patients" if len({slide.patient for slide in slides}) > 1 else "slides"
    listed = ", ".join(f"{candidate} {mean:z.4f}" for candidate, mean in means.items())
    print(
        f"{name}: {chosen} is chosen; mean PCC of the {GENES} most variable genes over {units} "
        f"training {kind}, each held out once: {listed}"
    )
    shutil.rmtree(task.folder / "checkpoints" / "choice", ignore_errors=True)
    return chosen


def _compare(task: FoldTask, slides: Sequence[Slide]) -> list[dict]:
    """Rows of choice.csv: what every candidate makes of every held-out patient."""
    by_id = {slide.slide_id: slide for slide in slides}
    units = groups_of(_patients(slides))
    tasks = [_inner_task(task, slides, held, k) for k, held in enumerate(_deal(task, units), 1)]
    learnt = [[by_id[s] for s in inner.slides.members] for inner in tasks]
    left_out = average.usable(task, slides)[1]
    for inner, known in zip(tasks, learnt, strict=True):
        left_out = average.usable(inner, known)[1] | left_out
    average.say_left_out(task, left_out)
    names = [name for name in average.MEMBERS if name not in left_out]
    rows = []
    for k, (inner, known) in enumerate(zip(tasks, learnt, strict=True), 1):
        with within(f"inner fold {k} of {len(tasks)}"):
            trained = average.fit_members(inner, known, names, inner.folder)
        rows += _scores(inner, trained, [by_id[s] for s in inner.split.test], units)
    order = {name: place for place, name in enumerate(CANDIDATES)}
    return sorted(rows, key=lambda row: (order[row["candidate"]], row["held_out"]))


def _patients(slides: Sequence[Slide]) -> pd.DataFrame:
    return pd.DataFrame({"patient": [s.patient for s in slides]}, [s.slide_id for s in slides])


def _deal(task: FoldTask, units: pd.Series) -> list[list[str]]:
    """Slides that each inner fold holds out; units are patients, or slides of one, by slide."""
    names = np.random.default_rng(task.options.seed).permutation(sorted(units.unique()))
    count = min(HELD_OUT, len(names))
    return [list(units.index[units.isin(names[k::count])]) for k in range(count)]


def _inner_task(task: FoldTask, slides: Sequence[Slide], held: list[str], k: int) -> FoldTask:
    """The training of an inner fold, with genes ranked on its own spots."""
    rest = [slide for slide in slides if slide.slide_id not in held]
    val = choose_validation(_patients(rest), task.options.val_fraction, task.options.seed)
    # training slides come first, as in every fold
    rest.sort(key=lambda slide: slide.slide_id in val)
    train = [slide.slide_id for slide in rest if slide.slide_id not in val]
    name = f"{task.split.name}, inner fold {k}"
    split = Split(name, train, [s.slide_id for s in rest[len(train) :]], held, task.split.cancers)
    options = dataclasses.replace(task.options, panel="common", top_genes=None)  # chosen already
    genes = task.panel[["gene", "gene_id", "symbol"]].copy()
    panel, _ = fold.rank_genes(genes, average.moments_of(task, rest), rest, options, name)
    return dataclasses.replace(
        task,
        slides=dataclasses.replace(task.slides, split=split),
        panel=panel,
        folder=task.folder / "checkpoints" / "choice" / str(k),
    )


def _scores(
    task: FoldTask,
    trained: Sequence[tuple[str, Model, dict]],
    held: Sequence[Slide],
    units: pd.Series,
) -> list[dict]:
    """Rows of choice.csv of an inner fold: a held-out patient counts by the mean of its slides."""
    models = {name: model for name, model, _ in trained}
    models[AVERAGE] = Average.of(trained)[0]
    genes = np.flatnonzero(task.panel["hvg_rank"].astype(float).to_numpy() <= GENES)
    rows = []
    for name, model in models.items():
        model.to(task.options.device)
        scores = {s.slide_id: slide_pcc(model, s, genes, task.options.target) for s in held}
        model.cpu()
        by_unit = pd.Series(scores, dtype=float).groupby(units).mean()
        rows += [{"candidate": name, "held_out": u, "pcc": pcc} for u, pcc in by_unit.items()]
    return rows


@torch.inference_mode()
def slide_pcc(model: Model, slide: Slide, genes: np.ndarray, target: str) -> float:
    """Mean PCC of some genes over a slide's spots; 0 for a gene that is predicted constant.

    Args:
        model: the model.
        slide: a slide that it has not seen.
        genes: their positions among the model's outputs.
        target: scale of the targets.

    Returns:
        NaN where the slide measured none of the genes, or none varies there.

    Raises:
        InputError: predictions that are not finite.
    """
    genes = genes[slide.measured[genes]]
    coords = torch.from_numpy(slide.centers)
    hidden = model.embed(slide.features, slide.cancer, allow_unknown=True, coords=coords)
    prediction = Outputs.of(model.head)[genes](hidden).float().cpu()
    if not prediction.isfinite().all():
        raise InputError(
            f"a candidate predicts values that are not finite on slide {slide.slide_id}; lower --lr"
        )
    truth = normalize(slide.counts, slide.library_size, target)[:, genes].toarray()
    return mean_pcc(prediction, torch.from_numpy(truth).float())
