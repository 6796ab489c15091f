"""linear_mse: squared error of a linear layer's predictions, which are never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch, reference, targets
from histokit.ops.dispatch import check_shape
from histokit.ops.gemm import linear, matmul, transposed_matmul
from histokit.ops.targets import (
    Csr,
    center_rows,
    check_target,
    dense_transpose_matmul,
    reference_target,
)


def linear_mse(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | Csr,
    measured: Tensor | None = None,
) -> Tensor:
    """Exact mean squared error of a linear layer over the measured genes, for training.

    hidden (N, d), weight (G, d), bias (G,) or None, target (N, G) dense, ``torch.sparse_csr`` or
    :class:`Csr`, measured (G,) bool -> scalar with gradients to hidden, weight and bias. See
    :func:`histokit.reference.linear_mse`. The gradients are made in the forward pass, where they
    share its products; no (N, G) tensor exists. A dense target must be finite everywhere, also in
    genes that are not measured. NaN where N or the number of measured genes is zero.
    """
    op = "linear_mse"
    target = check_target(op, hidden, weight, bias, target)
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
            loss = reference.linear_mse(h, w, b, reference_target(target, acc), measured)
            return loss.to(hidden.dtype)
        with_grad = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (hidden, weight, bias)
        )
        sparse = isinstance(target, Csr)
        parts = (*target[:2], target.values.to(acc)) if sparse else (None, None, target)
        loss = torch.ops.histokit.linear_mse(h, w, b, *parts, measured, with_grad)[0]
        return loss.to(hidden.dtype)


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
    scale = 2 / (rows * (genes if measured is None else measured.sum().to(hidden.dtype)))
    if min(rows, genes) <= hidden.shape[1]:
        sparse = None if row_offsets is None else (row_offsets, col_index)
        return _mse_by_residual(hidden, weight, bias, sparse, values, measured, scale, with_grad)
    mean, centered = center_rows(hidden)
    gram = transposed_matmul(centered, centered)
    if row_offsets is None:
        cross, moments = dense_transpose_matmul(values, centered)
    else:
        cross, moments = torch.ops.histokit.csr_transpose_matmul(
            row_offsets, col_index, values, centered, genes
        )
    masked = weight if measured is None else weight * measured[:, None]
    keep = 1 if measured is None else measured
    center = weight @ mean if bias is None else torch.addmv(bias, weight, mean)  # c
    offset = (center.double() - moments[0]) * keep
    total = (moments[1] * keep).sum() + rows * offset.square().sum()
    inner = torch.zeros_like(gram)  # W^T W
    shift = (offset * rows).to(hidden.dtype)
    for first in range(0, genes, targets.ROWS):
        w, c = masked[first : first + targets.ROWS], cross[first : first + targets.ROWS]
        product = matmul(w, gram)
        total += torch.sub(product, c, alpha=2).mul_(w).sum(1).sum(dtype=torch.float64)
        if not with_grad:
            continue
        inner += transposed_matmul(w, w)
        torch.sub(product, c, out=c).addr_(shift[first : first + targets.ROWS], mean).mul_(scale)
    loss = (total * scale / 2).to(hidden.dtype)
    if not with_grad:
        return loss, *(hidden.new_empty(0) for _ in range(3))
    grad_hidden = matmul(centered, inner).add_(center @ masked)
    if row_offsets is None:
        grad_hidden.sub_(matmul(values.to(masked.dtype), masked))
    else:
        grad_hidden.sub_(torch.ops.histokit.csr_matmul(row_offsets, col_index, values, masked))
    if measured is not None:
        cross.mul_(measured[:, None])
    return loss, grad_hidden.mul_(scale), cross, shift.mul_(scale)


def _mse_by_residual(hidden, weight, bias, sparse, values, measured, scale, with_grad):
    """Loss and gradients of ``linear_mse`` by way of the (N, G) residuals."""
    residual = linear(hidden, weight, bias)
    if sparse is None:
        residual -= values
    else:
        row_offsets, col_index = sparse
        row = torch.arange(len(residual), device=hidden.device)
        row = row.repeat_interleave(row_offsets.diff().long(), output_size=len(values))
        residual.view(-1).index_add_(0, row * len(weight) + col_index, values, alpha=-1)
    if measured is not None:
        residual *= measured
    grads = tuple(hidden.new_empty(0) for _ in range(3))
    if with_grad:
        grads = (
            matmul(residual, weight).mul_(scale),
            transposed_matmul(residual, hidden).mul_(scale),
            residual.sum(0).mul_(scale),
        )
    total = residual.square_().sum(dtype=torch.float64)
    return (total * scale / 2).to(hidden.dtype), *grads


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
    ctx.save_for_backward(*output[1:])


def _graph_is_freed() -> bool:
    """Whether the running backward frees what it saved, so that nobody reads it again."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return kept is not None and not kept()


def _mse_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 8
    grads = ctx.saved_tensors
    if type(grad) is Tensor and _graph_is_freed():  # a tracer has tensors of its own
        grads = [g.mul_(grad) for g in grads]  # one of them is as large as the weight
    else:
        grads = [g * grad for g in grads]
    return (*grads[:2], grads[2] if ctx.with_bias else None, *(None,) * 5)


_linear_mse.register_autograd(_mse_backward, setup_context=_mse_setup)
