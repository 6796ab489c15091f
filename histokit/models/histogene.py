"""HisToGene on patch features: a vision transformer over the spots of a section.

Rebuilt from the published architecture (Pang et al., bioRxiv 2021.11.28.470212); parameters carry
the names of the authors' checkpoint.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from histokit.core.errors import InputError
from histokit.models.base import Model
from histokit.models.places import array_positions
from histokit.models.prenorm import check_heads, slide_blocks
from histokit.ops.gemm import Linear

STARTS = ("random", "zero")


class HisToGene(Model):
    """A learnt vector for the column and row of each spot, then attention over the whole slide.

    The published network flattens 112 x 112 pixels into 37,632 inputs; here the features of a patch
    are the input, so published figures are not comparable. Blocks are pre-norm, the fused
    projection of queries, keys and values has no bias, and the attention weights no dropout.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs.
        hidden_dim: width of the transformer.
        num_layers: its blocks (8 on her2st, 4 in the authors' README).
        feedforward_dim: width inside a block.
        dropout: rate behind the positions, the attention and inside the MLP.
        histogene_heads: heads of the attention; they divide ``hidden_dim``.
        histogene_tables: columns, and rows, of the array that have a vector of their own (64 as
            published); spots that lie farther out share the last one, of which a warning tells.
        histogene_start: ``random`` vectors as published, where a column that no training slide has
            stays random, or ``zero``, where it adds nothing.

    Raises:
        InputError: heads that do not divide the width, or an unknown start.
    """

    uses_coords = True

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        hidden_dim: int = 1024,
        num_layers: int = 4,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        histogene_heads: int = 16,
        histogene_tables: int = 300,
        histogene_start: str = "random",
    ):
        super().__init__()
        check_heads(hidden_dim, histogene_heads, "histogene")
        if histogene_start not in STARTS:
            raise InputError(
                f"--histogene-start must be one of {', '.join(STARTS)}, got {histogene_start!r}"
            )
        self.input_dim = input_dim
        self.patch_embedding = Linear(input_dim, hidden_dim)
        self.x_embed = nn.Embedding(histogene_tables, hidden_dim)
        self.y_embed = nn.Embedding(histogene_tables, hidden_dim)
        if histogene_start == "zero":
            nn.init.zeros_(self.x_embed.weight)
            nn.init.zeros_(self.y_embed.weight)
        self.dropout = nn.Dropout(dropout)
        self.vit = nn.Module()
        self.vit.transformer = slide_blocks(
            hidden_dim, feedforward_dim, dropout, histogene_heads, num_layers
        )
        self.gene_head = nn.Sequential(nn.LayerNorm(hidden_dim), Linear(hidden_dim, num_genes))

    @property
    def head(self) -> nn.Linear:
        """The linear layer over genes."""
        return self.gene_head[1]

    def hidden(self, batch):
        """(N, D) to (N, hidden_dim); slides one by one."""
        parts = (part.split(batch.sizes()) for part in (batch.features, batch.coords))
        return torch.cat([self._encode(*slide) for slide in zip(*parts, strict=True)])

    def _encode(self, features: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        column, row = self._positions(coords).unbind(1)
        h = self.patch_embedding(features) + self.x_embed(column) + self.y_embed(row)
        return self.gene_head[0](self.vit.transformer(self.dropout(h)))

    def _positions(self, coords: torch.Tensor) -> torch.Tensor:
        """Column and row of each spot of a slide, (N, 2) int64, within the tables."""
        positions, last = array_positions(coords), self.x_embed.num_embeddings - 1
        outside = int((positions > last).any(1).sum())
        if outside:  # Python shows each such warning once
            warnings.warn(
                f"{outside} of {len(coords)} spots of a slide lie beyond column or row {last} of "
                "the array and share its vector; train with a larger --histogene-tables",
                stacklevel=2,
            )
        return positions.clamp(max=last)
