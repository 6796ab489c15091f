"""Train the members of an average on one fold: each as its preset ``small`` has it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from histokit import models
from histokit.core.errors import InputError
from histokit.core.files import make_folder, read_json
from histokit.core.progress import within
from histokit.data.cohort import Slide
from histokit.models.average import Average
from histokit.models.base import Model
from histokit.models.registry import AVERAGE, MEMBERS, MODELS
from histokit.train import fold as steps
from histokit.train import gene_programs
from histokit.train.bpbooster import choose_hvgs
from histokit.train.spots import TrainingMoments
from histokit.train.task import FoldTask, Trained

LARGEST_DIM = 4096  # of features, beyond which histoprism's D x D attention outgrows the rest
HISTOPRISM_HEADS = 4  # of its attention to the cancer, which divide the features


def fit_average(task: FoldTask, slides: Sequence[Slide], seen: np.ndarray) -> Trained:
    """Train every member on a fold, and average them.

    Members that are networks leave metrics.csv and loss.png in ``members/NAME``.

    Args:
        task: the fold.
        slides: training and then validation slides.
        seen: (G,) bool, which genes of the slides are in the panel.

    Raises:
        InputError: as the members' trainings.
    """
    slides = panel_slides(slides, seen)
    names, left_out = usable(task, slides)
    say_left_out(task, left_out)
    trained = fit_members(task, slides, names, task.folder / "checkpoints" / "members")
    for name in names:
        _keep_curves(task.folder / "checkpoints" / "members" / name, task.folder / "members" / name)
    model, arguments = Average.of(trained)
    return Trained(model, arguments, f"the average of {', '.join(names)}", AVERAGE)


def fit_members(
    task: FoldTask, slides: Sequence[Slide], names: Sequence[str], place: Path
) -> list[tuple[str, Model, dict]]:
    """Train members that are not trained yet, each in a folder of its own, where it is kept.

    Args:
        task: the fold.
        slides: its training and then validation slides, of the panel's genes.
        names: the members.
        place: folder of their folders.

    Returns:
        Name, model and the arguments that rebuild it, of each member.
    """
    found = []
    for name in names:
        folder = make_folder(place / name)
        if not steps.is_trained(folder):
            with within(name):
                trained = fit_member(task, slides, name, folder)
            models.save(trained.model, name, trained.arguments, folder)
        arguments = read_json(folder / "model.json")["arguments"]
        found.append((name, models.load(folder), arguments))
    return found


def fit_member(task: FoldTask, slides: Sequence[Slide], name: str, folder: Path) -> Trained:
    """Train one model by its preset ``small`` and the options that were given for all.

    Args:
        task: the fold.
        slides: its training and then validation slides, of the panel's genes.
        name: the model's.
        folder: where its checkpoints and curves go.
    """
    given = dataclasses.asdict(task.options) | {"model": name, "preset": "small"}
    options = type(task.options)(**given).resolved()
    moments = moments_of(task, slides)
    standardizer = steps.fit_standardizer(task.slides, moments, options)
    own = dataclasses.replace(task, options=options, standardizer=standardizer, folder=folder)
    trained = steps.fit(own, slides, np.ones(len(task.panel), bool))
    return dataclasses.replace(trained, name=name)


def moments_of(task: FoldTask, slides: Sequence[Slide]) -> TrainingMoments:
    """Moments of slides of the panel's genes."""
    moments = TrainingMoments(len(task.panel), task.options.target)
    for slide in slides:
        moments.add(slide)
    return moments


def panel_slides(slides: Sequence[Slide], seen: np.ndarray) -> list[Slide]:
    """Slides with the genes that are kept, (G,) bool, alone."""
    if seen.all():
        return list(slides)
    return [
        dataclasses.replace(slide, counts=slide.counts[:, seen], measured=slide.measured[seen])
        for slide in slides
    ]


def usable(task: FoldTask, slides: Sequence[Slide]) -> tuple[list[str], dict[str, str]]:
    """Members that a fold can train, and why the others cannot, in words.

    Args:
        task: the fold.
        slides: its training and then validation slides, of the panel's genes.
    """
    reasons = {"histoprism": _histoprism_misfit(slides), "bpbooster": _booster_misfit(task, slides)}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return [name for name in MEMBERS if name not in left_out], left_out


def say_left_out(task: FoldTask, left_out: dict[str, str]) -> None:
    """Print which members a fold goes without."""
    for name, reason in left_out.items():
        print(f"fold {task.split.name}: {name} is left out: {reason}")


def _histoprism_misfit(slides: Sequence[Slide]) -> str:
    dim = slides[0].features.shape[1]
    if dim > LARGEST_DIM:
        return (
            f"its attention to the cancer has four matrices of {dim:,} x {dim:,}, out of "
            f"proportion beyond {LARGEST_DIM:,} dimensions"
        )
    if dim % HISTOPRISM_HEADS:
        return f"its {HISTOPRISM_HEADS} heads do not divide {dim:,} features"
    return ""


def _booster_misfit(task: FoldTask, slides: Sequence[Slide]) -> str:
    train = slides[: len(task.split.train)]
    measured = np.stack([slide.measured for slide in slides])
    most = MODELS["bpbooster"].presets["small"]["num_hvgs"]
    try:
        genes = choose_hvgs(task.panel, measured, most)
        gene_programs.check_enough_spots(
            sum(len(slide.barcodes) for slide in train), len(genes), "--num-hvgs"
        )
    except InputError as error:
        return str(error)
    return ""


def _keep_curves(place: Path, folder: Path) -> None:
    for file in ("metrics.csv", "loss.png"):
        if (place / file).is_file():
            shutil.copyfile(place / file, make_folder(folder) / file)
