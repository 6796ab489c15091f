"""linear_mse: squared error of a linear layer's predictions, which are never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import csr, dispatch, reference, targets
from histokit.ops.csr import Csr, check_csr
from histokit.ops.dispatch import check_shape, check_tensor
from histokit.ops.gemm import linear, matmul, transposed_matmul
from histokit.ops.targets import (
    center_rows,
    check_target,
    reference_target,
    transposed_product,
)

GOOD_FIT = 0.01  # share of the target's variance that is left, below which residuals are formed
RESIDUALS = 1 << 24  # residuals that are held at a time
CUDA_RESIDUALS = 1 << 28  # on CUDA, at once


def linear_mse(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    measured: Tensor | None = None,
) -> Tensor:
    """Mean squared error of a linear layer over the measured genes, for training.

    hidden (N, d), weight (G, d), bias (G,) or None, target (N, G) dense, ``torch.sparse_csr`` or
    :class:`Csr`, measured (G,) bool -> scalar with gradients to hidden, weight and bias. See
    :func:`histokit.reference.linear_mse`. The gradients are made in the forward pass, where they
    share its products; no (N, G) tensor exists. The loss is float32, or float64 for float64 hidden,
    and never negative. What genes that are not measured hold does not matter. NaN where N or the
    number of measured genes is zero.

    Nothing is approximated, but sums over patches are taken before the difference to the target:
    the loss is off by up to some 4 eps of the target's variance, which is more than eps of the loss
    when the fit is good. On the CPU residuals are formed instead, by blocks of patches, where less
    than 1 % of the variance is left.
    """
    op = "linear_mse"
    target = check_target(op, hidden, weight, bias, target)
    if measured is not None:
        check_tensor(op, "measured", measured)
    check_shape(op, "measured", measured, (weight.shape[0],), "(G,)")
    if measured is not None and (measured.dtype != torch.bool or measured.device != hidden.device):
        raise ValueError(
            f"{op}: measured must be bool on {hidden.device}, got {measured.dtype} on "
            f"{measured.device}"
        )
    acc = dispatch.acc_type(hidden)
    with dispatch.full_precision(hidden):
        h, w = hidden.to(acc), weight.to(acc)
        b = None if bias is None else bias.to(acc)
        if not dispatch.kernels_serve(op, hidden):
            return reference.linear_mse(h, w, b, reference_target(target, acc), measured)
        with_grad = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (hidden, weight, bias)
        )
        sparse = isinstance(target, Csr)
        parts = (*target[:2], target.values.to(acc)) if sparse else (None, None, target)
        return torch.ops.histokit.linear_mse(h, w, b, *parts, measured, with_grad)[0]


@torch.library.custom_op("histokit::linear_mse", mutates_args=())
def _linear_mse(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_offsets: Tensor | None,
    col_index: Tensor | None,
    values: Tensor,
    measured: Tensor | None,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and its gradients to hidden, weight and bias; empty ones without ``with_grad``.

    With residual e = Hc w + c - y, c = b + w . mean(H), per gene
    sum e^2 = w.Aw - 2 w.C + m2_y + N (c - mean_y)^2, and
    dW = A w - C + N (c - mean_y) mean(H), db = N (c - mean_y), dH = Hc W^T W + c^T W - Y W,
    each times 2 / (N G_measured). Where the residuals are no more than the weights or the hidden
    rows (N <= d or G <= d), forming them costs less than the (d, d) sums.
    """
    rows, genes = hidden.shape[0], weight.shape[0]
    if rows == 0 or genes == 0:
        grads = (hidden, weight, weight[:, 0]) if with_grad else (hidden[:0, 0],) * 3
        return hidden.new_full((), torch.nan), *(torch.zeros_like(g) for g in grads)
    target = values if row_offsets is None else Csr(row_offsets, col_index, values, genes)
    scale = 2 / (rows * (genes if measured is None else measured.sum().to(hidden.dtype)))
    if measured is not None:  # zeros, not products with zero: what is there may be NaN
        weight = weight.where(measured[:, None], 0)
        bias = None if bias is None else bias.where(measured, 0)
    if _forms_residuals(hidden, genes):
        return _mse_by_residual(hidden, weight, bias, target, measured, scale, with_grad)
    mean, centered = center_rows(hidden)
    gram = transposed_matmul(centered, centered)
    cross, moments = transposed_product(target, centered)
    if measured is not None:
        cross, moments = cross.where(measured[:, None], 0), moments.where(measured, 0)
    center = weight @ mean if bias is None else torch.addmv(bias, weight, mean)  # c
    offset = center.double() - moments[0]
    spread = moments[1].sum()
    total = spread + rows * offset.square().sum()
    inner = torch.zeros_like(gram)  # W^T W
    shift = (offset * rows).to(hidden.dtype)
    step = targets.weight_rows(weight)
    for first in range(0, genes, step):
        w, c = weight[first : first + step], cross[first : first + step]
        product = matmul(w, gram)
        total += torch.sub(product, c, alpha=2).mul_(w).sum(1).sum(dtype=torch.float64)
        if not with_grad:
            continue
        inner += transposed_matmul(w, w)
        torch.sub(product, c, out=c).addr_(shift[first : first + step], mean).mul_(scale)
    if not dispatch.on_cuda(hidden) and total < GOOD_FIT * spread:  # there asking would wait
        return _mse_by_residual(hidden, weight, bias, target, measured, scale, with_grad)
    loss = (total.clamp(min=0) * scale / 2).to(hidden.dtype)
    if not with_grad:
        return loss, *(hidden.new_empty(0) for _ in range(3))
    grad_hidden = matmul(centered, inner).add_(center @ weight)
    grad_hidden -= _product(target, weight, measured)
    return loss, grad_hidden.mul_(scale), cross, shift.mul_(scale)


def _product(target: Tensor | Csr, weight: Tensor, measured: Tensor | None) -> Tensor:
    """Target weight (N, d), whatever the target holds where a gene is not measured."""
    if isinstance(target, Csr):
        values = target.values
        if measured is not None:
            values = values.where(measured[target.col_index], 0)
        return csr.matmul(target.row_offsets, target.col_index, values, weight)
    if measured is None:
        return matmul(target.to(weight.dtype), weight)
    parts = target.split(targets.dense_block(target)[1])
    parts = [some.where(measured, 0).to(weight.dtype) for some in parts]
    return torch.cat([matmul(some, weight) for some in parts])


def _forms_residuals(hidden: Tensor, genes: int) -> bool:
    """Whether residuals cost less than sums of squares; on CUDA they are formed in one block.

    Several blocks of a sparse target would need to know where each begins, and so to wait.
    """
    rows, dim = hidden.shape
    fits = not dispatch.on_cuda(hidden) or rows * genes <= CUDA_RESIDUALS
    return fits and min(rows, genes) <= dim


def _mse_by_residual(hidden, weight, bias, target, measured, scale, with_grad):
    """Loss and gradients of ``linear_mse`` by way of the residuals, some patches at a time."""
    genes = len(weight)
    if isinstance(target, Csr):  # a compiled call has not been checked, and a column may be another
        check_csr("linear_mse", target, target.col_index)
    grads = tuple(hidden.new_empty(0) for _ in range(3))
    if with_grad:
        grads = (torch.empty_like(hidden), torch.zeros_like(weight), weight.new_zeros(genes))
    total = hidden.new_zeros((), dtype=torch.float64)
    step = len(hidden) if dispatch.on_cuda(hidden) else max(1, RESIDUALS // genes)
    for first in range(0, len(hidden), step):
        own = hidden[first : first + step]
        residual = linear(own, weight, bias)
        if isinstance(target, Csr):
            _subtract_rows(residual, target, first)
        else:
            residual -= target[first : first + step]
        if measured is not None:
            residual.masked_fill_(~measured, 0)
        if with_grad:
            torch.mul(matmul(residual, weight), scale, out=grads[0][first : first + step])
            grads[1].add_(transposed_matmul(residual, own).mul_(scale))
            grads[2].add_(residual.sum(0).mul_(scale))
        total += residual.square_().sum(dtype=torch.float64)
    return (total * scale / 2).to(hidden.dtype), *grads


def _subtract_rows(residual: Tensor, target: Csr, first: int) -> None:
    """Take rows of a sparse target, from ``first`` on, from the residuals (rows, G)."""
    rows, genes = residual.shape
    offsets, begin, end = target.row_offsets, 0, len(target.values)
    if rows < target.shape[0]:
        offsets = offsets[first : first + rows + 1]
        begin, end = int(offsets[0]), int(offsets[-1])
    row = torch.arange(rows, device=residual.device)
    row = row.repeat_interleave(offsets.diff().long(), output_size=end - begin)
    at = row * genes + target.col_index[begin:end]
    residual.view(-1).index_add_(0, at, target.values[begin:end], alpha=-1)


@_linear_mse.register_fake
def _(hidden, weight, bias, row_offsets, col_index, values, measured, with_grad):
    loss = hidden.new_empty(())
    if not with_grad:
        return loss, hidden.new_empty(0), hidden.new_empty(0), hidden.new_empty(0)
    return (
        loss,
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
    )


def _mse_setup(ctx, inputs, output):
    ctx.with_bias = inputs[2] is not None
    ctx.set_materialize_grads(False)  # zeros for the outputs that are gradients: as large as these
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *(t for t in inputs[:3] if t is not None))


def _graph_is_freed() -> bool:
    """Whether the running backward frees what it saved, so that nobody reads it again."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is not None and not kept()


class _Final(torch.autograd.Function):
    """Numbers that depend on tensors in a way that is not differentiated."""

    @staticmethod
    def forward(ctx, value, *tensors):
        return value.view_as(value)

    backward = staticmethod(dispatch.no_second_derivative("linear_mse"))


def _mse_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 8
    grads, inputs = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        grads = [_Final.apply(g, *inputs) for g in grads]
    if type(grad) is Tensor and _graph_is_freed():  # a tracer has tensors of its own
        grads = [g.mul_(grad) for g in grads]  # one of them is as large as the weight
    else:
        grads = [g * grad for g in grads]
    return (*grads[:2], grads[2] if ctx.with_bias else None, *(None,) * 5)


_linear_mse.register_autograd(_mse_backward, setup_context=_mse_setup)
