"""STFlow, flow matching over a slide's expression with attention to the nearest spots.

Rebuilt from the published architecture (Huang et al. 2025, Scalable Generation of Spatial
Transcriptomics from Histology Images via Whole-Slide Flow Matching); parameters carry the names of
the authors' state dicts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from histokit.core.errors import InputError
from histokit.models.diffusion import sinusoid
from histokit.models.neighborhoods import Neighborhoods
from histokit.ops.gemm import Linear, linear

HEADS, WAVES = 4, 256
PROJECTED = 50  # genes of the published attention, and columns of a larger panel's projection


class SwiGLU(nn.Module):
    """A gated MLP: of ``fc1``'s columns the first half gates the second, before a norm."""

    def __init__(self, inner: int, hidden: int, outer: int, dropout: float):
        super().__init__()
        self.fc1 = Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden // 2)
        self.fc2 = Linear(hidden // 2, outer)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inner) to (..., outer)."""
        return self.gated(self.fc1(x))

    def gated(self, first: torch.Tensor) -> torch.Tensor:
        """What follows ``fc1``."""
        gate, value = first.chunk(2, dim=-1)
        return self.dropout(self.fc2(self.norm(self.dropout(F.silu(gate) * value))))


class _Attention(nn.Module):
    def __init__(self, width: int, compared: int, dropout: float):
        super().__init__()
        size = width // HEADS
        self.sizes = (size, size, size, compared)
        self.layernorm_qkv = nn.Sequential(nn.LayerNorm(width), Linear(width, 3 * width))
        self.mlp_attn = SwiGLU(sum(self.sizes), width, 1, dropout)
        self.edge_trans = SwiGLU(3, width, width, dropout)
        self.W_output = SwiGLU(2 * width, width, width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h, y, near: Neighborhoods, edges) -> torch.Tensor:
        index = near.index
        q, k, v = self.layernorm_qkv(h).view(len(h), 3, HEADS, -1).unbind(1)  # (N, heads, d)
        edges = edges.unflatten(2, (HEADS, -1))  # (N, K, heads, d)
        # The first layer of the logits on [q_i, k_j, edge, y_j - y_i], each of its parts by itself:
        # for a spot once and not for each neighbor and head.
        first = self.mlp_attn.fc1
        for_q, for_k, for_edge, for_y = first.weight.split(self.sizes, dim=1)
        level = linear(y, for_y)[:, None]
        own = linear(q, for_q, first.bias) - level
        other = linear(k, for_k) + level
        logits = self.mlp_attn.gated(own[:, None] + other[index] + linear(edges, for_edge))
        logits = logits.masked_fill(~near.there[:, :, None, None], -torch.inf)
        share = self.dropout(logits.softmax(dim=1))  # (N, K, heads, 1)
        context = [(share * v[index]).sum(1).flatten(1), (share * edges).sum(1).flatten(1)]
        return self.W_output(torch.cat(context, dim=1))


class _Block(nn.Module):
    def __init__(self, width, num_genes, compared, dropout, output_dropout):
        super().__init__()
        self.attn = _Attention(width, compared, dropout)
        self.mlp = SwiGLU(width, 4 * width, width, dropout)
        self.gene_updater = nn.Module()
        self.gene_updater.output = nn.Sequential(
            Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Dropout(dropout),
            Linear(width, num_genes),
            nn.Dropout(dropout if output_dropout else 0.0),
        )

    def forward(self, h, y, near, edges) -> tuple[torch.Tensor, torch.Tensor]:
        h = h + self.attn(h, y, near, edges)
        h = h + self.mlp(h)
        return h, self.gene_updater.output(h)


class STFlow(nn.Module):
    """Patch features, places, noisy expression and its time to expression.

    Args:
        input_dim: D of the patch features.
        num_genes: G.
        width: of the network, a multiple of its 4 heads.
        num_layers: blocks; the prediction is the mean of what each of them predicts.
        dropout: rate on attention weights and in the MLPs.
        output_dropout: also drop predicted genes in training, as published.
        project_over: panels of more genes enter the attention as 50 learned sums of genes. As
            published the difference of two spots in every gene does, beside 96 other columns.

    Raises:
        InputError: heads that do not divide the width.
    """

    def __init__(
        self,
        input_dim: int = 1024,
        num_genes: int = 50,
        width: int = 128,
        num_layers: int = 4,
        dropout: float = 0.2,
        output_dropout: bool = True,
        project_over: int = 256,
    ):
        super().__init__()
        if width % HEADS:
            raise InputError(
                f"--hidden-dim {width}: the {HEADS} heads of stflow do not divide it; choose a "
                f"multiple of {HEADS}"
            )
        projects = num_genes > project_over
        compared = PROJECTED if projects else num_genes
        self.image_transform = Linear(input_dim, width)
        self.fourier_proj = nn.Module()
        self.fourier_proj.mlp = nn.Sequential(Linear(WAVES, width), nn.SiLU(), Linear(width, width))
        self.backbone = nn.Module()
        self.backbone.blks = nn.ModuleList(
            _Block(width, num_genes, compared, dropout, output_dropout) for _ in range(num_layers)
        )
        self.projection = Linear(num_genes, compared, bias=False) if projects else nn.Identity()

    def edges(self, near: Neighborhoods) -> list[torch.Tensor]:
        """What each block makes of the places of neighbors, (N, K, width): the mean over frames."""
        return [block.attn.edge_trans(near.frames).mean(1) for block in self.backbone.blks]

    def forward(
        self,
        features: torch.Tensor,
        near: Neighborhoods,
        edges: Sequence[torch.Tensor],
        y: torch.Tensor,
        time: float | torch.Tensor,
    ) -> torch.Tensor:
        """Predict the expression at the end of the flow.

        Args:
            features: (N, D) of one slide's spots.
            near: the neighbors of each spot.
            edges: as ``edges`` returns them.
            y: (N, G) expression at ``time``.
            time: between 0, the prior, and 1, the data.

        Returns:
            (N, G).
        """
        waves = sinusoid(torch.as_tensor(time, dtype=y.dtype, device=y.device), WAVES)
        h = self.image_transform(features) + self.fourier_proj.mlp(waves)
        predicted = []
        for block, places in zip(self.backbone.blks, edges, strict=True):
            h, y = block(h, self.projection(y), near, places)
            predicted.append(y)
        return torch.stack(predicted).mean(0)
