"""The cases of bench_ops.py: inputs, our call, what it is measured against, and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from histokit import ops
from histokit.extract.encoders import import_timm
from histokit.models.stpath import frame_bias
from histokit.ops import StreamingPearson
from histokit.profile import rivals


@dataclass
class Case:
    """One op at one size: callables without arguments, ``ours`` first.

    ``others`` are the forms that people write or publish, ``careful`` those of an engineer who
    looks for the fastest that stock torch gives.
    """

    size: str
    ours: Callable
    others: dict[str, Callable]
    careful: dict[str, Callable]
    at_least: dict[str, float]  # time of the other over ours
    limit: str  # the machine's rate that bounds ours: copy, read or matrix
    work: float  # bytes moved, or operations for matrix
    memory_at_least: dict[str, float] = field(default_factory=dict)
    tolerance: float = 1e-4  # of our result from the reference's, and of the others from ours
    loose: dict[str, float] = field(default_factory=dict)  # for others that are less exact
    once: tuple[str, ...] = ()  # so slow that they are timed once
    fraction: float | None = None  # of the limit


def _compiled(function: Callable, *arguments) -> Callable:
    fast = torch.compile(function, dynamic=False)
    return lambda: fast(*arguments)


def attention(tokens: int, device: str, scale: float) -> Case:
    """HistoPrism's conditioning block, forward."""
    rows, dim, heads = int(10_000 * scale), 1024, 4
    block = nn.MultiheadAttention(dim, heads, batch_first=True, device=device).eval()
    norm = nn.LayerNorm(dim, device=device)
    x = torch.randn(rows, dim, device=device)
    context = torch.randn(1, tokens, dim, device=device)
    arguments = (
        x, context, block.in_proj_weight, block.in_proj_bias, block.out_proj.weight,
        block.out_proj.bias, norm.weight, norm.bias,
    )  # fmt: skip

    def eager():
        return norm(x + block(x[None], context, context, need_weights=False)[0][0])

    careful = {
        "folded weights": lambda: rivals.folded_attention(x, context[0], block, norm, heads),
        "folded weights, compiled": _compiled(
            rivals.folded_attention, x, context[0], block, norm, heads
        ),
    }
    folded = 2 if tokens == 1 else 4  # of the D x D projections, those that are read
    return Case(
        f"N {rows}, D {dim}, h {heads}, T {tokens}",
        lambda: ops.cancer_cross_attention(*arguments, num_heads=heads),
        {"MultiheadAttention + LayerNorm": eager},
        careful,
        {"MultiheadAttention + LayerNorm": 30 if tokens == 1 else 12},
        "copy",
        2 * x.nbytes + folded * block.out_proj.weight.nbytes,
        fraction=0.5 if tokens == 1 else None,
    )


def prototypes(device: str, scale: float) -> Case:
    """BP-Booster's attention, forward."""
    rows, num, width, heads = int(10_000 * scale), 64, 256, 8
    query = torch.randn(rows, width, device=device)
    key, value = (torch.randn(num, width, device=device) for _ in range(2))
    gate = torch.rand(num, device=device)
    arguments = query, key, value, gate, heads

    def expanded():
        weight = torch.einsum(
            "nhd,mhd->nmh", *(t.view(-1, heads, width // heads) for t in (query, key))
        )
        weight = (weight * (width // heads) ** -0.5).softmax(1).repeat_interleave(width // heads, 2)
        return (weight * gate[:, None] * value).sum(1)

    return Case(
        f"N {rows}, M {num}, L {width}, h {heads}",
        lambda: ops.prototype_attention(query, key, value, gate, num_heads=heads),
        {"(N, M, L) form": expanded},
        {
            "scaled_dot_product_attention": lambda: rivals.prototypes_by_sdpa(*arguments),
            "two batched products": lambda: rivals.prototypes_by_head(*arguments),
            "two batched products, compiled": _compiled(rivals.prototypes_by_head, *arguments),
            "(N, M, L) form, compiled": _compiled(expanded),
        },
        {"(N, M, L) form": 40, "scaled_dot_product_attention": 1.3},
        "matrix",
        4.0 * rows * num * width,
    )


def distances(rows: int, device: str, scale: float, backward: bool = False) -> Case:
    """STPath's attention at its published size: 4 heads of 128."""
    rows, heads, dim = int(rows * scale), 4, 128
    projected = torch.randn(rows, 3, heads, dim, device=device, requires_grad=backward)
    with torch.enable_grad():
        q, k, v = projected.permute(1, 2, 0, 3)
    coords = torch.rand(rows, 2, device=device) * 100
    slope = (torch.randn(heads, device=device) / 10).requires_grad_(backward)
    along_axes = torch.randn(heads, 2, device=device) / 2  # cancels in the mean over four frames

    def run(attend):
        if not backward:
            return attend()
        with torch.enable_grad():
            return torch.autograd.grad(
                attend().square().sum(), [projected, slope], retain_graph=True
            )

    def frames():
        weight = torch.cat([along_axes, slope[:, None]], 1)
        bias = frame_bias(coords, lambda edges: edges @ weight.T)
        return (q @ k.mT * dim**-0.5 + bias).softmax(-1) @ v

    def sdpa():
        distance = torch.linalg.vector_norm(coords[:, None] - coords, dim=2)
        bias = slope[:, None, None] * distance
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def by_hand():
        out = rivals.distances_by_blocks(*arguments)
        *projections, for_slope = rivals.distance_gradients(*arguments, out, 2 * out)
        return torch.stack(projections).permute(2, 0, 1, 3), for_slope

    arguments = (*(t.detach().contiguous() for t in (q, k, v)), coords, slope.detach())
    batch = [t[None] for t in arguments[:3]]
    flex = rivals.distances_by_flex(*arguments[3:])
    careful = {
        "blocks of queries": lambda: rivals.distances_by_blocks(*arguments),
        "blocks of queries, compiled": _compiled(rivals.distances_by_blocks, *arguments),
        "flex_attention, compiled": lambda: flex(*batch),
    }
    if backward:
        careful = {"blocks of queries, gradients by hand": by_hand}
    products = 7 if backward else 2
    return Case(
        f"N {rows}, h {heads}, d {dim}" + (", forward + backward" if backward else ""),
        lambda: run(lambda: ops.distance_attention(q, k, v, coords, slope)),
        {
            "four frames, as published": lambda: run(frames),
        },
        {"scaled_dot_product_attention with a bias": lambda: run(sdpa), **careful},
        {} if backward else {"four frames, as published": 6},
        "matrix",
        2.0 * products * heads * rows**2 * dim,
        {} if backward else {"four frames, as published": 20},
        loose={"four frames, as published": 1e-2},  # its eigenvectors in float32
    )


def streaming(device: str, scale: float) -> Case:
    """Correlation of a slide, per gene, from one read."""
    rows, genes = 4_000, int(38_982 * scale)
    pred = torch.randn(rows, genes, device=device)
    target = (pred + torch.randn(rows, genes, device=device)).contiguous()

    def ours():
        score = StreamingPearson(genes, device=device)
        score.update(pred, target)
        return score.compute()[0].float()

    def two_passes():
        return rivals.pearson_two_pass(pred, target)

    def torchmetrics():
        import_timm()  # torchmetrics imports torchvision, which may not match this torch
        from torchmetrics.regression import PearsonCorrCoef

        return PearsonCorrCoef(num_outputs=genes).to(device)(pred, target)

    def scipy():
        from scipy.stats import pearsonr

        p, t = pred.cpu().numpy(), target.cpu().numpy()
        return torch.tensor([pearsonr(p[:, g], t[:, g])[0] for g in range(genes)], dtype=pred.dtype)

    return Case(
        f"N {rows}, G {genes}",
        ours,
        {"torchmetrics": torchmetrics, "two passes": two_passes, "scipy per gene": scipy},
        {
            "two passes by blocks of genes": lambda: rivals.pearson_by_blocks(pred, target),
            "two passes, compiled": _compiled(rivals.pearson_two_pass, pred, target),
        },
        {"torchmetrics": 50, "two passes": 12, "scipy per gene": 150},
        "read",
        pred.nbytes + target.nbytes,
        once=("torchmetrics", "scipy per gene"),
        fraction=0.5,
    )


def head(rows: int, genes: int, device: str):
    """A linear head and a target of which 8 % is not zero, dense and sparse."""
    rng = np.random.default_rng(0)
    hidden = torch.randn(rows, 256, device=device)
    weight = torch.randn(genes, 256, device=device) / 16
    bias = torch.randn(genes, device=device)
    target = torch.zeros(rows, genes)
    for n in range(rows):  # distinct genes of each spot
        own = torch.from_numpy(np.flatnonzero(rng.random(genes, dtype=np.float32) < 0.08))
        target[n, own] = torch.rand(len(own)) * 3
    target = target.to(device)
    return hidden, weight, bias, target, target.to_sparse_csr()


def pearson_of_head(device: str, scale: float) -> Case:
    """Every gene's correlation of a linear head, without its predictions."""
    rows, genes = int(10_000 * scale), 38_982
    hidden, weight, bias, target, sparse = head(rows, genes, device)

    def dense():
        return rivals.pearson_two_pass(F.linear(hidden, weight, bias), target)

    def by_blocks():
        return rivals.head_pearson_by_blocks(hidden, weight, bias, target)

    nnz, dim = sparse.values().numel(), hidden.shape[1]
    return Case(
        f"N {rows}, G {genes}, d {dim}, 8 %",
        lambda: ops.linear_pearson(hidden, weight, bias, sparse)[0],
        {"dense head, then Pearson": dense},
        {"blocks of genes": by_blocks},
        {"dense head, then Pearson": 8},
        "matrix",
        2.0 * (nnz * dim + genes * dim**2 + rows * dim**2),
        {"dense head, then Pearson": 20},
        once=("dense head, then Pearson",),
    )


def loss_of_head(device: str, scale: float) -> Case:
    """Loss of the whole-transcriptome head, forward and backward."""
    rows, genes = int(3_000 * scale), 38_982
    *parameters, target, sparse = head(rows, genes, device)
    parameters = [p.requires_grad_() for p in parameters]

    def run(loss):
        with torch.enable_grad():
            return torch.autograd.grad(loss(), parameters)

    nnz, dim = sparse.values().numel(), parameters[0].shape[1]
    return Case(
        f"N {rows}, G {genes}, d {dim}, 8 %, forward + backward",
        lambda: run(lambda: ops.linear_mse(*parameters, sparse)),
        {"F.linear + mse_loss": lambda: run(lambda: F.mse_loss(F.linear(*parameters), target))},
        {
            "blocks of genes, gradients by hand": lambda: tuple(
                rivals.head_loss_by_blocks(*(p.detach() for p in parameters), target)[1:]
            )
        },
        {"F.linear + mse_loss": 5},
        "matrix",
        2.0 * (2 * nnz * dim + 2 * genes * dim**2 + 2 * rows * dim**2),
        {"F.linear + mse_loss": 10},
    )


CASES = {
    "cancer_cross_attention": lambda *a: attention(1, *a),
    "cancer_cross_attention T4": lambda *a: attention(4, *a),
    "prototype_attention": prototypes,
    "distance_attention": lambda *a: distances(4_000, *a),
    "distance_attention backward": lambda *a: distances(2_000, *a, backward=True),
    "streaming_pearson": streaming,
    "linear_pearson": pearson_of_head,
    "linear_mse": loss_of_head,
}
