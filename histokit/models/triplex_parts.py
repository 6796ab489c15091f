"""Parts of TRIPLEX: the array that spots lie on, windows around spots, and the three encoders."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histokit.models.places import array_positions, nearest_spots
from histokit.models.prenorm import Blocks, check_heads, output_layer, slide_blocks
from histokit.ops.gemm import Linear

REACH = 2  # cells to each side of a window of 5 x 5
SIDE = 2 * REACH + 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Figures of the fusion, global and neighbor encoders, in this order.

    Attributes:
        depth: blocks.
        heads: heads of the attention.
        ratio: width inside a block over the width.
        dropout: rate behind the attention and inside the MLP.
    """

    depth: tuple[int, int, int]
    heads: tuple[int, int, int]
    ratio: tuple[int, int, int]
    dropout: tuple[float, float, float]


CONFIGS = {  # the authors', and one for few slides
    "default": Sizes((2, 2, 2), (8, 8, 8), (2, 2, 2), (0.1, 0.1, 0.1)),
    "andersson": Sizes((1, 3, 3), (4, 16, 16), (4, 4, 1), (0.2, 0.1, 0.3)),
    "bryan": Sizes((3, 3, 4), (16, 8, 8), (4, 2, 4), (0.4, 0.1, 0.3)),
    "andrew": Sizes((2, 2, 4), (8, 16, 16), (4, 1, 1), (0.1, 0.1, 0.3)),
    "small": Sizes((1, 1, 1), (4, 4, 4), (2, 2, 2), (0.1, 0.1, 0.1)),
}


def encoder_arguments(config: str, width: int, dropout: float | None) -> list[tuple]:
    """Arguments of the fusion, global and neighbor encoders."""
    sizes, found = CONFIGS[config], []
    names = ("fusion", "global", "neighbor")
    for i, name in enumerate(names):
        check_heads(width, sizes.heads[i], f"the {name} encoder of triplex")
        rate = sizes.dropout[i] if dropout is None else dropout
        found.append((width, width * sizes.ratio[i], rate, sizes.heads[i], sizes.depth[i]))
    return found


class Array:
    """The occupied cells of one slide's array, from the (N, 2) centers of its spots.

    Spots less than about a quarter of the usual distance apart share a cell, which then has the
    mean of their features. Nothing here depends on another slide, or on where the slide begins.

    Attributes:
        owner: (N,) int64, the cell of each spot, from 0 to C - 1.
        spots: (C,) int64, how many spots a cell has.
    """

    def __init__(self, coords: Tensor):
        column, row = array_positions(coords).unbind(1)
        self._stride = int(column.max()) + SIDE  # wide enough that no window reaches the next row
        keys = row * self._stride + column
        self._keys, self.owner, self.spots = keys.unique(return_inverse=True, return_counts=True)

    def around(self, reach: int) -> Tensor:
        """(C, (2 reach + 1)^2) int64: cells around each, row by row; -1 where no spot lies."""
        steps = torch.arange(-reach, reach + 1, device=self._keys.device)
        shifts = (steps[:, None] * self._stride + steps).flatten()
        wanted = self._keys[:, None] + shifts
        found = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        return torch.where(self._keys[found] == wanted, found, -1)

    def means(self, x: Tensor) -> Tensor:
        """Spots (N, e) to cells (C, e)."""
        sums = x.new_zeros(len(self.spots), x.shape[1]).index_add(0, self.owner, x)
        return sums / self.spots[:, None]


@dataclasses.dataclass(frozen=True)
class Window:
    """The T tokens around each of n spots.

    Attributes:
        index: (n, T) int64 rows of the features that the window is taken from.
        mask: (n, T) bool: whether there is such a token.
        offsets: (T, T) or (n, T, T) int64: 5 |rows| + |columns| that two tokens lie apart.
    """

    index: Tensor
    mask: Tensor
    offsets: Tensor


class ArrayWindows:
    """The 5 x 5 cells around each spot, of which a hexagonal array has 13; rows are cells.

    Places in the window at which no spot of the slide has a neighbor are left out.
    """

    def __init__(self, array: Array):
        around = array.around(REACH)
        used = (around >= 0).any(0)
        self._cells = around[array.owner][:, used]
        place = torch.arange(SIDE**2, device=around.device)[used]
        row, column = place // SIDE, place % SIDE
        self._offsets = SIDE * (row[:, None] - row).abs() + (column[:, None] - column).abs()

    def of(self, rows: Tensor) -> Window:
        """The windows of some spots."""
        cells = self._cells[rows]
        return Window(cells.clamp(min=0), cells >= 0, self._offsets)


class NearestWindows:
    """Each spot, the 24 nearest others and those as near as the last; rows are spots.

    How far apart two of them lie along each axis is counted in usual distances to the nearest spot,
    up to the 4 of a window of 5 x 5.
    """

    def __init__(self, coords: Tensor):
        near, there = nearest_spots(coords, SIDE**2 - 1)
        itself = torch.arange(len(coords), device=coords.device)[:, None]
        self._coords = coords
        self._index = torch.cat([itself, near], 1)
        self._mask = torch.cat([torch.ones_like(itself, dtype=torch.bool), there], 1)
        first = (coords[self._index[:, 1:2]] - coords[:, None]).norm(dim=2)
        first = first[first > 0]  # spots at one place say nothing of the distance
        self._pitch = first.median() if len(first) else coords.new_ones(())

    def of(self, rows: Tensor) -> Window:
        """The windows of some spots; the distances within those of all would fill the memory."""
        index = self._index[rows]
        points = self._coords[index]  # (n, T, 2)
        apart = (points[:, :, None] - points[:, None]).abs() / self._pitch
        # a quarter more before rounding down, so that half steps of a hexagonal array never tip
        apart = (apart + 0.25).long().clamp(max=SIDE - 1)
        return Window(index, self._mask[rows], SIDE * apart[..., 1] + apart[..., 0])


class WindowAttention(nn.Module):
    """Attention within windows, with a learnt bias for each head and offset of two tokens."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_qkv = Linear(width, 3 * width, bias=False)
        self.to_out = output_layer(width, dropout)
        self.attention_biases = nn.Parameter(torch.zeros(heads, SIDE**2))

    def forward(self, qkv: Tensor, window: Window) -> Tensor:
        """Projected tokens (n, T, 3 width) to (n, T, width)."""
        rows, tokens = window.index.shape
        q, k, v = qkv.view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # looked up in each pass: a bias kept from an earlier one outlives the weights it came from
        bias = F.embedding(window.offsets, self.attention_biases.T).movedim(-1, -3)
        scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
        weights = scores.masked_fill(~window.mask[:, None, None], -torch.inf).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class NeighborEncoder(nn.Module):
    """The tokens of windows attend to each other; one that is not there is seen by none."""

    def __init__(self, width: int, inner: int, dropout: float, heads: int, depth: int):
        super().__init__()
        attentions = (WindowAttention(width, heads, dropout) for _ in range(depth))
        self.layer = Blocks(width, inner, dropout, attentions)
        self.norm = nn.LayerNorm(width)

    def begin(self, x: Tensor) -> Tensor:
        """Features (U, width) with their first queries, keys and values: (U, 4 width).

        These are the same in every window that a feature is in, so they are made once.
        """
        attention = self.layer.layers[0][0]
        return torch.cat([x, attention.fn.to_qkv(attention.norm(x))], 1)

    def forward(self, begun: Tensor, window: Window) -> Tensor:
        """What ``begin`` made, (U, 4 width), to the tokens of n windows (n, T, width)."""
        width = begun.shape[1] // 4
        x, qkv = F.embedding(window.index, begun).split([width, 3 * width], 2)
        for i, (attention, mlp) in enumerate(self.layer.layers):
            if i:
                qkv = attention.fn.to_qkv(attention.norm(x))
            x = x + attention.fn(qkv, window)
            x = x + mlp(x)
        return self.norm(x)


class PositionalConvolution(nn.Module):
    """A 3 x 3 convolution of each channel over the array, read back at the spots; no residual.

    Only occupied cells are computed, empty ones count as zero: what a dense grid gives, whose size
    would grow with the square of N where coordinates are irregular.
    """

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, array: Array) -> Tensor:
        """Spots (N, width) of one slide to (N, width)."""
        cells = F.pad(array.means(x), (0, 0, 0, 1))  # the last row is of cells that are empty
        kernel = self.proj.weight.flatten(1)  # (width, 9), row by row
        out = self.proj.bias
        for at, weight in zip(array.around(1).T, kernel.T, strict=True):
            out = out + cells[at] * weight
        return out[array.owner]


class GlobalEncoder(nn.Module):
    """All spots of a slide attend to each other; after the first block they learn their places."""

    def __init__(self, width: int, inner: int, dropout: float, heads: int, depth: int):
        super().__init__()
        self.layer1 = slide_blocks(width, inner, dropout, heads, 1)
        self.pos_layer = PositionalConvolution(width)
        self.layer2 = slide_blocks(width, inner, dropout, heads, depth - 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, array: Array) -> Tensor:
        """(N, width) of one slide to (N, width)."""
        return self.norm(self.layer2(self.pos_layer(self.layer1(x), array)))


class CrossAttention(nn.Module):
    """One query for each spot and a few tokens of its own as keys and values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_kv = Linear(width, 2 * width, bias=False)
        self.to_out = output_layer(width, dropout)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Queries (n, width), tokens (n, T, width) and which exist (n, T) to (n, width).

        q . (K t) is (K^T q) . t, and the sum of V t is V of the sum: projecting a spot's query and
        sum costs a fraction of projecting its 25 tokens.
        """
        key, value = self.to_kv.weight.view(2, self.heads, -1, x.shape[1])
        q = self.to_q(x).view(len(x), self.heads, -1)
        asked = torch.einsum("nhd,hde->nhe", q, key)
        scores = asked @ tokens.mT * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        return self.to_out(torch.einsum("nhe,hde->nhd", weights @ tokens, value).flatten(1))


class FusionEncoder(nn.Module):
    """The global token of a spot asks its target tokens and, by the same weights, its neighbors."""

    def __init__(self, width: int, inner: int, dropout: float, heads: int, depth: int):
        super().__init__()
        attentions = (CrossAttention(width, heads, dropout) for _ in range(depth))
        self.fusion_layer = Blocks(width, inner, dropout, attentions)
        self.norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, views: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Queries (n, width) and, of each view, tokens (n, T, width) and mask, to (n, width)."""
        return self.norm(sum(self._ask(query, *view) for view in views))

    def _ask(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        for attention, mlp in self.fusion_layer.layers:
            # one norm for both sides, as published
            x = x + attention.fn(attention.norm(x), attention.norm(tokens), mask)
            x = x + mlp(x)
        return x
