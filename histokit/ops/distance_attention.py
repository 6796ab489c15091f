"""distance_attention: attention of a slide's patches to each other with a bias by distance."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_float, check_shape, check_tensor


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

    q, k, v (h, N, d), coords (N, 2), slope (h,) -> (h, N, d); gradients to all but coords. See
    :func:`histokit.reference.distance_attention`. Memory grows with N, not with N^2. Views of an
    (N, 3, h, d) projection are read in place on CUDA and copied head by head on the CPU, where rows
    that lie apart cost half the speed at N = 20,000. The result is a view of (N, h, d), so that
    ``.transpose(0, 1).flatten(1)`` copies nothing. Dropout draws the mask of the reference, and
    nothing of it is stored. With ``HISTOKIT_TENSOR_CORES=1`` in the environment, heads of up to 128
    elements are multiplied on tensor cores on CUDA: half types as they are, float32 in three TF32
    products, or in one where torch allows TF32.
    """
    op = "distance_attention"
    check_float(op, q=q, k=k, v=v, coords=coords, slope=slope)
    check_shape(op, "q", q, (None, None, None), "(h, N, d)")
    heads, rows, dim = q.shape
    if heads < 1 or dim < 1:
        raise ValueError(f"{op}: q must hold a head and a column, got {tuple(q.shape)}")
    check_shape(op, "k", k, (heads, rows, dim), "(h, N, d)")
    check_shape(op, "v", v, (heads, rows, dim), "(h, N, d)")
    check_shape(op, "coords", coords, (rows, 2), "(N, 2)")
    check_shape(op, "slope", slope, (heads,), "(h,)")
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout must be in [0, 1), got {dropout}")
    if seed is not None:
        check_tensor(op, "seed", seed)
    check_shape(op, "seed", seed, (1,), "(1,)")
    if seed is not None and (seed.dtype != torch.int64 or seed.device != q.device):
        raise ValueError(
            f"{op}: seed must be int64 on {q.device}, got {seed.dtype} on {seed.device}"
        )
    if dropout > 0 and seed is None:
        seed = reference.draw_seed(q.device)
    with dispatch.full_precision(q):
        acc = dispatch.acc_type(q)
        coords, slope = coords.detach().to(acc), slope.to(acc)
        if not dispatch.kernels_serve(op, q):
            out = reference.distance_attention(
                *(t.to(acc) for t in (q, k, v)), coords, slope, dropout=dropout, seed=seed
            )
            return out.to(q.dtype)
        narrow = q.device.type != "cpu" and k.dtype == v.dtype == q.dtype
        data = [t.to(q.dtype if narrow else acc) for t in (q, k, v)]
        if q.device.type == "cpu":
            data = [t.contiguous() for t in data]
        data = [t.transpose(0, 1) for t in data]
        out, _ = torch.ops.histokit.distance_attention(
            *data, coords, slope, seed, dropout, dispatch.products()
        )
        return out.to(q.dtype).transpose(0, 1)


def _fake(query, key, value, coords, slope, seed, dropout, products):
    rows, heads, _ = query.shape
    return query.new_empty(query.shape), slope.new_empty(heads, rows, 2)


def _backward_fake(
    grad_out, query, key, value, coords, slope, seed, dropout, out, normalizer, with_slope, products
):  # fmt: skip
    grads = (query.new_empty(query.shape) for _ in range(3))
    return *grads, slope.new_empty(slope.shape[0] if with_slope else 0, dtype=torch.float64)


def _setup(ctx, inputs, output):
    *tensors, ctx.dropout, ctx.products = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx, grad_out, _):
    *inputs, out, normalizer = ctx.saved_tensors
    with_slope = ctx.needs_input_grad[4]
    *grads, grad_slope = torch.ops.histokit.distance_attention_backward(
        grad_out,
        *inputs,
        ctx.dropout,
        out,
        normalizer,
        with_slope,
        ctx.products,
    )
    grad_slope = grad_slope.to(inputs[4].dtype) if with_slope else None
    return *grads, None, grad_slope, None, None, None


if dispatch.HAS_KERNELS:
    torch.library.register_fake("histokit::distance_attention", _fake)
    torch.library.register_fake("histokit::distance_attention_backward", _backward_fake)
    torch.library.register_autograd("histokit::distance_attention", _backward, setup_context=_setup)
    torch.library.register_autograd(
        "histokit::distance_attention_backward", dispatch.no_second_derivative("distance_attention")
    )
