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
        m2_p = torch.ops.histokit.quadratic_form(w, centered)
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
def _quadratic_form(weight: Tensor, rows: Tensor) -> Tensor:
    """Sum over the rows h of (N, d) of (h . w)^2, for each row w of weight (G, d) -> (G,) float64.

    As |R w|^2, where R is the rows themselves if that costs least, or else a root of their Gram
    matrix A: w . (A w) loses twice as many digits when w lies where A is small. In float64, which
    a GPU multiplies fast, float32 has digits to lose.
    """
    if weight.numel() == 0 or len(rows) == 0:
        return weight.new_zeros(len(weight), dtype=torch.float64)
    by_rows = _takes_rows(*rows.shape, len(weight))
    if dispatch.on_cuda(weight) and not (by_rows or weight.dtype == torch.float64):
        wide, step = rows.double(), targets.weight_rows(weight)
        gram = wide.T @ wide
        return torch.cat([(w @ gram).mul_(w).sum(1) for w in weight.double().split(step)])
    # about one, so that squares neither overflow nor vanish in float32
    size, most = _size(rows), _size(weight)
    rows = rows / size
    on_rows = by_rows or dispatch.on_cuda(weight)
    root = (rows.T if on_rows else _root(rows.double())) / most
    step = targets.weight_rows(weight, root.shape[1])
    root = root.to(weight.dtype)
    parts = [matmul(w, root).square_().sum(1, dtype=torch.float64) for w in weight.split(step)]
    unknown = rows.sum() * 0  # NaN where the hidden vectors were not finite
    return torch.cat(parts) * (size.double() * most).square() + unknown


def _takes_rows(rows: int, dim: int, genes: int) -> bool:
    """Whether N G d operations are fewer than those of a Gram matrix, its root and their product.

    The former two are in float64, which takes twice as long.
    """
    return rows * genes <= dim * (2 * rows + genes + dim)


def _root(rows: Tensor) -> Tensor:
    """A matrix R with R R^T = rows^T rows, for rows (N, d) float64 -> (d, d).

    By Cholesky's method, ten times as fast as eigenvectors at d = 1,280; these serve where columns
    depend on each other.
    """
    gram = torch.nan_to_num(rows.T @ rows, nan=0, posinf=0, neginf=0)
    scale = gram.diagonal().sqrt()
    unit = scale.where(scale > 0, 1)
    gram = gram / unit[:, None] / unit
    gram.diagonal().fill_(1)  # of a column of zeros too, which its scale takes out again
    root, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp(min=0).sqrt()
    return root * scale[:, None]


def _size(values: Tensor) -> Tensor:
    """About the largest magnitude: a power of 4, by which dividing and its root round nothing.

    1 where the magnitude is zero or not finite.
    """
    most = values.detach().abs().amax()
    usable = most.isfinite() & (most > torch.finfo(most.dtype).tiny)
    half = most.where(usable, 1).log2().div(2).floor()
    return torch.exp2(2 * half)


@_quadratic_form.register_fake
def _(weight, rows):
    return weight.new_empty(weight.shape[0], dtype=torch.float64)


def _quadratic_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _quadratic_backward(ctx, grad):
    weight, rows = ctx.saved_tensors
    if weight.numel() == 0 or len(rows) == 0:
        return torch.zeros_like(weight), torch.zeros_like(rows)
    with dispatch.full_precision(weight):
        size, most = _size(rows), _size(weight)
        unit, unit_rows = weight / most, rows / size
        wide = unit_rows.double()
        gram = (wide.T @ wide).to(weight.dtype)
        scaled = unit * (2 * grad * size.double().square() * most).to(weight.dtype)[:, None]
        inner = transposed_matmul(scaled, unit) * (most.double() / size)
        return matmul(scaled, gram), matmul(unit_rows, inner.to(rows.dtype))


_quadratic_form.register_autograd(_quadratic_backward, setup_context=_quadratic_setup)
