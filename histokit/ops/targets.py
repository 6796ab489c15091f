"""Dense and sparse targets of linear_pearson and linear_mse: their checks and products.

Both ops need, with ``Hc = H - mean(H)``, only ``Hc^T Hc`` (d, d), ``Y^T Hc`` (G, d), the moments of
Y, and small dense products. Sparse targets go through the CSR kernels, dense ones through GEMM in
blocks of genes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from histokit.ops import dispatch, reference
from histokit.ops.dispatch import check_float, check_shape, check_tensor
from histokit.ops.gemm import matmul, transposed_matmul

GENES = 1024  # genes of a dense target that are centered at a time
ROWS = 1024  # rows of it, and genes of the weight, that are worked on at a time, in the cache


class Csr(NamedTuple):
    """A sparse (N, G) target as plain tensors, for ``torch.compile``, which takes no sparse ones.

    row_offsets (N + 1,) and col_index (nnz,) of one type, int32 or int64; columns ascend in a row,
    none twice.
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


def check_target(op: str, hidden, weight, bias, target) -> Tensor | Csr:
    """Check the arguments that both ops share; a sparse tensor comes back as a Csr."""
    given = target.col_index if isinstance(target, Csr) else target
    if not isinstance(target, Csr):
        if hasattr(target, "indptr"):
            raise ValueError(
                f"{op}: target must be a torch.Tensor or an ops.Csr, got a SciPy matrix; make an "
                "ops.Csr of its indptr, indices and data after sum_duplicates()"
            )
        check_tensor(op, "target", target)
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
    if sparse and dispatch.has_values(target.values):
        check_csr(op, target, given)
    return target


# What has been checked, by the tensor that was given: indices and sizes as they were then.
_sound = WeakIdKeyDictionary()
_FAULTS = (
    "holds column {column} twice; add such entries up (SciPy: sum_duplicates(); torch: "
    "to_sparse_coo().coalesce().to_sparse_csr())",
    "has columns that do not ascend; sort them (SciPy: sort_indices())",
    "has column {column}, which is not in [0, {genes})",
    "begins or ends wrongly: row_offsets must ascend from 0 to {nnz}, the number of values",
)


def check_csr(op: str, target: Csr, given: Tensor) -> None:
    """Raise ValueError unless columns ascend strictly in range; once for each tensor ``given``."""
    indices = target.row_offsets, target.col_index
    state = None
    if not any(t.is_inference() for t in indices):
        state = (*((t.data_ptr(), t._version) for t in indices), target.num_cols)
        if _sound.get(given) == state:
            _sound[target.col_index] = state  # of a sparse tensor, a new one in every call
            return
    for name, tensor in zip(("row_offsets", "col_index"), indices, strict=True):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{op}: target's {name} must be int32 or int64, got {tensor.dtype}")
    serve = dispatch.kernels_serve(op, target.values)
    find = torch.ops.histokit.csr_check if serve else reference.csr_check
    values = target.values.detach()
    faults = find(*indices, values.float() if values.itemsize < 4 else values, target.num_cols)
    if (len(values) and len(faults) == 0) or bool(faults.any()):
        row = int(faults.argmax())
        fault = int(faults[row]) if len(faults) else 4
        begin, end = (int(target.row_offsets[row + i]) if len(faults) else 0 for i in (0, 1))
        columns = target.col_index[begin:end] if fault < 4 else indices[1][:0]
        wrong = (columns < 0) | (columns >= target.num_cols)
        if fault == 1:
            wrong = torch.cat([columns[:1] < 0, columns.diff() == 0])
        column = int(columns[wrong][0]) if wrong.any() else None
        words = _FAULTS[fault - 1].format(column=column, genes=target.num_cols, nnz=len(values))
        raise ValueError(f"{op}: row {row} of the sparse target {words}")
    if state is not None:
        _sound[given] = _sound[target.col_index] = state


def reference_target(target: Tensor | Csr, dtype: torch.dtype) -> Tensor:
    """The target as the reference takes it."""
    return (target.to_sparse() if isinstance(target, Csr) else target).to(dtype)


def center_rows(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and hidden minus it (N, d); twice, so that the rest sums to zero to rounding."""
    mean = hidden.mean(0)
    centered = hidden - mean
    rest = centered.mean(0)
    return mean + rest, centered.sub_(rest) if not centered.requires_grad else centered - rest


def transposed_product(target: Tensor | Csr, centered: Tensor) -> tuple[Tensor, Tensor]:
    """target^T centered (G, d), and moments of the target (2, G) float64: mean and squares."""
    if isinstance(target, Csr):
        return torch.ops.histokit.csr_transpose_matmul(
            target.row_offsets, target.col_index, target.values.to(centered.dtype), centered,
            target.num_cols,
        )  # fmt: skip
    return torch.ops.histokit.dense_transpose_matmul(target, centered)


@torch.library.custom_op("histokit::dense_transpose_matmul", mutates_args=())
def dense_transpose_matmul(target: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """(target - mean)^T dense (G, d) and the moments of target (2, G) float64.

    By blocks of genes and rows: each is centered, summed and multiplied while it is in the cache.
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
            centered = some.to(dense.dtype) - mean
            rest += centered.sum(0)
            out[block] += transposed_matmul(centered, own)
            moments[1, block] += centered.square_().sum(0)
        rest /= rows
        moments[0, block] = mean + rest
        moments[1, block] -= rows * rest.square()
    return out, moments


@dense_transpose_matmul.register_fake
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


dense_transpose_matmul.register_autograd(_dense_backward, setup_context=_dense_setup)


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
    target = Csr(row_offsets, col_index, values, num_cols)
    check_csr("csr_transpose_matmul", target, col_index)  # a compiled call has not been checked
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
        "histokit::csr_check",
        lambda row_offsets, col_index, values, num_cols: values.new_empty(
            row_offsets.shape[0] - 1, dtype=torch.uint8
        ),
    )
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
