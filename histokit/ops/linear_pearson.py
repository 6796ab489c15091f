"""linear_pearson: correlation of a linear layer's predictions, which are never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch, reference, targets
from histokit.ops.gemm import matmul, transposed_matmul
from histokit.ops.moments import is_constant
from histokit.ops.targets import (
    Csr,
    center_rows,
    check_target,
    reference_target,
    transposed_product,
)


def linear_pearson(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | Csr
) -> tuple[Tensor, Tensor]:
    """Correlation and mean squared error of a linear layer's predictions, gene by gene.

    hidden (N, d), weight (G, d), bias (G,) or None, target (N, G) dense, ``torch.sparse_csr`` or
    :class:`Csr` -> r (G,), NaN where either side is constant, and mse (G,). See
    :func:`histokit.reference.linear_pearson`. Cost nnz d + G d^2 and memory G d; the (N, G)
    predictions never exist. Both are float32, or float64 for float64 hidden. Differentiable in
    hidden, weight and bias. A value of hidden that is not finite makes all answers NaN.
    """
    op = "linear_pearson"
    target = check_target(op, hidden, weight, bias, target)
    acc = dispatch.acc_type(hidden)
    with dispatch.full_precision(hidden):
        h, w = hidden.to(acc), weight.to(acc)
        b = None if bias is None else bias.to(acc)
        if not dispatch.kernels_serve(op, hidden):
            return reference.linear_pearson(h, w, b, reference_target(target, acc))
        mean, centered = center_rows(h)
        cross, moments = transposed_product(target, centered)
        cov = (cross * w).sum(1, dtype=torch.float64)
        wide = centered.double()
        m2_p = torch.ops.histokit.quadratic_form(w, wide.T @ wide)
        offset = (w @ mean if b is None else torch.addmv(b, w, mean)).double() - moments[0]
        mean_p = offset + moments[0]
        eps = torch.finfo(acc).eps
        constant = is_constant(m2_p, mean_p, h.shape[0], eps)
        constant = constant | is_constant(moments[1], moments[0], h.shape[0], eps)
        r = cov / (m2_p * moments[1]).masked_fill(constant, 1).sqrt()
        r = r.clamp(-1, 1).masked_fill(constant, torch.nan)
        mse = ((m2_p - 2 * cov + moments[1]) / h.shape[0] + offset.square()).clamp(min=0)
        return r.to(acc), mse.to(acc)


@torch.library.custom_op("histokit::quadratic_form", mutates_args=())
def _quadratic_form(weight: Tensor, gram: Tensor) -> Tensor:
    """W . A w for the rows w of weight (G, d) and A (d, d) float64, positive semidefinite -> (G,).

    As |A^(1/2) w|^2: w . (A w) loses twice as many digits when w lies where A is small.
    """
    if weight.numel() == 0:
        return gram.new_zeros(weight.shape[0])
    # about one, so that squares neither overflow nor vanish in float32
    size, most = _size(gram.diagonal()), _size(weight).double()
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram / size, nan=0, posinf=0, neginf=0))
    root = (vectors * (values.clamp(min=0).sqrt() / most)).to(weight.dtype)
    parts = [
        matmul(w, root).square().sum(1, dtype=torch.float64) for w in weight.split(targets.ROWS)
    ]
    unknown = gram.diagonal().sum() * 0  # NaN where the hidden vectors were not finite
    return torch.cat(parts) * (size * most.square()) + unknown


def _size(values: Tensor) -> Tensor:
    """About the largest magnitude: a power of 4, by which dividing and its root round nothing.

    1 where the magnitude is zero or not finite.
    """
    most = values.detach().abs().amax()
    usable = most.isfinite() & (most > torch.finfo(most.dtype).tiny)
    half = most.where(usable, 1).log2().div(2).floor()
    return torch.exp2(2 * half)


@_quadratic_form.register_fake
def _(weight, gram):
    return gram.new_empty(weight.shape[0])


def _quadratic_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _quadratic_backward(ctx, grad):
    weight, gram = ctx.saved_tensors
    with dispatch.full_precision(weight):
        size, most = _size(gram.diagonal()), _size(weight)
        unit = weight / most
        scaled = unit * (grad * size * most.double().square()).to(weight.dtype)[:, None]
        inner = transposed_matmul(scaled, unit)
        by_weight = matmul(scaled, (gram / size).to(weight.dtype)) * (2 / most)
        return by_weight, inner.to(gram.dtype) / size


_quadratic_form.register_autograd(_quadratic_backward, setup_context=_quadratic_setup)
