"""Train a network on one fold: its slides, its phases, its curves."""

from __future__ import annotations

import csv
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histokit import models
from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder
from histokit.data.cohort import Cohort
from histokit.data.splits import Split
from histokit.models.base import Model, Standardizer
from histokit.train.loader import Preparation, SlideReader
from histokit.train.trainer import Settings, train_network


def fit_network(
    cohort: Cohort, split: Split, cfg, folder: Path, panel: pd.DataFrame,
    standardizer: Standardizer, team: Team = ALONE,
) -> tuple[Model, dict, str]:  # fmt: skip
    """Train ``cfg.model`` on a fold and write metrics.csv and loss.png into its folder.

    With ``cfg.refit`` the training that validation stopped is repeated from the same seed on
    training and validation slides together, for as many epochs as were best.

    Args:
        cohort: of the slides.
        split: the fold.
        cfg: options of run_train.py.
        folder: of the fold; checkpoints go into a subfolder that is left there.
        panel: gene and train_mean of the G outputs.
        standardizer: fitted on the training and validation spots.
        team: the processes that train together; each takes its share of the slides of a step.

    Returns:
        The trained model, the arguments that rebuild it, and a line on what was done.
    """
    dim = cohort.provenance(split.train[0])["dimension"]
    arguments = {"input_dim": dim, "num_genes": len(panel), "dropout": cfg.dropout}
    if cfg.model == "histoprism":
        members = cohort.slides.loc[split.train + split.val]
        arguments |= {
            "cancers": sorted(members["cancer"].unique()),
            "hidden_dim": cfg.hidden_dim,
            "feedforward_dim": cfg.feedforward_dim,
            "num_layers": cfg.num_layers,
            "max_patches": cfg.max_patches,
        }

    def build() -> Model:
        torch.manual_seed(cfg.seed)
        model = models.CLASSES[cfg.model](**arguments)
        model.standardizer = standardizer
        if cfg.start_at_mean:
            torch.nn.init.zeros_(model.head.weight)
            model.head.bias.data.copy_(torch.tensor(panel["train_mean"].to_numpy()))
        return model.to(cfg.device)

    slides = SlideReader(
        Preparation(cohort, panel[["gene", "gene_id", "symbol"]], cfg.target, standardizer),
        cfg.device,
        int(cfg.cache_gb * 1e9),
        cfg.workers,
        cfg.on_error == "skip",
    )
    settings, begin = Settings.of(cfg), time.perf_counter()
    checkpoints = make_folder(folder / "checkpoints")
    board = tensorboard(folder) if cfg.tensorboard and team.first else None
    model = build()
    result = train_network(
        model, split.train, split.val, slides, settings, checkpoints / "last.ckpt", board, team
    )
    said = f"{cfg.model}, {result.epochs} epochs"
    if split.val:
        said += f", validation MSE {result.history[result.epochs - 1]['val_loss']:.4f}"
    if cfg.refit and split.val:
        again, members = checkpoints / "refit.ckpt", split.train + split.val
        shorter = dataclasses.replace(settings, stop_after=result.epochs)
        chosen = train_network(build(), members, [], slides, shorter, again, None, team)
        said += ", trained again with the validation slides"
    else:
        chosen = result
    if team.first:
        write_curves(result.history, folder)
    model.load_state_dict(chosen.weights)
    said += f"; waited for slides {slides.waited / (time.perf_counter() - begin):.0%} of the time"
    return model, arguments, said


def write_curves(history: list[dict], folder: Path, loss: str = "MSE over measured genes") -> None:
    """Write metrics.csv (epoch, lr, train_loss, val_loss) and loss.png; ``loss`` says of what."""
    from matplotlib.figure import Figure

    with atomic_path(folder / "metrics.csv") as temporary, open(temporary, "w") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    axes.plot(epochs, [row["train_loss"] for row in history], color="#0072b2", label="training")
    if history[0]["val_loss"] is not None:
        losses = [row["val_loss"] for row in history]
        best = int(np.argmin(losses))
        axes.plot(epochs, losses, color="#d55e00", label="validation")
        axes.plot(epochs[best], losses[best], "o", color="#d55e00", label=f"best, {epochs[best]}")
    axes.set(xlabel="epoch", ylabel=loss, yscale="log")
    axes.legend(frameon=False)
    with atomic_path(folder / "loss.png") as temporary:
        figure.savefig(temporary, dpi=150)


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
