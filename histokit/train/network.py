"""Train a network on one fold: its slides, its phases, its curves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from histokit.core.errors import InputError
from histokit.core.files import make_folder, write_rows
from histokit.models.base import Model
from histokit.train.loader import Preparation, SlideReader
from histokit.train.task import FoldTask, Trained
from histokit.train.trainer import Settings, train_network


def fit_network(task: FoldTask) -> Trained:
    """Train a network on a fold and write metrics.csv and loss.png into its folder.

    With ``refit`` the training that validation stopped is repeated from the same seed on training
    and validation slides together, for as many epochs as were best. Checkpoints go into a subfolder
    that is left there.
    """
    options, split, team, folder = task.options, task.split, task.team, task.folder
    arguments = network_arguments(task)

    def build() -> Model:
        torch.manual_seed(options.seed)
        model = task.spec.load_class()(**arguments)
        model.standardizer = task.standardizer
        if options.start_at_mean:
            model.start_at(torch.tensor(task.panel["train_mean"].to_numpy()))
        return model.to(options.device)

    genes = task.panel[["gene", "gene_id", "symbol"]]
    slides = SlideReader(
        Preparation(task.slides.taught, genes, options.target, task.standardizer),
        options.device,
        int(options.cache_gb * 1e9),
        options.workers,
        options.on_error == "skip",
    )
    settings, begin = Settings.of(options), time.perf_counter()
    checkpoints = make_folder(folder / "checkpoints")
    board = tensorboard(folder) if options.tensorboard and team.first else None
    model = build()
    result = train_network(
        model, split.train, split.val, slides, settings, checkpoints / "last.ckpt", board, team
    )
    said = f"{options.model}, {result.epochs} epochs"
    if split.val:
        best = result.history[result.epochs - 1]["val_loss"]
        said += f", validation {model.loss_name.removesuffix(' over measured genes')} {best:.4f}"
    members, chosen = split.train, result
    if options.refit and split.val:
        again, members = checkpoints / "refit.ckpt", split.train + split.val
        shorter = dataclasses.replace(settings, stop_after=result.epochs)
        chosen = train_network(build(), members, [], slides, shorter, again, None, team)
        said += ", trained again with the validation slides"
    model.load_state_dict(chosen.weights)
    if team.first:
        write_curves(result.history, folder, model.loss_name)
        kept = model.remember(s for s in slides.stream(members) if s is not None)
        arguments |= kept
        said += ", its weights hold the spots of these slides" * bool(kept)
    said += f"; waited for slides {slides.waited / (time.perf_counter() - begin):.0%} of the time"
    return Trained(model, arguments, said)


def network_arguments(task: FoldTask) -> dict:
    """What rebuilds the network: its sizes, its options, the cancers it is told."""
    split, panel = task.split, task.panel
    about = task.slides.cohort.provenance(split.train[0])
    dim = about["dimension"]
    _check_scales(task.options.deepspot_scales, about)
    arguments = {"input_dim": dim, "num_genes": len(panel)}
    arguments |= {name: getattr(task.options, name) for name in task.spec.takes}
    if task.spec.conditioned:
        members = task.slides.taught.slides.loc[split.train + split.val]
        arguments["cancers"] = sorted({*members["cancer"]} - {""})  # blank: told no code
    if task.spec.ranked:
        rank = panel["hvg_rank"].astype(float).to_numpy()
        arguments["hvgs"] = [int(i) for i in np.flatnonzero(rank <= task.spec.ranked)]
    return arguments


def _check_scales(scales: int | None, about: Mapping) -> None:
    """Refuse DeepSpot's sizes of patch where the features say that they have others."""
    sides = str(about.get("patch_um", 0))
    there = len(sides.split(","))
    if (scales or 1) > 1 and sides not in ("0", "0.0") and there != scales:
        raise InputError(
            f"--deepspot-scales {scales}: these features have patches of {sides} microns; give "
            f"--deepspot-scales {there}, or extract them with {scales} --scales"
        )


def write_curves(history: list[dict], folder: Path, loss: str = "MSE over measured genes") -> None:
    """Write metrics.csv (epoch, lr, train_loss, val_loss) and loss.png; ``loss`` says of what."""
    write_rows(folder / "metrics.csv", history)
    from histokit.report import plots  # takes a second to import, and stopped trainings need none

    plots.save(plots.loss_curves(history, loss), folder / "loss.png")


def tensorboard(folder: Path):
    """A callback that writes each row of the history as TensorBoard events."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard needs the package tensorboard; install it or leave the option out"
        ) from None
    writer = SummaryWriter(folder / "tensorboard")

    def add(row: dict) -> None:
        for name in ("lr", "train_loss", "val_loss"):
            if row[name] is not None:
                writer.add_scalar(name, row[name], row["epoch"])
        writer.flush()

    return add
