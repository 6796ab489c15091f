"""Pre-norm transformer blocks under the parameter names that HisToGene and TRIPLEX share."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.ops import dispatch
from histokit.ops.gemm import Linear


def check_heads(width: int, heads: int, what: str) -> None:
    """Raise InputError unless ``heads`` divide ``width``; ``what`` names the attention."""
    if width % heads:
        raise InputError(
            f"{heads} heads of {what} do not divide --hidden-dim {width}; choose a multiple"
        )


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of the spots of one slide to each other, (h, N, d) each, to (h, N, d)."""
    if q.device.type == "cpu" and dispatch.kernels_serve("distance_attention", q):
        # distances that weigh nothing: the kernel is faster there than torch's attention
        nowhere, flat = q.new_zeros(q.shape[1], 2), q.new_zeros(q.shape[0])
        return ops.distance_attention(q, k, v, nowhere, flat)
    batch = (t[None] for t in (q, k, v))  # without it torch forms all N^2 scores on the CPU
    return F.scaled_dot_product_attention(*batch)[0]


class PreNorm(nn.Module):
    """A norm and the attention or MLP that follows it."""

    def __init__(self, width: int, fn: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(width), fn

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.fn(self.norm(x))


class FeedForward(nn.Module):
    """Linear, GELU, linear, with dropout behind both."""

    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            Linear(width, inner),
            nn.GELU(),
            nn.Dropout(dropout),
            Linear(inner, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return self.net(x)


def output_layer(width: int, dropout: float) -> nn.Sequential:
    """What follows an attention; there is no dropout on the attention weights themselves."""
    return nn.Sequential(Linear(width, width), nn.Dropout(dropout))


class SlideAttention(nn.Module):
    """All spots of a slide attend to each other; rows of ``to_qkv`` are queries, keys, values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qkv = Linear(width, 3 * width, bias=False)
        self.to_out = output_layer(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) of one slide to (N, width)."""
        q, k, v = self.to_qkv(x).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        return self.to_out(attend(q, k, v).transpose(0, 1).reshape(x.shape))


class Blocks(nn.Module):
    """``x + attention(x)``, then ``x + MLP(x)``, once for each attention that is given."""

    def __init__(self, width: int, inner: int, dropout: float, attentions: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [PreNorm(width, attention), PreNorm(width, FeedForward(width, inner, dropout))]
            )
            for attention in attentions
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) of one slide to (N, width)."""
        for attention, mlp in self.layers:
            x = x + attention(x)
            x = x + mlp(x)
        return x


def slide_blocks(width: int, inner: int, dropout: float, heads: int, depth: int) -> Blocks:
    """``depth`` blocks in which all spots of a slide attend to each other."""
    attentions = (SlideAttention(width, heads, dropout) for _ in range(depth))
    return Blocks(width, inner, dropout, attentions)
