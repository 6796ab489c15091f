"""The cases of bench_ops.py: inputs, our call, what it is measured against, and its arithmetic."""

from __future__ import annotations

import torch
from head_cases import loss_of_head, pearson_of_head, sparse_product
from op_case import Case, compiled
from torch import nn
from torch.nn import functional as F

from histokit import ops
from histokit.extract.encoders import import_timm
from histokit.models.stpath import frame_bias
from histokit.ops import StreamingPearson
from histokit.profile import rivals


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
        "folded weights, compiled": compiled(
            rivals.folded_attention, x, context[0], block, norm, heads
        ),
    }
    if (
        tokens == 1 and device == "cuda"
    ):  # what remains for one who folds the weights ahead, once for a cancer
        given = rivals.folded_token(context[0], block)
        careful["LayerNorm(x + c), c known, compiled"] = compiled(
            lambda x, c: norm(x + c), x, given
        )
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
        inputs=x.nbytes + folded * block.out_proj.weight.nbytes,
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
            "two batched products, compiled": compiled(rivals.prototypes_by_head, *arguments),
            "(N, M, L) form, compiled": compiled(expanded),
        },
        {"(N, M, L) form": 40, "scaled_dot_product_attention": 1.3},
        "matrix",
        4.0 * rows * num * width,
        inputs=query.nbytes,
    )


def distances(
    rows: int, device: str, scale: float, backward: bool = False, dtype: torch.dtype = torch.float32
) -> Case:
    """STPath's attention at its published size: 4 heads of 128."""
    rows, heads, dim = int(rows * scale), 4, 128
    projected = torch.randn(rows, 3, heads, dim, device=device).to(dtype).requires_grad_(backward)
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
        bias = frame_bias(coords, lambda edges: edges @ weight.T).to(dtype)
        return (q @ k.mT * dim**-0.5 + bias).softmax(-1) @ v

    def sdpa():
        distance = torch.linalg.vector_norm(coords[:, None] - coords, dim=2)
        bias = (slope[:, None, None] * distance).to(dtype)
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
        "blocks of queries, compiled": compiled(rivals.distances_by_blocks, *arguments),
        "flex_attention, compiled": lambda: flex(*batch),
    }
    if backward:
        careful = {"blocks of queries, gradients by hand": by_hand}
    if dtype != torch.float32:  # blocks of float32 would not be the same work
        careful = {"flex_attention, compiled": lambda: flex(*batch)}
    products = 7 if backward else 2
    size = f"N {rows}, h {heads}, d {dim}" + (", forward + backward" if backward else "")
    return Case(
        size if dtype == torch.float32 else f"{size}, bfloat16",
        lambda: run(lambda: ops.distance_attention(q, k, v, coords, slope)),
        {
            "four frames, as published": lambda: run(frames),
        },
        {"scaled_dot_product_attention with a bias": lambda: run(sdpa), **careful},
        {} if backward else {"four frames, as published": 6},
        "matrix",
        2.0 * products * heads * rows**2 * dim,
        {} if backward else {"four frames, as published": 20},
        tolerance=1e-4 if dtype == torch.float32 else 3e-2,
        loose={"four frames, as published": 1e-2 if dtype == torch.float32 else 3e-2},
        inputs=projected.nbytes,
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
            "two passes, compiled": compiled(rivals.pearson_two_pass, pred, target),
        },
        {"torchmetrics": 50, "two passes": 12, "scipy per gene": 150},
        "read",
        pred.nbytes + target.nbytes,
        once=("torchmetrics", "scipy per gene"),
        fraction=0.5,
    )


CASES = {
    "cancer_cross_attention": lambda *a: attention(1, *a),
    "cancer_cross_attention T4": lambda *a: attention(4, *a),
    "prototype_attention": prototypes,
    "distance_attention": lambda *a: distances(12_000 if a[0] == "cuda" else 4_000, *a),
    "distance_attention bfloat16": lambda *a: distances(12_000, *a, dtype=torch.bfloat16),
    "distance_attention backward": lambda *a: distances(2_000, *a, backward=True),
    "streaming_pearson": streaming,
    "linear_pearson": pearson_of_head,
    "linear_mse": loss_of_head,
    "csr_transpose_matmul": sparse_product,
}
CUDA_ALONE = ("distance_attention bfloat16",)  # the CPU multiplies it in float32
