"""Checkpoints of a training: all that it needs to go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from histokit.core.distributed import Team
from histokit.core.errors import InputError
from histokit.core.files import FULL, atomic_path, unreadable
from histokit.models.base import Model


@dataclasses.dataclass
class Parts:
    """What a training changes as it goes, and a checkpoint holds."""

    model: Model
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    scaler: torch.amp.GradScaler | None = None

    def named(self) -> dict:
        """Those that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: part for name, part in found.items() if part is not None}


@dataclasses.dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: the epoch that runs: its steps done, summed loss and weight, learning rate.
        history: one row a finished epoch.
        best: weights of the best epoch, None without validation.
    """

    epoch: dict
    best_loss: float = float("inf")
    best_epoch: int = 0
    best: dict | None = None
    history: list[dict] = dataclasses.field(default_factory=list)


def save(path: Path, parts: Parts, state: Progress, team: Team, on_error: str) -> None:
    """Rank 0 writes for all; every rank draws its own random numbers and sums its own losses."""
    own = team.gather(_random(parts.model) | {"epoch": state.epoch})
    if not team.first:
        return
    try:
        # a file of ours says what fails; given a path, torch calls a full disk a RuntimeError
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(
                {name: part.state_dict() for name, part in parts.named().items()}
                | {"state": vars(state), "ranks": own},
                file,
            )
    except OSError as error:
        if error.errno not in FULL or on_error == "stop":
            raise
        print(f"the disk is full at {path}: no checkpoint, training goes on", file=sys.stderr)


def _random(model: Model) -> dict[str, torch.Tensor]:
    """The states of the generators that a step draws from; dropout draws on the model's device."""
    device = next(model.parameters()).device
    states = {"random": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore(path: Path, parts: Parts, state: Progress, team: Team) -> None:
    """Put parts, state and this rank's random numbers back to where a checkpoint was written.

    Raises:
        InputError: a file that cannot be read, is damaged, or of another number of processes.
    """
    try:
        with open(path, "rb") as file:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        for name, part in parts.named().items():
            part.load_state_dict(saved[name])
        ranks = saved["ranks"]
        begun = saved["state"]
    except OSError as error:
        raise unreadable(path, error, "checkpoint") from error
    except Exception as error:
        raise InputError(
            f"the checkpoint {path} is damaged or of another training; delete it to start the "
            "fold again"
        ) from error
    if len(ranks) != team.size:
        raise InputError(
            f"the checkpoint {path} was written by {len(ranks)} processes and {team.size} would go "
            f"on; start {len(ranks)}, or delete it to start the fold again"
        )
    vars(state).update(begun)
    own = ranks[team.rank]
    state.epoch = own["epoch"]
    torch.set_rng_state(own["random"])
    device = next(parts.model.parameters()).device
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)
