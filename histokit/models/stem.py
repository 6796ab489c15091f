"""Stem, a diffusion transformer over the genes of one spot at a time.

Rebuilt from the published architecture (Zhu et al. 2025, Diffusion Generative Modeling for
Spatially Resolved Gene Expression Inference from Histology Images); parameters carry the names of
the authors' checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from histokit.core.errors import InputError
from histokit.models.diffusion import sinusoid
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
