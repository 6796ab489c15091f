"""Stem, a diffusion transformer over the genes of one spot at a time.

Rebuilt from the published architecture (Zhu et al. 2025, Diffusion Generative Modeling for
Spatially Resolved Gene Expression Inference from Histology Images); parameters carry the names of
the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Batch, Target
from histokit.models.diffusion import Schedule, sinusoid, variational_bits
from histokit.models.sampling import Generative, slides_of, standard_normal
from histokit.ops.gemm import Linear

HEAD_WIDTH, WAVES = 64, 256


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = Linear(width, 3 * width), Linear(width, width)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


def _modulation(width: int, vectors: int) -> nn.Sequential:
    """The condition to shifts, scales and gates; all zero at the start (adaLN-Zero)."""
    last = Linear(width, vectors * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.SiLU(), last)


def _modulated(h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.attn, self.mlp = _Attention(width, num_heads), _Mlp(width)
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, h: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        vectors = self.adaLN_modulation(condition)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors
        h = h + gate * self.attn(_modulated(h, shift, scale))
        return h + gate_mlp * self.mlp(_modulated(h, shift_mlp, scale_mlp))


class _FinalLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = Linear(width, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, h: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.linear(_modulated(h, *self.adaLN_modulation(condition)[:, None].chunk(2, 2)))


class Stem(nn.Module):
    """Noisy expression of spots, its time and patch features to its noise; genes are tokens.

    Predicts zero before any training. A gene is known by its row of a learned table alone: genes
    and rows in another order give the same in that order.

    Args:
        input_dim: D of the patch features.
        num_genes: G.
        width: of the network; heads are 64 wide, one head where it is narrower.
        num_layers: blocks.

    Raises:
        InputError: a width of more than 64 that 64 does not divide.
    """

    def __init__(
        self, input_dim: int = 1536, num_genes: int = 200, width: int = 384, num_layers: int = 12
    ):
        super().__init__()
        if width > HEAD_WIDTH and width % HEAD_WIDTH:
            raise InputError(
                f"--hidden-dim {width}: stem's heads are {HEAD_WIDTH} wide; choose a multiple of "
                f"{HEAD_WIDTH}, or less for one head"
            )
        self.gene_joint_embed = nn.Module()
        self.gene_joint_embed.gene_name_ebd = nn.Parameter(torch.randn(num_genes, width))
        self.gene_joint_embed.gene_count_ebd = _two_layers(1, width, width)
        self.time_embed = nn.Module()
        self.time_embed.mlp = _two_layers(WAVES, width, width)
        self.label_embed = _two_layers(input_dim, input_dim, width)
        num_heads = max(1, width // HEAD_WIDTH)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.final_layer = _FinalLayer(width)

    def forward(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        label: torch.Tensor,
        genes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise in expression.

        Args:
            x: (n, g) noisy expression.
            time: (n,) step of the full schedule, or one for all.
            label: (n, width), ``label_embed`` of the patch features.
            genes: (G,) bool, which genes the columns of ``x`` are; None for all.

        Returns:
            (n, g, 2): the noise, and where its variance lies between its bounds, -1 to 1.
        """
        names = self.gene_joint_embed.gene_name_ebd
        names = names if genes is None else names[genes]
        h = names + self.gene_joint_embed.gene_count_ebd(x[..., None])
        waves = sinusoid(torch.as_tensor(time, dtype=x.dtype, device=x.device), WAVES)
        condition = self.time_embed.mlp(waves) + label
        for block in self.blocks:
            h = block(h, condition)
        return self.final_layer(h, condition)


def _two_layers(inner: int, hidden: int, outer: int) -> nn.Sequential:
    return nn.Sequential(Linear(inner, hidden), nn.SiLU(), Linear(hidden, outer))


class StemModel(Generative):
    """Stem as a model of a cohort: each spot is generated alone, from its features.

    Trained to tell the noise from noisy expression at a uniform step of 1,000, and its variance,
    whose term of the bound leaves the mean alone: squared error plus bits for each value. The
    weights that are evaluated are a running mean of those of the steps before.

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
        if self.training:
            self.ema.update_parameters(self.network)
        choose = self._drawn if self.training else self._fixed
        losses = []
        for slide, target in zip(slides_of(batch), targets, strict=True):
            rows, step, noise = choose(len(slide.features))
            data = (target.values.to_dense() - self.center)[rows]
            features, step, noise = slide.features[rows], step.to(data.device), noise.to(data)
            losses.append(self._loss(data, features, step, noise, target.measured, autocast))
        return torch.stack(losses).mean()

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
