"""cancer_cross_attention: patches attend to the context of their slide's cancer."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_divides, check_float, check_index, check_shape

WEIGHTS = ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias", "norm_weight",
           "norm_bias")  # fmt: skip


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

    x (N, D), context (S, T, D), dropout_mask (N, h T) -> (N, D); gradients to all but the mask. See
    :func:`histokit.reference.cancer_cross_attention`. The projections are folded into the context
    (2 N D h T operations instead of 4 N D^2), and the rest is one pass over x.
    """
    op = "cancer_cross_attention"
    params = _named(
        in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    )
    check_float(op, x=x, context=context, **params, dropout_mask=dropout_mask)
    check_shape(op, "x", x, (None, None), "(N, D)")
    rows, dim = x.shape
    slides, tokens = _check_context(op, context, params, dim, num_heads)
    check_shape(op, "dropout_mask", dropout_mask, (rows, num_heads * tokens), "(N, h T)")
    check_index(op, slide_index, rows, slides, x)
    with dispatch.full_precision(x):
        acc = dispatch.acc_type(x)
        context, mask, *weights = (
            None if t is None else t.to(acc) for t in (context, dropout_mask, *params.values())
        )
        if not dispatch.kernels_serve(op, x):
            return reference.cancer_cross_attention(
                x.to(acc), context, *weights, num_heads=num_heads, slide_index=slide_index,
                dropout_mask=mask, eps=eps,
            ).to(x.dtype)  # fmt: skip
        *folded, gamma, beta = _fold(context, *weights, num_heads, with_mask=mask is not None)
        data = x.to(acc) if x.device.type == "cpu" else x
        y = torch.ops.histokit.cancer_cross_attention(
            data, *folded, gamma, beta, slide_index, mask, tokens, eps
        )[0]
        return y.to(x.dtype)


def _named(*weights: Tensor) -> dict[str, Tensor]:
    return dict(zip(WEIGHTS, weights, strict=True))


def _check_context(op: str, context: Tensor, params: dict, dim: int | None, num_heads: int):
    """Check shapes against the width D, the context's own for None; gives S and T."""
    check_shape(op, "context", context, (None, None, dim), "(S, T, D)")
    slides, tokens, dim = context.shape
    if slides < 1 or tokens < 1:
        raise ValueError(f"{op}: context must hold a slide and a token, got {tuple(context.shape)}")
    shapes = ((3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,))
    symbols = ("(3 D, D)", "(3 D,)", "(D, D)", "(D,)", "(D,)", "(D,)")
    for (name, tensor), shape, text in zip(params.items(), shapes, symbols, strict=True):
        check_shape(op, name, tensor, shape, text)
    check_divides(op, "num_heads", num_heads, dim)
    return slides, tokens


@dataclasses.dataclass(frozen=True)
class FoldedContext:
    """What :func:`fold_context` gives: ``cancer_cross_attention`` of x alone, for many x.

    Attributes:
        weights: score weight and bias, value and bias, LayerNorm's weight and bias; the first four
            as far as T asks for them.
        slides: S.
        tokens: T.
        eps: LayerNorm's.
    """

    weights: tuple[Tensor | None, ...]
    slides: int
    tokens: int
    eps: float

    def __call__(self, x: Tensor, slide_index: Tensor | None = None) -> Tensor:
        """Of x (N, D) and slide_index (N,) as ``cancer_cross_attention`` takes them -> (N, D).

        Raises:
            ValueError: x is of another width, type or device; IndexError: a slide is out of range.
        """
        op, value, gamma = "FoldedContext", self.weights[2], self.weights[4]
        check_float(op, x=x, context=value)
        check_shape(op, "x", x, (None, len(gamma)), "(N, D)")
        check_index(op, slide_index, len(x), self.slides, x)
        if dispatch.acc_type(x) != value.dtype:
            raise ValueError(f"{op}: x must be summed in {value.dtype}, got {x.dtype}")
        with dispatch.full_precision(x):
            if not dispatch.kernels_serve("cancer_cross_attention", x):
                return self._plain(x.to(value.dtype), slide_index).to(x.dtype)
            data = x.to(value.dtype) if x.device.type == "cpu" else x
            return torch.ops.histokit.cancer_cross_attention(
                data, *self.weights, slide_index, None, self.tokens, self.eps
            )[0].to(x.dtype)

    def _plain(self, x: Tensor, slide_index: Tensor | None) -> Tensor:
        score_weight, score_bias, value, bias, gamma, beta = self.weights
        slide = x.new_zeros(len(x), dtype=torch.int64) if slide_index is None else slide_index
        added = x.new_zeros(x.shape)
        for s in range(self.slides):  # no (N, K, D)
            own = (slide == s)[:, None]
            if self.tokens == 1:
                added = torch.where(own, value[s].sum(0), added)
                continue
            scores = F.linear(x, score_weight[s], score_bias[s]).unflatten(1, (-1, self.tokens))
            added = torch.where(own, scores.softmax(-1).flatten(1) @ value[s], added)
        x = x + added if bias is None else x + added + bias
        return F.layer_norm(x, gamma.shape, gamma, beta, self.eps)


def fold_context(
    context: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
) -> FoldedContext:
    """The part of ``cancer_cross_attention`` without dropout that does not depend on x.

    context (S, T, D), and the weights, as there. ``fold_context(...)(x)`` is what it gives for x;
    in evaluation one fold serves all slides of a cancer.

    Raises:
        ValueError: a wrong shape, type or device.
    """
    op = "fold_context"
    params = _named(
        in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias, norm_weight, norm_bias
    )
    check_float(op, context=context, **params)
    slides, tokens = _check_context(op, context, params, None, num_heads)
    with dispatch.full_precision(context):
        acc = dispatch.acc_type(context)
        given = (t.to(acc) for t in (context, *params.values()))
        folded = _fold(*given, num_heads, with_mask=False)
        weights = tuple(None if t is None else t.contiguous() for t in folded)
        return FoldedContext(weights, slides, tokens, eps)


def _fold(context, w_in, b_in, w_out, b_out, gamma, beta, num_heads: int, *, with_mask: bool):
    """Projections folded into the context: score weight and bias, value, bias; K = h T."""
    tokens, dim = context.shape[1:]
    w_q, w_k, w_v = w_in.chunk(3)
    b_q, b_k, b_v = b_in.chunk(3)
    if tokens == 1 and not with_mask:  # the softmax is 1 and the heads add up
        # weights first: a product that begins with so few rows reads them at half the speed
        value = w_out @ (w_v @ context[:, 0].T + b_v[:, None]) + b_out[:, None]
        return None, None, value.T[:, None], None, gamma, beta
    value = F.linear(context, w_v, b_v)  # (S, T, D)
    split = (num_heads, dim // num_heads)
    w_o = w_out.unflatten(1, split)
    value = torch.einsum("sthd,ehd->shte", value.unflatten(-1, split), w_o).flatten(1, 2)
    if tokens == 1:
        return None, None, value, b_out, gamma, beta
    key = F.linear(context, w_k, b_k).unflatten(-1, split) * split[1] ** -0.5
    score_weight = torch.einsum("sthd,hde->shte", key, w_q.unflatten(0, split)).flatten(1, 2)
    score_bias = torch.einsum("sthd,hd->sht", key, b_q.unflatten(0, split)).flatten(1, 2)
    return score_weight, score_bias, value, b_out, gamma, beta


def _fake(x, score_weight, score_bias, value, bias, gamma, beta, slide_index, mask, tokens, eps):
    rows, keys = x.shape[0], value.shape[1]
    prob = value.new_empty((rows, keys) if tokens > 1 else (0,))
    return x.new_empty(x.shape), prob, value.new_empty(rows), value.new_empty(rows)


def _backward_fake(
    grad, x, prob, mean, rstd, value, bias, gamma, slide_index, mask, tokens
):  # fmt: skip
    score = value.new_empty((x.shape[0], value.shape[1]) if tokens > 1 else (0,))
    return x.new_empty(x.shape), score, value.new_empty(2, x.shape[1])


def _setup(ctx, inputs, output):
    x, score_weight, _, value, bias, gamma, _, slide_index, mask, ctx.tokens, _ = inputs
    _, prob, mean, rstd = output
    ctx.save_for_backward(x, prob, mean, rstd, score_weight, value, bias, gamma, slide_index, mask)


class _RowsOfSlides:
    """Sums over the patches of each slide, as products with a sparse matrix of N K entries.

    Dense products over all slides would cost S times as much.
    """

    def __init__(self, slide_index: Tensor | None, rows: int, slides: int):
        self.slide_index, self.rows, self.slides = slide_index, rows, slides
        if slide_index is None:
            return
        index, self.order = slide_index.sort(stable=True)
        offsets = torch.searchsorted(index, torch.arange(slides + 1, device=index.device))
        self.starts, self.counts = offsets[:-1], offsets.diff()

    def sums(self, weight: Tensor, data: Tensor) -> Tensor:
        """Of weight (N, K) and data (N, D): for each slide the sum of weight^T data (S, K, D)."""
        keys = weight.shape[1]
        if self.slide_index is None:
            return (weight.T @ data)[None]
        # row (s, k) of the matrix holds the weights k of the patches of slide s
        slide = self.slide_index[self.order]
        place = torch.arange(self.rows, device=slide.device) - self.starts[slide]
        at = (self.starts[slide] * keys + place)[:, None] + self.counts[slide][:, None] * (
            torch.arange(keys, device=slide.device)
        )
        values, index = weight.new_empty(at.numel()), self.order.new_empty(at.numel())
        values[at.flatten()] = weight[self.order].flatten()
        index[at.flatten()] = self.order.repeat_interleave(keys)
        offsets = F.pad(self.counts.repeat_interleave(keys).cumsum(0), (1, 0))
        out = torch.ops.histokit.csr_matmul(offsets, index, values, data, 0)
        return out.view(self.slides, keys, data.shape[1])

    def spread(self, weight: Tensor, context: Tensor) -> Tensor:
        """Of weight (N, K) and context (S, K, D): each patch's sum over its slide's keys (N, D)."""
        keys = weight.shape[1]
        if self.slide_index is None:
            return weight @ context[0]
        offsets = torch.arange(0, weight.numel() + 1, keys, device=weight.device)
        index = self.slide_index[:, None] * keys + torch.arange(keys, device=weight.device)
        return torch.ops.histokit.csr_matmul(
            offsets, index.flatten(), weight.flatten(), context.flatten(0, 1), 0
        )


def _backward(ctx, grad_y, *_):
    x, prob, mean, rstd, score_weight, value, bias, gamma, slide_index, mask = ctx.saved_tensors
    scored = ctx.tokens > 1
    slides, keys = value.shape[:2]
    with dispatch.full_precision(x):
        grad_z, grad_score, (grad_gamma, grad_beta) = (
            torch.ops.histokit.cancer_cross_attention_backward(
                grad_y, x, prob if scored else None, mean, rstd, value, bias, gamma,
                slide_index, mask, ctx.tokens,
            )
        )  # fmt: skip
        wide_z = grad_z.to(value.dtype)
        weight = prob if scored else value.new_ones(x.shape[0], keys)
        weight = weight if mask is None else weight * mask
        order = _RowsOfSlides(slide_index, len(x), slides)
        grad_value = order.sums(weight, wide_z)
        grad_bias = None if bias is None else wide_z.sum(0)
        if not scored:
            grads = (grad_z, None, None, grad_value, grad_bias)
        else:
            grad_x = (wide_z + order.spread(grad_score, score_weight)).to(x.dtype)
            grad_a = order.sums(grad_score, x.to(value.dtype))
            ones = x.new_ones(len(x), 1, dtype=value.dtype)
            grad_a0 = order.sums(grad_score, ones)[..., 0]
            grads = (grad_x, grad_a, grad_a0, grad_value, grad_bias)
    return (*grads, grad_gamma, grad_beta, None, None, None, None)


if dispatch.HAS_KERNELS:
    torch.library.register_fake("histokit::cancer_cross_attention", _fake)
    torch.library.register_fake("histokit::cancer_cross_attention_backward", _backward_fake)
    torch.library.register_autograd(
        "histokit::cancer_cross_attention", _backward, setup_context=_setup
    )
    torch.library.register_autograd(
        "histokit::cancer_cross_attention_backward",
        dispatch.no_second_derivative("cancer_cross_attention"),
    )
