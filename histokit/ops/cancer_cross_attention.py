"""cancer_cross_attention: patches attend to the context of their slide's cancer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_divides, check_float, check_index, check_shape


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
    params = {
        "in_proj_weight": in_proj_weight,
        "in_proj_bias": in_proj_bias,
        "out_proj_weight": out_proj_weight,
        "out_proj_bias": out_proj_bias,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
    }
    check_float(op, x=x, context=context, **params, dropout_mask=dropout_mask)
    check_shape(op, "x", x, (None, None), "(N, D)")
    rows, dim = x.shape
    check_shape(op, "context", context, (None, None, dim), "(S, T, D)")
    slides, tokens = context.shape[:2]
    if slides < 1 or tokens < 1:
        raise ValueError(f"{op}: context must hold a slide and a token, got {tuple(context.shape)}")
    shapes = ((3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,))
    symbols = ("(3 D, D)", "(3 D,)", "(D, D)", "(D,)", "(D,)", "(D,)")
    for (name, tensor), shape, text in zip(params.items(), shapes, symbols, strict=True):
        check_shape(op, name, tensor, shape, text)
    check_divides(op, "num_heads", num_heads, dim)
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


def _backward(ctx, grad_y, *_):
    x, prob, mean, rstd, score_weight, value, bias, gamma, slide_index, mask = ctx.saved_tensors
    scored = ctx.tokens > 1
    slides, keys, dim = value.shape
    with dispatch.full_precision(x):
        grad_z, grad_score, (grad_gamma, grad_beta) = (
            torch.ops.histokit.cancer_cross_attention_backward(
                grad_y, x, prob if scored else None, mean, rstd, value, bias, gamma,
                slide_index, mask, ctx.tokens,
            )
        )  # fmt: skip
        wide_z = grad_z.to(value.dtype)

        def by_slide(weight):  # (N, K) -> (N, S K), zero for other slides than the patch's own
            if slide_index is None:
                return weight
            own = F.one_hot(slide_index, slides).to(weight.dtype)
            return (own[:, :, None] * weight[:, None, :]).flatten(1)

        weight = prob if scored else value.new_ones(x.shape[0], keys)
        weight = weight if mask is None else weight * mask
        grad_value = (by_slide(weight).T @ wide_z).view(slides, keys, dim)
        grad_bias = None if bias is None else wide_z.sum(0)
        if not scored:
            grads = (grad_z, None, None, grad_value, grad_bias)
        else:
            score = by_slide(grad_score)
            grad_x = torch.addmm(wide_z, score, score_weight.flatten(0, 1)).to(x.dtype)
            grad_a = (score.T @ x.to(value.dtype)).view(slides, keys, dim)
            grads = (grad_x, grad_a, score.sum(0).view(slides, keys), grad_value, grad_bias)
    return (*grads, grad_gamma, grad_beta, None, None, None, None)


if dispatch.HAS_KERNELS:
    torch.library.register_fake("histokit::cancer_cross_attention", _fake)
    torch.library.register_fake("histokit::cancer_cross_attention_backward", _backward_fake)
    torch.library.register_autograd(
        "histokit::cancer_cross_attention", _backward, setup_context=_setup
    )
