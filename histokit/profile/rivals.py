"""The ops as a careful engineer writes them with stock torch.

In blocks that stay in the cache, in place, with gradients written by hand, with the algebra that
needs no kernel of its own. Which of these, or of their forms by torch.compile, is the best rival is
what the benchmark finds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GENES = 1024  # of a block
QUERIES = 256


def folded_attention(x, context, block, norm, heads: int) -> Tensor:
    """LayerNorm(x + MHA(x, c, c)) of x (N, D), context (T, D): weights folded into the tokens.

    With one token every weight is one, and what is added to a row does not depend on it.
    """
    dim = x.shape[1]
    wq, wk, wv = block.in_proj_weight.split(dim)
    bq, bk, bv = block.in_proj_bias.split(dim)
    value = F.linear(context, wv, bv).view(-1, heads, dim // heads)
    out = block.out_proj.weight.view(dim, heads, dim // heads)
    folded = torch.einsum("thd,ehd->hte", value, out).reshape(-1, dim)  # (h T, D)
    if len(context) == 1:
        return F.layer_norm(
            x + (folded.sum(0) + block.out_proj.bias), (dim,), norm.weight, norm.bias
        )
    key = F.linear(context, wk, bk).view(-1, heads, dim // heads)
    scale = (dim // heads) ** -0.5
    by_head = wq.view(heads, dim // heads, dim)
    scores = torch.einsum("thd,hde->hte", key, by_head).reshape(-1, dim) * scale
    shift = torch.einsum("thd,hd->ht", key, bq.view(heads, -1)).reshape(-1) * scale
    weights = F.linear(x, scores, shift).view(len(x), heads, -1).softmax(-1).flatten(1)
    mixed = torch.addmm(block.out_proj.bias, weights, folded).add_(x)
    return F.layer_norm(mixed, (dim,), norm.weight, norm.bias)


def folded_token(context, block) -> Tensor:
    """What one token (1, D) adds to every row of x (N, D): (D,), known before x is."""
    dim = context.shape[1]
    value = F.linear(context, block.in_proj_weight[2 * dim :], block.in_proj_bias[2 * dim :])
    return block.out_proj(value)[0]


def prototypes_by_sdpa(query, key, value, gate, heads: int) -> Tensor:
    """Prototype attention by torch's fused attention, the gates in the values."""
    rows = query, key, gate[:, None] * value
    q, k, v = (t.view(1, len(t), heads, -1).transpose(1, 2) for t in rows)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)


def prototypes_by_head(query, key, value, gate, heads: int) -> Tensor:
    """Prototype attention as two batched products around a softmax over (h, N, M)."""
    q, k, v = (
        t.view(len(t), heads, -1).transpose(0, 1) for t in (query, key, gate[:, None] * value)
    )
    weights = torch.bmm(q * q.shape[2] ** -0.5, k.mT).softmax(-1)
    return torch.bmm(weights, v).transpose(0, 1).reshape(query.shape)


def distances_by_blocks(q, k, v, coords, slope) -> Tensor:
    """scaled_dot_product_attention of a block of queries, whose bias stays in the cache."""
    out = torch.empty_like(v)
    for start in range(0, q.shape[1], QUERIES):
        rows = slice(start, start + QUERIES)
        bias = slope[:, None, None] * _distance(coords, rows)
        out[:, rows] = F.scaled_dot_product_attention(
            q[None, :, rows], k[None], v[None], attn_mask=bias[None]
        )[0]
    return out


def _distance(coords: Tensor, rows: slice) -> Tensor:
    # by products it is off by some 1e-3 of the largest coordinate
    return torch.cdist(coords[rows], coords, compute_mode="donot_use_mm_for_euclid_dist")


def distances_by_flex(coords, slope):
    """FlexAttention of q, k, v (1, h, N, d), compiled: the kernel forms the bias."""
    from torch.nn.attention.flex_attention import flex_attention

    x, y = (c.contiguous() for c in coords.T)

    def bias(score, batch, head, row, column):
        return score + slope[head] * ((x[row] - x[column]) ** 2 + (y[row] - y[column]) ** 2).sqrt()

    return torch.compile(lambda q, k, v: flex_attention(q, k, v, score_mod=bias)[0])


def distance_gradients(q, k, v, coords, slope, out, grad) -> list[Tensor]:
    """Gradients for q, k, v (h, N, d) and slope (h,) of a result, by blocks of queries."""
    scale = q.shape[2] ** -0.5
    for_q, for_k, for_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for_slope = torch.zeros_like(slope)
    delta = (grad * out).sum(-1, keepdim=True)
    for start in range(0, q.shape[1], QUERIES):
        rows = slice(start, start + QUERIES)
        distance = _distance(coords, rows)
        p = torch.baddbmm(slope[:, None, None] * distance, q[:, rows], k.mT, alpha=scale)
        p = torch.softmax(p, -1, out=p)
        for_v.baddbmm_(p.mT, grad[:, rows])
        d = torch.bmm(grad[:, rows], v.mT).sub_(delta[:, rows]).mul_(p)
        for_slope += torch.einsum("hnm,nm->h", d, distance)
        for_q[:, rows] = torch.bmm(d, k).mul_(scale)
        for_k.baddbmm_(d.mT, q[:, rows], alpha=scale)
    return [for_q, for_k, for_v, for_slope]


def pearson_two_pass(pred: Tensor, target: Tensor) -> Tensor:
    """Correlation of each gene of (N, G), centered first."""
    p, t = pred - pred.mean(0), target - target.mean(0)
    return (p * t).sum(0) / ((p * p).sum(0) * (t * t).sum(0)).sqrt()


def pearson_by_blocks(pred: Tensor, target: Tensor) -> Tensor:
    """The same in blocks of genes, in place."""
    return torch.cat(
        [
            _centered_pearson(p - p.mean(0), t - t.mean(0))
            for p, t in zip(pred.split(GENES, 1), target.split(GENES, 1), strict=True)
        ]
    )


def _centered_pearson(p: Tensor, t: Tensor) -> Tensor:
    covariance = (p * t).sum(0)
    return covariance / (p.square_().sum(0) * t.square_().sum(0)).sqrt()


def head_pearson_by_blocks(hidden, weight, bias, target) -> Tensor:
    """Correlation of each gene of a linear head with dense target (N, G), by blocks of genes."""
    found = []
    for w, b, y in zip(weight.split(GENES), bias.split(GENES), target.split(GENES, 1), strict=True):
        pred = F.linear(hidden, w, b)
        found.append(_centered_pearson(pred.sub_(pred.mean(0)), y - y.mean(0)))
    return torch.cat(found)


def head_loss_by_blocks(hidden, weight, bias, target) -> list[Tensor]:
    """Mean squared error of a linear head and its gradients, by blocks of genes, by hand."""
    for_hidden = torch.zeros_like(hidden)
    for_weight, for_bias = torch.empty_like(weight), torch.empty_like(bias)
    loss = hidden.new_zeros(())
    for start in range(0, len(weight), GENES):
        genes = slice(start, start + GENES)
        residual = F.linear(hidden, weight[genes], bias[genes]).sub_(target[:, genes])
        loss += torch.linalg.vector_norm(residual).square()
        residual.mul_(2 / target.numel())
        for_hidden.addmm_(residual, weight[genes])
        torch.mm(residual.T, hidden, out=for_weight[genes])
        torch.sum(residual, 0, out=for_bias[genes])
    return [loss / target.numel(), for_hidden, for_weight, for_bias]
