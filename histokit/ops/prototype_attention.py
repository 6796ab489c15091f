"""prototype_attention: patches attend to prototypes that all share."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_divides, check_float, check_shape


def prototype_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, *, num_heads: int
) -> Tensor:
    """Attention of patches to M shared prototypes, the gate inside the sum.

    query (N, L), key (M, L), value (M, L), gate (M,) -> (N, L); gradients to all four. See
    :func:`histokit.reference.prototype_attention`. Beyond the result it needs memory for N h
    numbers: neither (N, M, L) nor (N, M) is formed.
    """
    op = "prototype_attention"
    check_float(op, query=query, key=key, value=value, gate=gate)
    check_shape(op, "query", query, (None, None), "(N, L)")
    width = query.shape[1]
    check_shape(op, "key", key, (None, width), "(M, L)")
    num = key.shape[0]
    if num < 1:
        raise ValueError(f"{op}: key must hold at least one prototype, got {tuple(key.shape)}")
    check_shape(op, "value", value, (num, width), "(M, L)")
    check_shape(op, "gate", gate, (num,), "(M,)")
    check_divides(op, "num_heads", num_heads, width)
    with dispatch.full_precision(query):
        acc = dispatch.acc_type(query)
        key, value, gate = key.to(acc), value.to(acc), gate.to(acc)
        if not dispatch.kernels_serve(op, query):
            out = reference.prototype_attention(
                query.to(acc), key, value, gate, num_heads=num_heads
            )
            return out.to(query.dtype)
        data = query.to(acc) if query.device.type == "cpu" else query
        gated = value * gate[:, None]
        out = torch.ops.histokit.prototype_attention(data, key, gated, num_heads)[0]
        return out.to(query.dtype)


def _fake(query, key, value, num_heads):
    return query.new_empty(query.shape), key.new_empty(query.shape[0], num_heads, 2)


def _backward_fake(grad, query, key, value, out, normalizer, num_heads):
    return query.new_empty(query.shape), key.new_empty(key.shape), key.new_empty(key.shape)


def _setup(ctx, inputs, output):
    query, key, value, ctx.num_heads = inputs
    ctx.save_for_backward(query, key, value, *output)


def _backward(ctx, grad, _):
    grads = torch.ops.histokit.prototype_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads)
    return (*grads, None)


if dispatch.HAS_KERNELS:
    torch.library.register_fake("histokit::prototype_attention", _fake)
    torch.library.register_fake("histokit::prototype_attention_backward", _backward_fake)
    torch.library.register_autograd(
        "histokit::prototype_attention", _backward, setup_context=_setup
    )
    torch.library.register_autograd(
        "histokit::prototype_attention_backward",
        dispatch.no_second_derivative("prototype_attention"),
    )
