"""linear_pearson and linear_mse: a linear layer's predictions scored without forming them.

Both need, with ``Hc = H - mean(H)``, only ``Hc^T Hc`` (d, d), ``Y^T Hc`` (G, d), the moments of Y,
and small dense products. Sparse targets go through the CSR kernels, dense ones through torch's GEMM
in blocks of genes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_float, check_shape
from histokit.ops.gemm import linear, matmul, transposed_matmul

GENES = 1024  # genes of a dense target that are centred at a time
ROWS = 1024  # rows of it, and genes of the weight, that are worked on at a time, in the cache


class Csr(NamedTuple):
    """A sparse (N, G) target as plain tensors, for ``torch.compile``, which takes no sparse ones.

    row_offsets (N + 1,) and col_index (nnz,) of one type, int32 or int64; columns ascend in a row.
    """

    row_offsets: Tensor
    col_index: Tensor
    values: Tensor
    num_cols: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return self.row_offsets.shape[0] - 1, self.num_cols

    def to_sparse(self) -> Tensor:
        """The same as a ``torch.sparse_csr`` tensor."""
        return torch.sparse_csr_tensor(*self[:3], size=self.shape, check_invariants=False)


def _checked(op: str, hidden, weight, bias, target) -> Tensor | Csr:
    """Check the arguments that both ops share; a sparse tensor comes back as a Csr."""
    if isinstance(target, Tensor) and target.layout == torch.sparse_csr:
        check_shape(op, "target", target, (None, None), "(N, G)")
        target = Csr(target.crow_indices(), target.col_indices(), target.values(), target.shape[1])
    sparse = isinstance(target, Csr)
    if not sparse and target.layout != torch.strided:
        raise ValueError(f"{op}: target must be dense or sparse CSR, got {target.layout}")
    values = target.values if sparse else target
    check_float(op, hidden=hidden, weight=weight, bias=bias, target=values)
    check_shape(op, "hidden", hidden, (None, None), "(N, d)")
    check_shape(op, "weight", weight, (None, hidden.shape[1]), "(G, d)")
    rows, genes = hidden.shape[0], weight.shape[0]
    check_shape(op, "bias", bias, (genes,), "(G,)")
    if tuple(target.shape) != (rows, genes):
        raise ValueError(
            f"{op}: target must be (N, G) = ({rows}, {genes}), got {tuple(target.shape)}"
        )
    if sparse and (target.col_index.dtype != target.row_offsets.dtype):
        raise ValueError(
            f"{op}: target's indices must have one type, got {target.row_offsets.dtype} and "
            f"{target.col_index.dtype}"
        )
    return target


def _reference_target(target: Tensor | Csr, dtype: torch.dtype) -> Tensor:
    return (target.to_sparse() if isinstance(target, Csr) else target).to(dtype)


def _centred(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and hidden minus it (N, d); twice, so that the rest sums to zero to rounding."""
    mean = hidden.mean(0)
    centred = hidden - mean
    rest = centred.mean(0)
    return mean + rest, centred.sub_(rest) if not centred.requires_grad else centred - rest


# ---- linear_pearson ----------------------------------------------------------------------------


def linear_pearson(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | Csr
) -> tuple[Tensor, Tensor]:
    """Correlation and mean squared error of a linear layer's predictions, gene by gene.

    hidden (N, d), weight (G, d), bias (G,) or None, target (N, G) dense, ``torch.sparse_csr`` or
    :class:`Csr` -> r (G,), NaN where either side is constant, and mse (G,). See
    :func:`histokit.reference.linear_pearson`. Cost nnz d + G d^2 and memory G d; the (N, G)
    predictions never exist. Differentiable in hidden, weight and bias.
    """
    op = "linear_pearson"
    target = _checked(op, hidden, weight, bias, target)
    acc = dispatch.acc_type(hidden)
    with dispatch.full_precision(hidden):
        h, w = hidden.to(acc), weight.to(acc)
        b = None if bias is None else bias.to(acc)
        if not dispatch.kernels_serve(op, hidden):
            r, mse = reference.linear_pearson(h, w, b, _reference_target(target, acc))
            return r.to(hidden.dtype), mse.to(hidden.dtype)
        mean, centred = _centred(h)
        cross, moments = _transposed_product(target, centred)
        cov = (cross * w).sum(1, dtype=torch.float64)
        wide = centred.double()
        m2_p = torch.ops.histokit.quadratic_form(w, wide.T @ wide)
        offset = (w @ mean if b is None else torch.addmv(b, w, mean)).double() - moments[0]
        mean_p = offset + moments[0]
        constant = reference.is_constant(m2_p, mean_p, h.shape[0], acc)
        constant = constant | reference.is_constant(moments[1], moments[0], h.shape[0], acc)
        r = cov / (m2_p * moments[1]).masked_fill(constant, 1).sqrt()
        r = r.clamp(-1, 1).masked_fill(constant, torch.nan)
        mse = ((m2_p - 2 * cov + moments[1]) / h.shape[0] + offset.square()).clamp(min=0)
        return r.to(hidden.dtype), mse.to(hidden.dtype)


def _transposed_product(target: Tensor | Csr, centred: Tensor) -> tuple[Tensor, Tensor]:
    """target^T centred (G, d), and moments of the target (2, G) float64: mean and squares."""
    if isinstance(target, Csr):
        return torch.ops.histokit.csr_transpose_matmul(
            target.row_offsets, target.col_index, target.values.to(centred.dtype), centred,
            target.num_cols,
        )  # fmt: skip
    return torch.ops.histokit.dense_transpose_matmul(target, centred)


@torch.library.custom_op("histokit::quadratic_form", mutates_args=())
def _quadratic_form(weight: Tensor, gram: Tensor) -> Tensor:
    """W . A w for the rows w of weight (G, d) and A (d, d) float64, positive semidefinite -> (G,).

    As |A^(1/2) w|^2: w . (A w) loses twice as many digits when w lies where A is small.
    """
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp(min=0).sqrt()).to(weight.dtype)
    parts = [matmul(w, root).square().sum(1, dtype=torch.float64) for w in weight.split(ROWS)]
    return torch.cat(parts)


@_quadratic_form.register_fake
def _(weight, gram):
    return gram.new_empty(weight.shape[0])


def _quadratic_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _quadratic_backward(ctx, grad):
    weight, gram = ctx.saved_tensors
    with dispatch.full_precision(weight):
        scaled = weight * grad.to(weight.dtype)[:, None]
        inner = transposed_matmul(scaled, weight)
        return 2 * matmul(scaled, gram.to(weight.dtype)), inner.to(gram.dtype)


_quadratic_form.register_autograd(_quadratic_backward, setup_context=_quadratic_setup)


@torch.library.custom_op("histokit::dense_transpose_matmul", mutates_args=())
def _dense_transpose_matmul(target: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """(target - mean)^T dense (G, d) and the moments of target (2, G) float64.

    By blocks of genes and rows: each is centred, summed and multiplied while it is in the cache.
    The rounding of the mean is found on the way; it does not change the product, for the columns
    of dense sum to zero.
    """
    rows, genes = target.shape
    out = dense.new_zeros(genes, dense.shape[1])
    moments = dense.new_zeros(2, genes, dtype=torch.float64)
    for first in range(0, genes if rows else 0, GENES):
        block = slice(first, first + GENES)
        mean = target[:, block].mean(0, dtype=dense.dtype)
        rest = torch.zeros_like(moments[0, block])
        for some, own in zip(target[:, block].split(ROWS), dense.split(ROWS), strict=True):
            centred = some.to(dense.dtype) - mean
            rest += centred.sum(0)
            out[block] += transposed_matmul(centred, own)
            moments[1, block] += centred.square_().sum(0)
        rest /= rows
        moments[0, block] = mean + rest
        moments[1, block] -= rows * rest.square()
    return out, moments


@_dense_transpose_matmul.register_fake
def _(target, dense):
    genes = target.shape[1]
    return (
        dense.new_empty(genes, dense.shape[1]),
        dense.new_empty(2, genes, dtype=torch.float64),
    )


def _dense_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output[1])


def _dense_backward(ctx, grad, _):
    target, moments = ctx.saved_tensors
    with dispatch.full_precision(grad):
        shift = moments[0].to(grad.dtype) @ grad
        return None, matmul(target.to(grad.dtype), grad) - shift


_dense_transpose_matmul.register_autograd(_dense_backward, setup_context=_dense_setup)


# ---- linear_mse --------------------------------------------------------------------------------


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
    target = _checked(op, hidden, weight, bias, target)
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
            loss = reference.linear_mse(h, w, b, _reference_target(target, acc), measured)
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
    mean, centred = _centred(hidden)
    gram = transposed_matmul(centred, centred)
    if row_offsets is None:
        cross, moments = _dense_transpose_matmul(values, centred)
    else:
        cross, moments = torch.ops.histokit.csr_transpose_matmul(
            row_offsets, col_index, values, centred, genes
        )
    masked = weight if measured is None else weight * measured[:, None]
    keep = 1 if measured is None else measured
    centre = weight @ mean if bias is None else torch.addmv(bias, weight, mean)  # c
    offset = (centre.double() - moments[0]) * keep
    total = (moments[1] * keep).sum() + rows * offset.square().sum()
    inner = torch.zeros_like(gram)  # W^T W
    shift = (offset * rows).to(hidden.dtype)
    for first in range(0, genes, ROWS):
        w, c = masked[first : first + ROWS], cross[first : first + ROWS]
        product = matmul(w, gram)
        total += torch.sub(product, c, alpha=2).mul_(w).sum(1).sum(dtype=torch.float64)
        if not with_grad:
            continue
        inner += transposed_matmul(w, w)
        torch.sub(product, c, out=c).addr_(shift[first : first + ROWS], mean).mul_(scale)
    loss = (total * scale / 2).to(hidden.dtype)
    if not with_grad:
        return loss, *(hidden.new_empty(0) for _ in range(3))
    grad_hidden = matmul(centred, inner).add_(centre @ masked)
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


# ---- the sparse products -----------------------------------------------------------------------


def _csr_matmul_backward(ctx, grad):
    genes, row_offsets, col_index, values = ctx.genes, *ctx.saved_tensors
    op = torch.ops.histokit.csr_transpose_matmul
    return None, None, None, op(row_offsets, col_index, values, grad, genes)[0]


def _csr_setup(ctx, inputs, output):
    ctx.genes = inputs[3].shape[0]
    ctx.save_for_backward(*inputs[:3])


def _csr_transpose_backward(ctx, grad, _):
    grad_dense = torch.ops.histokit.csr_matmul(*ctx.saved_tensors, grad)
    return None, None, None, grad_dense, None


def _csr_transpose_fake(row_offsets, col_index, values, dense, num_cols):
    return (
        dense.new_empty(num_cols, dense.shape[1]),
        dense.new_empty(2, num_cols, dtype=torch.float64),
    )


def _csr_transpose_cuda(row_offsets, col_index, values, dense, num_cols):
    """Sort the entries by column, stably, and use the row kernels on what results."""
    rows = torch.arange(row_offsets.shape[0] - 1, device=values.device)
    rows = rows.repeat_interleave(row_offsets.diff(), output_size=values.shape[0])
    columns, order = col_index.sort(stable=True)
    offsets = torch.searchsorted(columns, torch.arange(num_cols + 1, device=values.device))
    values = values[order]
    out = torch.ops.histokit.csr_matmul(offsets, rows[order], values, dense)
    return out, torch.ops.histokit.csr_moments(offsets, values, row_offsets.shape[0] - 1)


if dispatch.HAS_KERNELS:
    torch.library.register_fake(
        "histokit::csr_matmul",
        lambda row_offsets, col_index, values, dense: dense.new_empty(
            row_offsets.shape[0] - 1, dense.shape[1]
        ),
    )
    torch.library.register_fake("histokit::csr_transpose_matmul", _csr_transpose_fake)
    torch.library.register_fake(
        "histokit::csr_moments",
        lambda row_offsets, values, num_cols: values.new_empty(
            2, row_offsets.shape[0] - 1, dtype=torch.float64
        ),
    )
    torch.library.register_autograd(
        "histokit::csr_matmul", _csr_matmul_backward, setup_context=_csr_setup
    )
    torch.library.register_autograd(
        "histokit::csr_transpose_matmul", _csr_transpose_backward, setup_context=_csr_setup
    )
if dispatch.HAS_CUDA:
    torch.library.impl("histokit::csr_transpose_matmul", "CUDA")(_csr_transpose_cuda)
