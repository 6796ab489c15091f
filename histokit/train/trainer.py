"""Gradient training of one fold: AdamW or SGD, warm-up, early stopping, exact resumption."""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import torch

from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.precision import lower_type
from histokit.core.progress import placed, progress_bar
from histokit.core.stopping import Stopped, noted_signals
from histokit.models.base import Batch, Model, Target
from histokit.train.checkpoints import Parts, Progress, restore, save
from histokit.train.loader import SlideReader, TrainingSlide
from histokit.train.options import Options

WARM_UP = 0.05  # share of all steps, the authors'
MOMENTUM = 0.9  # ST-Net's authors'


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a training.

    ``epochs`` bounds the training and sets the length of the learning-rate schedule; ``stop_after``
    ends it earlier without changing the schedule. ``slides_per_step`` are those of each rank.
    ``stnet_literal`` descends as ST-Net's authors do: SGD with momentum at a constant rate, with
    gradients of any norm, on squared errors summed over a slide's spots.
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
    precision: str = "float32"
    on_error: str = "stop"
    stnet_literal: bool | None = None

    @classmethod
    def of(cls, options: Options) -> Settings:
        """Those that the options name."""
        names = {field.name for field in dataclasses.fields(cls)} - {"stop_after"}
        return cls(**{name: getattr(options, name) for name in names})


@dataclasses.dataclass
class Result:
    """A finished training: the chosen weights, the epochs they took, one row an epoch."""

    weights: dict[str, torch.Tensor]
    epochs: int
    history: list[dict]


def step_loss(
    model: Model, slides: list[TrainingSlide], precision: str = "float32"
) -> torch.Tensor:
    """The model's loss over packed slides (Eq. 5 of HistoPrism, per entry).

    ``precision`` is that of the matrix products before the loss; the loss itself is float32.
    """
    sizes = [len(s.features) for s in slides]
    x = torch.cat([s.features for s in slides])
    index = torch.repeat_interleave(torch.arange(len(slides)), torch.tensor(sizes))
    packed = index.to(x.device) if len(slides) > 1 else None
    codes = torch.tensor([model.cancer_code(s.cancer) for s in slides])
    coords = torch.cat([s.coords for s in slides]) if model.uses_coords else None
    targets = [Target(s.target, s.measured) for s in slides]
    return model.loss(Batch(x, codes, packed, coords), targets, lower_type(precision))


def train_network(
    model: Model,
    train: list[str],
    val: list[str],
    slides: SlideReader,
    settings: Settings,
    checkpoint: Path,
    on_epoch: Callable[[dict], None] | None = None,
    team: Team = ALONE,
) -> Result:
    """Train until validation stops improving, or to the last epoch without validation slides.

    All randomness comes from ``settings.seed`` and the checkpoint holds all state, so a training
    that was killed and started again ends with the same weights, bit for bit on one machine. A
    team of n ranks with one slide in a step does what one process does with n, but for the order
    of sums and for dropout, which every rank draws for itself.

    Args:
        model: freshly built; its initial weights are part of what the seed determines.
        train: slide ids.
        val: slide ids; may be empty.
        slides: reads them.
        settings: hyper-parameters.
        checkpoint: file that holds the state between epochs.
        on_epoch: called with each row of the history, on rank 0.
        team: the processes that train together.

    Raises:
        InputError: the loss is no longer finite, or a slide cannot be read.
        Stopped: a signal ended the training, which is saved.
    """
    slides_a_step = settings.slides_per_step * team.size
    steps = -(-len(train) // slides_a_step) * settings.epochs
    optimizer, factor = _descent(model, settings, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    half = settings.precision == "float16"  # gradients of float16 underflow without a scale
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=half)
    parts = Parts(model, optimizer, schedule, scaler)

    def train_steps(epoch: int, done: int) -> Iterator[tuple[float, float]]:
        shuffle = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        order = [train[i] for i in torch.randperm(len(train), generator=shuffle)]
        batches = [order[i : i + slides_a_step] for i in range(0, len(order), slides_a_step)]
        own = [team.share(batch) for batch in batches[done:]]
        stream = slides.stream(list(chain(*own)))
        for batch in own:
            loaded = [s for s in islice(stream, len(batch)) if s is not None]
            yield _step(parts, loaded, settings, epoch, team)

    def val_steps() -> Iterator[tuple[float, float]]:
        for slide in slides.stream(team.share(val)):
            if slide is None:
                raise InputError(
                    "a validation slide cannot be read, without which epochs no longer compare; "
                    "extract it again"
                )
            loss = step_loss(model, [slide], settings.precision).item()
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss of validation slide {slide.slide_id} is {loss}; it may measure no "
                    "gene of the panel: leave it out, or lower --lr"
                )
            yield loss, 1

    return run_epochs(
        parts, train_steps, val_steps if val else None, settings, checkpoint, on_epoch, team
    )


def _descent(model: Model, settings: Settings, steps: int):
    """The optimizer, and the factor of its learning rate at each step."""
    decay = {"weight_decay": settings.weight_decay, "fused": True}
    if settings.stnet_literal:
        sgd = torch.optim.SGD(model.parameters(), settings.lr, momentum=MOMENTUM, **decay)
        return sgd, _constant
    return torch.optim.AdamW(model.parameters(), settings.lr, **decay), _warm_up_then_linear(steps)


def _losses(
    model: Model, slides: list[TrainingSlide], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the step descends, and the mean over slides that is reported of it."""
    if not settings.stnet_literal:
        loss = step_loss(model, slides, settings.precision)
        return loss, loss
    losses = torch.stack([step_loss(model, [slide], settings.precision) for slide in slides])
    spots = torch.tensor([len(slide.features) for slide in slides]).to(losses)
    return (spots * losses).mean(), losses.detach().mean()


def _step(parts: Parts, slides: list[TrainingSlide], settings: Settings, epoch: int, team: Team):
    """One step of the optimizer; the summed loss of this rank's slides and their number."""
    model, optimizer, scaler = parts.model, parts.optimizer, parts.scaler
    parameters = list(model.parameters())
    optimizer.zero_grad()
    total = 0.0
    if slides:
        descended, loss = _losses(model, slides, settings)
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} in epoch {epoch} at slide {slides[0].slide_id}; lower "
                "--lr"
            )
        scaler.scale(descended).backward()
        total = loss.item() * len(slides)
    if any(team.any(bool(slides))):
        team.average_gradients(parameters, len(slides))
        scaler.unscale_(optimizer)
        if not settings.stnet_literal:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        scaler.step(optimizer)
        scaler.update()
        model.after_step()
    parts.schedule.step()
    return total, len(slides)


Steps = Iterable[tuple[float, float]]  # summed loss and weight of each step


def run_epochs(
    parts: Parts,
    train_steps: Callable[[int, int], Steps],
    val_steps: Callable[[], Steps] | None,
    settings: Settings,
    checkpoint: Path,
    on_epoch: Callable[[dict], None] | None = None,
    team: Team = ALONE,
) -> Result:
    """Run epochs until validation stops improving, or to the last without validation.

    The state is saved between steps, so neither a kill nor a signal loses more than the seconds
    since the last checkpoint, and what goes on ends with the same weights.

    Args:
        parts: model, optimizer and what else the checkpoint holds.
        train_steps: given the number of an epoch, from 1, and how many of its steps are done,
            takes those that are left; yields the summed loss and the weight of each.
        val_steps: the same for what is held out, without training.
        settings: hyper-parameters.
        checkpoint: file that holds the state.
        on_epoch: called with each row of the history, on rank 0.
        team: the processes that train together.

    Raises:
        Stopped: SIGTERM or Ctrl-C; the state is saved.
    """
    model, optimizer = parts.model, parts.optimizer
    state = Progress(_begun(optimizer))
    if checkpoint.is_file():
        restore(checkpoint, parts, state, team)
    else:
        torch.manual_seed(settings.seed + 1_000_003 * team.rank)
    last = settings.stop_after or settings.epochs
    saved = time.monotonic()

    def pause(signum: int) -> None:
        nonlocal saved
        due = time.monotonic() - saved > settings.checkpoint_seconds
        stop, due = team.any(bool(signum), due and team.first)
        if stop or due:
            save(checkpoint, parts, state, team, settings.on_error)
            saved = time.monotonic()
        if stop:
            epoch, steps = len(state.history) + 1, state.epoch["steps"]
            raise Stopped(f"saved in epoch {epoch} after {steps} steps", signum or signal.SIGTERM)

    # where validation may end the training sooner, a share of the epochs would claim too little
    total = None if val_steps and settings.patience < last else last
    progress = progress_bar(total=total, initial=len(state.history), desc="epochs", unit="epoch")
    with progress, noted_signals() as signal_number:
        while not _finished(state, last, settings.patience, val_steps is not None):
            epoch = state.epoch
            model.train()
            for loss, weight in train_steps(len(state.history) + 1, epoch["steps"]):
                epoch["loss"] += loss
                epoch["weight"] += weight
                epoch["steps"] += 1
                pause(signal_number())
            row = {"epoch": len(state.history) + 1, "lr": epoch["lr"]}
            row["train_loss"] = _mean(team, [(epoch["loss"], epoch["weight"])])
            row["val_loss"] = None
            if val_steps:
                model.eval()
                with torch.no_grad():
                    row["val_loss"] = _mean(team, _until(signal_number, val_steps()))
                pause(signal_number())
            state.history.append(row)
            state.epoch = _begun(optimizer)
            if not val_steps or row["val_loss"] < state.best_loss:
                state.best_epoch = row["epoch"]
                state.best_loss = row["val_loss"] if val_steps else float("inf")
                state.best = copy.deepcopy(model.state_dict()) if val_steps else None
            if on_epoch and team.first:
                on_epoch(row)
            if val_steps:
                progress.set_description(placed(_standing(state, settings.patience)), refresh=False)
            progress.set_postfix(train=row["train_loss"], val=row["val_loss"], refresh=False)
            progress.update()
    save(checkpoint, parts, state, team, settings.on_error)
    return Result(state.best or model.state_dict(), state.best_epoch, state.history)


def _standing(state: Progress, patience: int) -> str:
    """``epoch 12, best 8 (patience 4/10)``."""
    done = len(state.history)
    return f"epoch {done}, best {state.best_epoch} (patience {done - state.best_epoch}/{patience})"


def _begun(optimizer) -> dict:
    """An epoch of which no step is done."""
    return {"steps": 0, "loss": 0.0, "weight": 0.0, "lr": optimizer.param_groups[0]["lr"]}


def _until(signal_number: Callable[[], int], steps: Steps) -> Steps:
    """Steps until a signal comes; what they add up to is then thrown away."""
    for step in steps:
        yield step
        if signal_number():
            return


def _mean(team: Team, steps: Steps) -> float:
    loss = weight = 0.0
    for added, slides in steps:
        loss, weight = loss + added, weight + slides
    loss, weight = team.total(loss, weight)
    if not weight:
        raise InputError("no slide of an epoch could be read; extract the slides again")
    return loss / weight


def _finished(state: Progress, last: int, patience: int, validated: bool) -> bool:
    done = len(state.history)
    return done >= last or (validated and done - state.best_epoch >= patience)


def _constant(step: int) -> float:
    return 1.0


def _warm_up_then_linear(steps: int) -> Callable[[int], float]:
    warm_up = int(WARM_UP * steps)

    def factor(step: int) -> float:
        if step < warm_up:
            return step / warm_up
        return max(0.0, (steps - step) / max(1, steps - warm_up))

    return factor
