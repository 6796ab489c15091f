"""Gradient training of one fold: AdamW, warm-up, early stopping, exact resumption."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from histokit import ops
from histokit.errors import InputError
from histokit.files import atomic_path
from histokit.models.base import Model
from histokit.progress import progress_bar

WARM_UP = 0.05  # share of all steps, the authors'


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a training.

    ``epochs`` bounds the training and sets the length of the learning-rate schedule; ``stop_after``
    ends it earlier without changing the schedule.
    """

    lr: float
    weight_decay: float
    epochs: int
    patience: int
    clip: float
    seed: int
    slides_per_step: int = 1
    stop_after: int | None = None
    checkpoint_seconds: float = 30

    @classmethod
    def of(cls, cfg) -> Settings:
        """Those that the options of run_train.py name."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: getattr(cfg, name) for name in names if hasattr(cfg, name)})


@dataclasses.dataclass(frozen=True)
class TrainingSlide:
    """One slide as the loss needs it.

    Attributes:
        features: (N, D) float32.
        target: (N, G) sparse CSR float32 on the target scale.
        measured: (G,) bool.
        cancer: the model's integer code of the slide.
    """

    slide_id: str
    features: torch.Tensor
    target: torch.Tensor
    measured: torch.Tensor
    cancer: int

    def num_bytes(self) -> int:
        """Memory that the slide holds."""
        index = self.target.crow_indices().nbytes + self.target.col_indices().nbytes
        return self.features.nbytes + self.target.values().nbytes + index + self.measured.nbytes


@dataclasses.dataclass
class Result:
    """A finished training: the chosen weights, the epochs they took, one row an epoch."""

    weights: dict[str, torch.Tensor]
    epochs: int
    history: list[dict]


def step_loss(model: Model, slides: list[TrainingSlide]) -> torch.Tensor:
    """Mean over packed slides of each slide's MSE over its measured genes (Eq. 5, per entry)."""
    sizes = [len(s.features) for s in slides]
    x = torch.cat([s.features for s in slides])
    index = torch.repeat_interleave(torch.arange(len(slides)), torch.tensor(sizes))
    packed = index.to(x.device) if len(slides) > 1 else None
    hidden = model.hidden(x, torch.tensor([s.cancer for s in slides]), packed)
    losses = [
        ops.linear_mse(part, model.head.weight, model.head.bias, s.target, s.measured)
        for part, s in zip(hidden.split(sizes), slides, strict=True)
    ]
    return torch.stack(losses).mean()


def train_network(
    model: Model,
    train: list[str],
    val: list[str],
    slides,
    settings: Settings,
    checkpoint: Path,
    on_epoch: Callable[[dict], None] | None = None,
) -> Result:
    """Train until validation stops improving, or to the last epoch without validation slides.

    All randomness comes from ``settings.seed`` and the checkpoint holds all state, so a training
    that was killed and started again ends with the same weights, bit for bit on one machine.

    Args:
        model: freshly built; its initial weights are part of what the seed determines.
        train: slide ids.
        val: slide ids; may be empty.
        slides: maps a slide id to a TrainingSlide.
        settings: hyper-parameters.
        checkpoint: file that holds the state between epochs.
        on_epoch: called with each row of the history.

    Raises:
        InputError: the loss is no longer finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    steps = -(-len(train) // settings.slides_per_step) * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_then_linear(steps))
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}

    def train_epoch(epoch: int) -> float:
        return _train_epoch(model, train, slides, settings, epoch, parts)

    def validate() -> float:
        return _validate(model, val, slides)

    return run_epochs(parts, train_epoch, validate if val else None, settings, checkpoint, on_epoch)


def run_epochs(
    parts: dict,
    train_epoch: Callable[[int], float],
    validate: Callable[[], float] | None,
    settings: Settings,
    checkpoint: Path,
    on_epoch: Callable[[dict], None] | None = None,
) -> Result:
    """Run epochs until validation stops improving, or to the last without validation.

    Args:
        parts: what the checkpoint holds: ``model``, ``optimizer`` and perhaps ``schedule``.
        train_epoch: trains for the epoch of that number, from 1, and returns the training loss.
        validate: returns the loss on what is held out.
        settings: hyper-parameters.
        checkpoint: file that holds the state between epochs.
        on_epoch: called with each row of the history.
    """
    model, optimizer = parts["model"], parts["optimizer"]
    state = {"best_loss": float("inf"), "best_epoch": 0, "best": None, "history": []}
    if checkpoint.is_file():
        _restore(checkpoint, parts, state)
    else:
        torch.manual_seed(settings.seed)
    last = settings.stop_after or settings.epochs
    saved = time.monotonic()
    progress = progress_bar(total=last, initial=len(state["history"]), desc="epochs", unit="epoch")
    while not _finished(state, last, settings.patience, validate is not None):
        row = {"epoch": len(state["history"]) + 1, "lr": optimizer.param_groups[0]["lr"]}
        row["train_loss"] = train_epoch(row["epoch"])
        row["val_loss"] = validate() if validate else None
        state["history"].append(row)
        if not validate or row["val_loss"] < state["best_loss"]:
            state["best_epoch"] = row["epoch"]
            state["best_loss"] = row["val_loss"] if validate else float("inf")
            state["best"] = copy.deepcopy(model.state_dict()) if validate else None
        if on_epoch:
            on_epoch(row)
        progress.update()
        progress.set_postfix(train=row["train_loss"], val=row["val_loss"], refresh=False)
        if time.monotonic() - saved > settings.checkpoint_seconds:
            _save(checkpoint, parts, state)
            saved = time.monotonic()
    progress.close()
    _save(checkpoint, parts, state)
    return Result(state["best"] or model.state_dict(), state["best_epoch"], state["history"])


def _finished(state: dict, last: int, patience: int, validated: bool) -> bool:
    done = len(state["history"])
    return done >= last or (validated and done - state["best_epoch"] >= patience)


def _train_epoch(model, train, slides, settings: Settings, epoch: int, parts) -> float:
    model.train()
    shuffle = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = [train[i] for i in torch.randperm(len(train), generator=shuffle)]
    total = 0.0
    for start in range(0, len(order), settings.slides_per_step):
        batch = order[start : start + settings.slides_per_step]
        loss = step_loss(model, [slides[s] for s in batch])
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} in epoch {epoch} at slide {batch[0]}; lower --lr"
            )
        parts["optimizer"].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        parts["optimizer"].step()
        parts["schedule"].step()
        total += loss.item() * len(batch)
    return total / len(order)


@torch.no_grad()
def _validate(model, val, slides) -> float:
    model.eval()
    return sum(step_loss(model, [slides[s]]).item() for s in val) / len(val)


def _warm_up_then_linear(steps: int) -> Callable[[int], float]:
    warm_up = int(WARM_UP * steps)

    def factor(step: int) -> float:
        if step < warm_up:
            return step / warm_up
        return max(0.0, (steps - step) / max(1, steps - warm_up))

    return factor


def _save(path: Path, parts: dict, state: dict) -> None:
    with atomic_path(path) as temporary:
        torch.save(
            {name: part.state_dict() for name, part in parts.items()}
            | {"state": state, "random": torch.get_rng_state()},
            temporary,
        )


def _restore(path: Path, parts: dict, state: dict) -> None:
    try:
        saved = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except Exception as error:
        raise InputError(
            f"the checkpoint {path} is damaged or of another training; delete it to start the "
            "fold again"
        ) from error
    state.update(saved["state"])
    torch.set_rng_state(saved["random"])
