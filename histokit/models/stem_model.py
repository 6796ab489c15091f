"""Stem as a model of a cohort: its sampling and its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel

from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Batch, Target
from histokit.models.diffusion import Schedule, variational_bits
from histokit.models.sampling import Generative, slides_of, standard_normal
from histokit.models.stem import Stem


class StemModel(Generative):
    """Stem as a model of a cohort: each spot is generated alone, from its features.

    Trained to tell the noise from noisy expression at a uniform step of 1,000, and its variance,
    whose term of the bound leaves the mean alone: squared error plus bits for each value. The
    weights that are evaluated are a running mean of those after each step, the last included.

    The loss is that of the noise, in validation too, where spots, steps and noise are fixed: it is
    no error of expression. Sampling is ancestral.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs.
        hidden_dim: width of the network.
        num_layers: its blocks.
        stem_steps: steps of a draw, spread over the 1,000 (all of them as published).
        stem_batch: spots of a slide in one step of the training, and in one call of the network.
        stem_max_genes: largest panel; genes attend to each other, which costs G x G for each spot.
        stem_ema: share of the running mean that a step leaves as it is.
        stem_ema_warm_up: follow faster at the start: after n steps at most (1 + n) / (10 + n) is
            left. As published the first ten thousand steps hardly move the mean.
        samples: draws whose mean is the prediction (20 as published).
        sample_seed: their seed.

    Raises:
        InputError: a panel of more than ``stem_max_genes``.
    """

    loss_name = "noise MSE and bits over measured genes"

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        hidden_dim: int = 384,
        num_layers: int = 12,
        stem_steps: int = 1000,
        stem_batch: int = 256,
        stem_max_genes: int = 512,
        stem_ema: float = 0.9999,
        stem_ema_warm_up: bool = False,
        samples: int = 20,
        sample_seed: int = 0,
    ):
        if num_genes > stem_max_genes:
            raise InputError(
                f"stem attends from every gene to every other, and the panel has {num_genes:,} "
                f"genes, more than --stem-max-genes {stem_max_genes:,}; name fewer genes with "
                "--panel FILE, or try --panel detected"
            )
        super().__init__(num_genes, samples, sample_seed)
        self.input_dim, self.rows = input_dim, stem_batch
        self.decay, self.warms_up = stem_ema, stem_ema_warm_up
        self.schedule = Schedule.linear()
        self.sampled = self.schedule.respaced(stem_steps)
        self.network = Stem(input_dim, num_genes, hidden_dim, num_layers)
        self.ema = AveragedModel(self.network, avg_fn=self._average).requires_grad_(False)
        self.register_buffer("center", torch.zeros(num_genes))

    @property
    def network_calls(self) -> int:
        """Calls of the network behind the prediction of a spot."""
        return self.samples * len(self.sampled)

    def draws(self, slide: Batch, random: torch.Generator) -> Iterator[torch.Tensor]:
        """Draws (N, G) of one slide without end; all their noise is of ``random``."""
        network = self.ema.module
        labels = network.label_embed(slide.features).split(self.rows)
        shape = (len(slide.features), self.head.out_features)
        while True:
            x = standard_normal(shape, random, slide.features)
            for step in reversed(range(len(self.sampled))):
                time = self.sampled.times[step]
                parts = zip(x.split(self.rows), labels, strict=True)
                told = torch.cat([network(part, time, label) for part, label in parts])
                mean, log_variance = reversal(self.sampled, x, step, told)
                noise = standard_normal(shape, random, x) if step else 0
                x = mean + (0.5 * log_variance).exp() * noise
            yield x + self.center

    def loss(
        self, batch: Batch, targets: Sequence[Target], autocast: torch.dtype | None = None
    ) -> torch.Tensor:
        """Mean over slides of the loss of the noise, over measured genes.

        Genes that a slide did not measure are no tokens there.
        """
        choose = self._drawn if self.training else self._fixed
        losses = []
        for slide, target in zip(slides_of(batch), targets, strict=True):
            rows, step, noise = choose(len(slide.features))
            data = (target.values.to_dense() - self.center)[rows]
            features, step, noise = slide.features[rows], step.to(data.device), noise.to(data)
            losses.append(self._loss(data, features, step, noise, target.measured, autocast))
        return torch.stack(losses).mean()

    def after_step(self) -> None:
        """Take the weights of the step into their running mean."""
        self.ema.update_parameters(self.network)

    def _drawn(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of a step, their steps of the diffusion (n,) and their noise (n, G)."""
        rows = torch.randperm(count)[: self.rows]
        step = torch.randint(len(self.schedule), (len(rows),))
        return rows, step, torch.randn(len(rows), self.head.out_features)

    def _fixed(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same for validation: spots and steps spread evenly, and paired by a fixed seed."""
        random = torch.Generator().manual_seed(self.sample_seed)
        even = (torch.arange(self.rows) + 0.5) / self.rows
        rows, step = (even * count).long(), (even * len(self.schedule)).long()
        noise = torch.randn(self.rows, self.head.out_features, generator=random)
        return rows, step[torch.randperm(self.rows, generator=random)], noise

    def _loss(self, data, features, step, noise, measured, autocast) -> torch.Tensor:
        network = self.network if self.training else self.ema.module
        data, noise = data[:, measured], noise[:, measured]
        noisy = self.schedule.noised(data, step, noise)
        with torch.autocast(data.device.type, autocast, enabled=autocast is not None):
            told = network(noisy, step, network.label_embed(features), measured)
        told = told.float() if autocast else told
        frozen = torch.stack([told[..., 0].detach(), told[..., 1]], dim=2)
        mean, log_variance = reversal(self.schedule, noisy, step, frozen)
        bits = variational_bits(self.schedule, data, noisy, step, mean, log_variance)
        return F.mse_loss(told[..., 0], noise) + bits.mean()

    def _average(self, mean, now, count) -> torch.Tensor:
        """The running mean after a step."""
        left = self.decay
        if self.warms_up:  # as TensorFlow's moving averages
            left = min(left, float((1 + count) / (10 + count)))
        return mean.lerp(now, 1 - left)

    def start_at(self, mean: torch.Tensor) -> None:
        """Generate deviations from the training mean (G,) rather than expression itself.

        An untrained Stem does not predict that mean: what it draws is noise.
        """
        self.center.copy_(mean)

    @classmethod
    def from_official(cls, path: str | Path) -> StemModel:
        """Load the running mean of an authors' checkpoint, read without unpickling code.

        A state dict, or a training checkpoint that holds one as ``ema``; every size is read from
        the tensors, and everything else is as published. In evaluation mode.

        Raises:
            InputError: no such file, or tensors that are not those of the published architecture.
        """
        state = read_state_dict(path, ("ema", "model"))
        try:
            num_genes, width = state["gene_joint_embed.gene_name_ebd"].shape
            _, input_dim = state["label_embed.0.weight"].shape
        except (KeyError, ValueError) as error:
            with torch.device("meta"):
                published = Stem()
            raise InputError(
                f"{path} is not a checkpoint of Stem: {misfit(published, state)}"
            ) from error
        layers = {key.split(".")[1] for key in state if key.startswith("blocks.")}
        model = cls(input_dim, num_genes, width, len(layers), stem_max_genes=num_genes)
        for network in (model.network, model.ema.module):
            load_weights(network, state, Path(path))
        return model.eval()


def reversal(
    schedule: Schedule, noisy: torch.Tensor, step, told: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log variance (n, G) of a step's reversal, of what the network tells (n, G, 2)."""
    data = schedule.data_from(noisy, step, told[..., 0])
    mean = schedule.posterior_mean(data, noisy, step)
    return mean, schedule.log_variance(told[..., 1], step)
