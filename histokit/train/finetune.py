"""Fine-tuning of an image encoder with ST-Net's head (He et al. 2020), one fold at a time.

Patches are augmented as ST-Net's are. Some slides' patches are in memory at a time, as uint8, and
are shuffled together: the authors shuffle those of all slides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import nn

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.genes import normalize
from histokit.models.stnet import STNet
from histokit.train.checkpoints import Parts
from histokit.train.trainer import MOMENTUM, Result, Settings, run_epochs


class Tuned(nn.Module):
    """An encoder's network and the linear head on its embeddings.

    Args:
        network: the network, in training with all of its weights.
        embed: patches uint8 (B, size, size, 3) to embeddings (B, D) by that network.
        head: the head on them.
    """

    def __init__(self, network: nn.Module, embed: Callable, head: STNet):
        super().__init__()
        self.network, self.head, self._embed = network.requires_grad_(), head, embed

    def forward(self, patches: np.ndarray) -> torch.Tensor:
        """Patches uint8 (B, size, size, 3) to expression (B, G)."""
        return self.head.head(self._embed(patches))


@dataclasses.dataclass(frozen=True)
class PatchedSlide:
    """A slide's patches with what they are taught.

    Attributes:
        patches: uint8 (N, size, size, 3).
        target: (N, G) CSR float32.
        measured: (G,) bool, the genes that the slide measured.
    """

    patches: np.ndarray
    target: sp.csr_matrix
    measured: np.ndarray


@dataclasses.dataclass(frozen=True)
class PatchBatch:
    """Some patches of one or several slides.

    Attributes:
        patches: uint8 (B, size, size, 3).
        target: (B, G) float32.
        measured: (B, G) bool, the genes that the slide of each patch measured.
    """

    patches: np.ndarray
    target: torch.Tensor
    measured: torch.Tensor


@dataclasses.dataclass(frozen=True)
class PatchSource:
    """Reads patches and targets of slides, row by row the same spots.

    Attributes:
        cohort: the extraction that the patches belong to.
        genes: gene, gene_id, symbol of the G outputs.
        transform: scale of the targets.
        patches: the id of a slide to its patches uint8 (N, size, size, 3), in the order of the
            spots as the cohort has them.
    """

    cohort: Cohort
    genes: pd.DataFrame
    transform: str
    patches: Callable[[str], np.ndarray]

    def read(self, slide_id: str) -> PatchedSlide:
        """One slide.

        Raises:
            InputError: a file is missing or damaged.
        """
        slide = self.cohort.load(slide_id, self.genes)
        target = normalize(slide.counts, slide.library_size, self.transform)
        return PatchedSlide(self.patches(slide_id), target, slide.measured)

    def batches(
        self, slide_ids: Sequence[str], together: int, size: int, shuffle: torch.Generator
    ) -> Iterator[PatchBatch]:
        """Every patch once, in batches; ``together`` slides are in memory and mixed at a time."""
        order = [slide_ids[i] for i in torch.randperm(len(slide_ids), generator=shuffle)]
        for start in range(0, len(order), together):
            slides = [self.read(slide_id) for slide_id in order[start : start + together]]
            rows = [(slide, row) for slide in slides for row in range(len(slide.patches))]
            places = torch.randperm(len(rows), generator=shuffle).tolist()
            for first in range(0, len(places), size):
                yield _batch([rows[i] for i in places[first : first + size]])


def _batch(rows: Sequence[tuple[PatchedSlide, int]]) -> PatchBatch:
    target = sp.vstack([slide.target[row] for slide, row in rows]).toarray()
    return PatchBatch(
        np.stack([slide.patches[row] for slide, row in rows]),
        torch.from_numpy(target),
        torch.from_numpy(np.stack([slide.measured for slide, _ in rows])),
    )


def augment(patches: np.ndarray) -> np.ndarray:
    """Mirror and turn patches uint8 (B, size, size, 3): three changes, each with probability .5.

    ST-Net's: a horizontal and a vertical mirror and a turn by 90 degrees, drawn for each patch from
    torch's global generator.
    """
    found = torch.from_numpy(patches)
    across, down, turned = (torch.rand(3, len(patches)) < 0.5)[..., None, None, None]
    found = torch.where(across, found.flip(2), found)
    found = torch.where(down, found.flip(1), found)
    return torch.where(turned, found.rot90(1, (1, 2)), found).numpy()


def squared_error(predicted: torch.Tensor, batch: PatchBatch) -> torch.Tensor:
    """The mean squared error over all measured entries of a batch; predicted: (B, G)."""
    measured = batch.measured.to(predicted.device)
    wrong = (predicted - batch.target.to(predicted.device)).where(measured, 0)
    return wrong.square().sum() / measured.sum().clamp(min=1)


def tune(
    net: Tuned,
    source: PatchSource,
    train: list[str],
    val: list[str],
    settings: Settings,
    checkpoint: Path,
    batch_size: int = 32,
    together: int = 4,
) -> Result:
    """Train the network and its head; no other slide than these is read.

    With validation slides the epoch is that of their least error, else it is the last. Killed and
    started again, the training ends with the same weights.

    Args:
        net: freshly built.
        source: reads the slides.
        train: training slides.
        val: validation slides; may be empty.
        settings: hyper-parameters; ``stnet_literal`` descends the error summed over the batch by
            SGD with momentum and gradients of any norm, else it is AdamW on the mean. Rates are
            constant, as the authors'.
        checkpoint: file that holds the state between epochs.
        batch_size: patches a step.
        together: slides whose patches are mixed.

    Raises:
        InputError: the loss is no longer finite, or a slide cannot be read.
        Stopped: a signal ended the training, which is saved.
    """
    optimizer = _descent(net, settings)

    def train_steps(epoch: int, done: int) -> Iterator[tuple[float, float]]:
        shuffle = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        batches = source.batches(train, together, batch_size, shuffle)
        for batch in islice(batches, done, None):
            loss = squared_error(net(augment(batch.patches)), batch)
            if not torch.isfinite(loss):
                raise InputError(f"the loss is {loss.item()} in epoch {epoch}; lower --lr")
            optimizer.zero_grad()
            (loss * len(batch.patches) if settings.stnet_literal else loss).backward()
            if not settings.stnet_literal:
                nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
            optimizer.step()
            yield loss.item() * len(batch.patches), len(batch.patches)

    def val_steps() -> Iterator[tuple[float, float]]:
        for slide_id in val:  # each slide counts alike, as in every training
            yield _slide_error(net, source.read(slide_id), batch_size), 1

    return run_epochs(
        Parts(net, optimizer), train_steps, val_steps if val else None, settings, checkpoint
    )


def _descent(net: Tuned, settings: Settings) -> torch.optim.Optimizer:
    decay = {"weight_decay": settings.weight_decay, "fused": True}
    if settings.stnet_literal:
        return torch.optim.SGD(net.parameters(), settings.lr, momentum=MOMENTUM, **decay)
    return torch.optim.AdamW(net.parameters(), settings.lr, **decay)


def _slide_error(net: Tuned, slide: PatchedSlide, batch_size: int) -> float:
    """The mean squared error over a slide's measured entries."""
    total = 0.0
    for start in range(0, len(slide.patches), batch_size):
        rows = range(start, min(start + batch_size, len(slide.patches)))
        batch = _batch([(slide, row) for row in rows])
        total += squared_error(net(batch.patches), batch).item() * len(rows)
    return total / len(slide.patches)
