"""Models that draw expression from noise: their prediction is the mean of a few draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

import torch

from histokit.models.base import Batch, Model
from histokit.models.outputs import Direct


@dataclasses.dataclass(frozen=True)
class Draws:
    """What is kept of the draws behind a prediction, on the CPU and of its type.

    Attributes:
        first: (N, G), one of them.
        spread: (N, G), their standard deviation; S - 1 in the denominator, NaN of a single draw.
    """

    first: torch.Tensor
    spread: torch.Tensor


class Generative(Model):
    """Predicts the mean over draws, whose noise comes from a seed of its own.

    Noise never comes from torch's global generator outside of training, and each slide begins with
    the seed anew, row by row of its spots: a slide gets the same draws alone and among others, and
    the first draws of many are those of few.

    Args:
        num_genes: G, outputs.
        samples: draws of a slide; their mean is the prediction.
        sample_seed: seed of the draws.
    """

    def __init__(self, num_genes: int, samples: int, sample_seed: int):
        super().__init__()
        self.samples, self.sample_seed = samples, sample_seed
        self.head = Direct(num_genes)
        self._last: tuple[torch.Tensor, Draws] | None = None

    def draws(self, slide: Batch, random: torch.Generator) -> Iterator[torch.Tensor]:
        """Draws (N, G) of one slide without end; all their noise is of ``random``."""
        raise NotImplementedError

    @property
    def network_calls(self) -> int:
        """Calls of the network behind the prediction of a spot."""
        raise NotImplementedError

    @torch.no_grad()
    def hidden(self, batch: Batch) -> torch.Tensor:
        """(N, D) to (N, G), the mean over draws."""
        found = [self._moments(slide) for slide in slides_of(batch)]
        mean, first, spread = (torch.cat(parts) for parts in zip(*found, strict=True))
        self._last = mean.cpu(), Draws(first.cpu(), spread.cpu())
        return mean

    def behind(self, hidden: torch.Tensor) -> Draws:
        """The draws whose mean ``hidden`` or ``embed`` has just returned.

        They are kept until the next mean, so that they need not be drawn again.

        Args:
            hidden: (N, G), that mean; with it no slide can be given the draws of another.

        Raises:
            RuntimeError: the last mean was another.
        """
        if self._last is None or not torch.equal(self._last[0], hidden.cpu()):
            raise RuntimeError("the draws behind this prediction were not the model's last")
        return self._last[1]

    def _moments(self, slide: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, first draw and standard deviation (N, G); few draws are in memory at a time."""
        random = torch.Generator().manual_seed(self.sample_seed)
        draws = self.draws(slide, random)
        first = mean = next(draws)
        squares = torch.zeros_like(mean)
        for count, draw in enumerate(islice(draws, self.samples - 1), start=2):
            away = draw - mean
            mean = mean + away / count
            squares = squares + away * (draw - mean)
        return mean, first, (squares / (self.samples - 1 or torch.nan)).sqrt()


def slides_of(batch: Batch) -> Iterator[Batch]:
    """The slides of a batch, one after another."""
    sizes = batch.sizes()
    coords = [None] * len(sizes) if batch.coords is None else batch.coords.split(sizes)
    parts = zip(batch.features.split(sizes), batch.cancers.split(1), coords, strict=True)
    for features, cancer, places in parts:
        yield Batch(features, cancer, None, places)


def standard_normal(
    shape: tuple[int, ...], random: torch.Generator | None, like: torch.Tensor
) -> torch.Tensor:
    """N(0, 1) of a shape, drawn on the CPU so that every device gets the same."""
    return torch.randn(shape, generator=random).to(like)
