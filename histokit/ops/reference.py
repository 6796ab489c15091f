"""Every op of :mod:`histokit.ops` in plain PyTorch: what it means, on any device, in any dtype.

The same names and signatures as in ``histokit.ops``, where arguments are also checked. These are
the definition, the fallback without a compiler, the oracle of the tests and the baseline of the
benchmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from histokit.ops.moments import is_constant, merge_moments

BLOCK = 1 << 22  # entries that pearson_update holds in float64 at a time


def cancer_cross_attention(
    x: Tensor,
    context: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    num_heads: int,
    slide_index: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``LayerNorm(x + MultiheadAttention(x, context, context))``, each patch with its own slide.

    Arguments:
        x: (N, D) patches of any number of slides.
        context: (S, T, D) context tokens of each slide's cancer.
        in_proj_weight: (3 D, D), in_proj_bias: (3 D,), out_proj_weight: (D, D),
            out_proj_bias: (D,): as ``nn.MultiheadAttention`` stores them.
        norm_weight: (D,), norm_bias: (D,).
        num_heads: h, divides D.
        slide_index: (N,) int64, which context a patch sees; None when S is 1.
        dropout_mask: (N, h * T) multiplies the attention weights: 0 or ``1 / (1 - p)``.
        eps: added to the variance in the LayerNorm.

    Returns:
        (N, D), the dtype of x.
    """
    rows, dim = x.shape
    slides, tokens, _ = context.shape
    w_q, w_k, w_v = in_proj_weight.chunk(3)
    b_q, b_k, b_v = in_proj_bias.chunk(3)
    split = (num_heads, dim // num_heads)
    q = F.linear(x, w_q, b_q).unflatten(-1, split)  # (N, h, d)
    k = F.linear(context, w_k, b_k).unflatten(-1, split)  # (S, T, h, d)
    v = F.linear(context, w_v, b_v).unflatten(-1, split)
    attended = q.new_empty(rows, num_heads, dim // num_heads)
    pieces = []
    for slide in range(slides):
        here = slice(None) if slide_index is None else (slide_index == slide).nonzero().squeeze(1)
        score = torch.einsum("nhd,thd->nht", q[here], k[slide]) * split[1] ** -0.5
        weight = score.softmax(-1)
        if dropout_mask is not None:
            weight = weight * dropout_mask[here].view(-1, num_heads, tokens)
        pieces.append((here, torch.einsum("nht,thd->nhd", weight, v[slide])))
    if slide_index is None:
        attended = pieces[0][1]
    else:
        order = torch.cat([here for here, _ in pieces]).argsort()
        attended = torch.cat([piece for _, piece in pieces])[order]
    out = F.linear(attended.flatten(1), out_proj_weight, out_proj_bias)
    return F.layer_norm(x + out, (dim,), norm_weight, norm_bias, eps).to(x.dtype)


def prototype_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, *, num_heads: int
) -> Tensor:
    """Attention of patches to M shared prototypes, the gate inside the sum.

    ``out[n, i] = sum_m softmax_m(query[n, i] . key[m, i] / sqrt(d)) gate[m] value[m, i]`` for each
    head i of size ``d = L / h`` (BP-Booster, Eq. 1-3 with patches as queries and prototypes as keys
    and values).

    Arguments:
        query: (N, L). key: (M, L). value: (M, L). gate: (M,).
        num_heads: h, divides L.

    Returns:
        (N, L), the dtype of query.
    """
    split = (num_heads, query.shape[1] // num_heads)
    q, k, v = (t.unflatten(1, split).transpose(0, 1) for t in (query, key, value))  # (h, ., d)
    weight = (q @ k.transpose(1, 2) * split[1] ** -0.5).softmax(-1)  # (h, N, M)
    return ((weight * gate) @ v).transpose(0, 1).flatten(1)


def distance_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    coords: Tensor,
    slope: Tensor,
    *,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """Attention whose scores change linearly with the distance of two patches.

    ``out[i, n] = sum_m softmax_m(q[i, n] . k[i, m] / sqrt(d) + slope[i] |c_n - c_m|) v[i, m]``:
    what STPath's frame-averaged bias amounts to, with ``slope = edge_bias.weight[:, 2]``.

    Arguments:
        q: (h, N, d). k: (h, N, d). v: (h, N, d).
        coords: (N, 2) in any unit; they get no gradient.
        slope: (h,) change of the score for each unit of distance.
        dropout: rate in [0, 1) at which attention weights are dropped; the others grow by
            ``1 / (1 - dropout)``.
        seed: (1,) int64, what the dropped weights are chosen by (``dropout_mask``); None draws one.

    Returns:
        (h, N, d), the dtype of q.
    """
    coords = coords.detach()
    x, y = (coords[:, None] - coords).unbind(-1)  # differences, not the products of torch.cdist
    distance = (x * x + y * y).sqrt()
    score = q @ k.transpose(1, 2) * q.shape[2] ** -0.5 + slope[:, None, None] * distance
    weight = score.softmax(-1)
    if dropout > 0:
        seed = draw_seed(q.device) if seed is None else seed
        weight = weight * dropout_mask(seed, dropout, *weight.shape[:2]).to(weight.dtype)
    return weight @ v


def draw_seed(device: torch.device) -> Tensor:
    """(1,) int64 from torch's generator."""
    return torch.randint(1 << 62, (1,), device=device)


def dropout_mask(seed: Tensor, rate: float, heads: int, rows: int) -> Tensor:
    """(h, N, N) float64: 0, or ``1 / (1 - rate)``, by a 32-bit hash of seed, head, row and column.

    No generator is asked for each weight, so that kernels on any device draw the same mask without
    storing it.
    """
    low = (1 << 32) - 1

    def mix(x: Tensor) -> Tensor:
        x = x & low
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
        x = ((x ^ (x >> 15)) * 0x846CA68B) & low
        return x ^ (x >> 16)

    head, row = (torch.arange(size, device=seed.device) for size in (heads, rows))
    head = mix(seed + mix((seed >> 32) + head))
    bits = mix(mix(head[:, None] + row)[:, :, None] + row * 0x9E3779B9)
    return (bits >= int(rate * 2**32)).double() / (1 - rate)


def pearson_update(
    state: Tensor,
    pred: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    slide_index: Tensor | None = None,
) -> None:
    """Merge rows of predictions and targets into running moments, in place.

    Arguments:
        state: (6, S, G) float64, zeros at the start: count, mean of pred, mean of target, summed
            squared deviations of pred and of target, summed products of deviations.
        pred: (N, G), target: (N, G). An entry where either is NaN does not count.
        mask: (N, G) or (G,) bool, which entries count; None for all.
        slide_index: (N,) int64 in [0, S); None when S is 1.

    Means and second moments are merged pairwise (Chan, Golub and LeVeque 1983), so any chunking
    gives the same answer to rounding.
    """
    step = max(1, BLOCK // max(1, pred.shape[1]))
    for slide in range(state.shape[1]):
        rows = torch.arange(pred.shape[0], device=pred.device)
        rows = rows if slide_index is None else rows[slide_index == slide]
        for block in rows.split(step):
            p, t = pred[block].double(), target[block].double()
            valid = ~(p.isnan() | t.isnan())
            if mask is not None:
                valid = valid & (mask if mask.ndim == 1 else mask[block])
            count = valid.sum(0).double()
            p, t = p.where(valid, 0), t.where(valid, 0)
            mean_p, mean_t = (v.sum(0) / count.clamp(min=1) for v in (p, t))
            p, t = ((v - m).where(valid, 0) for v, m in ((p, mean_p), (t, mean_t)))
            chunk = [count, mean_p, mean_t, (p * p).sum(0), (t * t).sum(0), (p * t).sum(0)]
            state[:, slide] = merge_moments(state[:, slide], torch.stack(chunk))


def csr_check(row_offsets: Tensor, col_index: Tensor, values: Tensor, num_cols: int) -> Tensor:
    """What is wrong with each row of a sparse matrix.

    Arguments:
        row_offsets: (N + 1,), col_index: (nnz,): int32 or int64. values: (nnz,).
        num_cols: G.

    Returns:
        (N,) uint8, the worst of: 4 where the row's offsets do not ascend from 0 to nnz, 3 where a
        column is not in [0, G), 2 where columns descend, 1 where one is there twice, 0 if nothing.
    """
    begin, end, nnz = row_offsets[:-1].long(), row_offsets[1:].long(), len(values)
    wrong = (begin < 0) | (begin > end) | (end > nnz)
    if len(wrong):
        wrong[0] |= begin[0] != 0
        wrong[-1] |= end[-1] != nnz
    faults = torch.where(wrong, 4, 0)
    if wrong.any():
        return faults.to(torch.uint8)
    row = torch.arange(len(faults), device=values.device).repeat_interleave(end - begin)
    column = col_index.long()
    same_row = F.pad(row[1:] == row[:-1], (1, 0))
    step = F.pad(column.diff(), (1, 0))
    kind = torch.where(same_row & (step == 0), 1, 0)
    kind = torch.where(same_row & (step < 0), 2, kind)
    kind = torch.where((column < 0) | (column >= num_cols), 3, kind)
    return faults.scatter_reduce(0, row, kind, "amax").to(torch.uint8)


def linear_pearson(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Correlation of a linear layer's predictions with the target, gene by gene.

    Arguments:
        hidden: (N, d). weight: (G, d). bias: (G,) or None.
        target: (N, G), dense or sparse CSR.

    Returns:
        r (G,): Pearson correlation of ``hidden @ weight.T + bias`` with target over N, NaN where
        either is constant; mse (G,): mean squared error of the same predictions.
    """
    pred = F.linear(hidden, weight, bias)
    target = target.to_dense() if target.layout == torch.sparse_csr else target
    p, t = pred - pred.mean(0), target - target.mean(0)
    m2_p, m2_t = (p * p).sum(0), (t * t).sum(0)
    eps = torch.finfo(pred.dtype).eps
    constant = (pred == pred[:1]).all(0) | (target == target[:1]).all(0)
    constant = constant | is_constant(m2_p, pred.mean(0), len(pred), eps)
    constant = constant | is_constant(m2_t, target.mean(0), len(pred), eps)
    r = (p * t).sum(0) / (m2_p * m2_t).masked_fill(constant, 1).sqrt()
    return r.clamp(-1, 1).masked_fill(constant, torch.nan), ((pred - target) ** 2).mean(0)


def linear_mse(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    measured: Tensor | None = None,
) -> Tensor:
    """Mean squared error of a linear layer over the measured genes.

    Arguments:
        hidden: (N, d). weight: (G, d). bias: (G,) or None.
        target: (N, G), dense or sparse CSR.
        measured: (G,) bool, the genes that count; None for all.

    Returns:
        scalar: ``mse_loss(hidden @ weight.T + bias, target)`` over measured columns.
    """
    target = target.to_dense() if target.layout == torch.sparse_csr else target
    if measured is not None:
        weight, target = weight[measured], target[:, measured]
        bias = None if bias is None else bias[measured]
    return F.mse_loss(F.linear(hidden, weight, bias), target)
