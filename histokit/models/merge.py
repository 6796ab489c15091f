"""MERGE's second stage on frozen patch features: graph attention with hubs.

CVPR 2025 (arXiv 2412.02601). Parameters carry the names of the authors' checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from histokit.core.errors import InputError
from histokit.models.base import Model
from histokit.models.hubs import Graph, hub_graph
from histokit.ops.gemm import Linear, linear

WIDTHS, HEADS = "448,384,256", 8  # of the authors


class Merge(Model):
    """Graph attention over the spots of a slide and its hubs.

    The graph of a slide is ``hub_graph``. Three layers of graph attention, each with ReLU and
    normalization over the slide, and a fourth with one head over genes. A training step drops
    edges, the same ones in all layers and never a spot's edge to itself. The last layer is linear
    in what it gathers, so that ``hidden`` is what it gathers and ``head`` its weight and bias.

    What differs from the authors: features stay as they were extracted; targets are neither
    smoothed nor scaled; both coordinates make neighbors (theirs are by the column alone), and all
    that are as near as the eighth are; every hub is linked to the others (of theirs, some links go
    to spots that are no hubs); and k-means starts once, by a fixed seed (theirs takes the best of
    ten).

    Args:
        input_dim: D, dimension of the patch features (256 in the paper).
        num_genes: G, outputs (250 in the paper).
        dropout: rate of dropped edges (0.2).
        merge_widths: widths of a head in each layer but the last, separated by commas.
        merge_heads: heads of these layers (8).
        merge_clusters: clusters by place, and as many by features; each has a hub (5). 0: no hubs.

    Raises:
        InputError: widths that are not numbers of 1 or more.
    """

    uses_coords = True

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        dropout: float = 0.2,
        merge_widths: str = WIDTHS,
        merge_heads: int = HEADS,
        merge_clusters: int = 5,
    ):
        super().__init__()
        widths = _parse(merge_widths)
        self.input_dim, self.dropout, self.clusters = input_dim, dropout, merge_clusters
        self.num_layers = len(widths)
        for i, width in enumerate(widths, 1):
            self.add_module(f"nn{i}", GraphAttention(input_dim, width, merge_heads))
            input_dim = width * merge_heads
            self.add_module(f"layer_norm{i}", SlideNorm(input_dim))
        self._last = f"nn{len(widths) + 1}"
        self.add_module(self._last, GraphAttention(input_dim, num_genes, 1))

    @property
    def head(self) -> GeneLayer:
        """The last layer's weight and bias."""
        return GeneLayer(self.get_submodule(self._last))

    def start_at(self, mean):
        """The last layer at zero weights and the training mean (G,) of each gene."""
        nn.init.zeros_(self.head.weight)
        self.head.bias.data.copy_(mean)

    def hidden(self, batch):
        """(N, D) to (N, heads * width), gathered by the last layer's attention."""
        sizes = batch.sizes()
        slides = zip(batch.features.split(sizes), batch.coords.split(sizes), strict=True)
        return torch.cat([self._slide(*slide) for slide in slides])

    def _slide(self, h: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        graph = hub_graph(h, coords, self.clusters)
        if self.training and self.dropout:
            graph = graph.drop(self.dropout)
        for i in range(1, self.num_layers + 1):
            attended = self.get_submodule(f"nn{i}")(h, graph).relu()
            h = self.get_submodule(f"layer_norm{i}")(attended)
        return self.get_submodule(self._last).gather(h, graph)


def _parse(widths: str) -> list[int]:
    parts = widths.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise InputError(
            f"--merge-widths must be whole numbers of at least 1, separated by commas as in "
            f"{WIDTHS}, got {widths!r}"
        )
    return [int(part) for part in parts]


class GraphAttention(nn.Module):
    """Graph attention (Velickovic et al., ICLR 2018), edge by edge.

    A spot i gathers W h_j over its neighbors j and itself, weighted by the softmax over j of
    LeakyReLU(a_src . W h_j + a_dst . W h_i), for each head by itself; the heads side by side.
    """

    def __init__(self, input_dim: int, width: int, heads: int):
        super().__init__()
        self.lin = Linear(input_dim, heads * width, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, width))
        self.att_dst = nn.Parameter(torch.empty(1, heads, width))
        self.bias = nn.Parameter(torch.zeros(heads * width))
        for parameter in (self.lin.weight, self.att_src, self.att_dst):
            bound = (6 / sum(parameter.shape[-2:])) ** 0.5  # Glorot's
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, h: torch.Tensor, graph: Graph) -> torch.Tensor:
        """(N, D) to (N, heads * width)."""
        projected = self.lin(h)
        with torch.autocast(h.device.type, enabled=False):
            z = projected.float() if projected.dtype.itemsize < 4 else projected
            by_head = z.view(len(h), *self.att_src.shape[1:])
            source, target = ((by_head * a).sum(2) for a in (self.att_src, self.att_dst))
            return _Gather.apply(graph.softmax(source, target), z, graph) + self.bias

    def gather(self, h: torch.Tensor, graph: Graph) -> torch.Tensor:
        """(N, D) to (N, D): what a layer of one head gathers, before its weight and bias."""
        with torch.autocast(h.device.type, enabled=False):
            source, target = (
                h @ (a[0, 0] @ self.lin.weight)[:, None] for a in (self.att_src, self.att_dst)
            )
            return _Gather.apply(graph.softmax(source, target), h, graph)


class SlideNorm(nn.Module):
    """Mean 0 and deviation 1 over all spots and dimensions of a slide, then a scale and a shift."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(N, width) to (N, width)."""
        h = h - h.mean()
        return h / (h.square().mean().sqrt() + self.eps) * self.weight + self.bias


class GeneLayer(nn.Module):
    """Weight (G, d) and bias (G,) of a layer of graph attention, without its attention."""

    def __init__(self, layer: GraphAttention):
        super().__init__()
        self.weight, self.bias = layer.lin.weight, layer.bias
        self.out_features = len(layer.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) to (N, G)."""
        return linear(hidden, self.weight, self.bias)


class _Gather(torch.autograd.Function):
    """``_Gather.apply(weight, z, graph)`` is ``graph.sums(weight, z)``, differentiable once."""

    @staticmethod
    def forward(ctx, weight, z, graph):
        ctx.save_for_backward(weight, z)
        ctx.graph = graph
        return graph.sums(weight, z)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, z = ctx.saved_tensors
        back, order = ctx.graph.reversed()
        products = ctx.graph.products(z, grad.contiguous(), weight.shape[1])
        return products, back.sums(weight[order], grad), None
