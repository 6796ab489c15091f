"""Csr, a sparse target: the check of its indices, its entries by column, its products.

On CUDA the entries are sorted by column for ``csr_transpose_matmul``; what comes of that, like the
answer of the check, is kept as long as the target.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from histokit.ops import dispatch, reference


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


class ByColumn(NamedTuple):
    """The entries of a target in the order of columns, and of rows within one."""

    offsets: Tensor  # (G + 1,)
    rows: Tensor  # (nnz,) the row of an entry
    order: Tensor  # (nnz,) its place among the target's values


@dataclasses.dataclass
class _Sound:
    """A target whose indices were found in order: what they were then, and what came of them."""

    state: tuple
    by_column: ByColumn | None = None


# What has been checked, by the tensor that was given.
_sound = WeakIdKeyDictionary()
_FAULTS = (
    "holds column {column} twice; add such entries up (SciPy: sum_duplicates(); torch: "
    "to_sparse_coo().coalesce().to_sparse_csr())",
    "has columns that do not ascend; sort them (SciPy: sort_indices())",
    "has column {column}, which is not in [0, {genes})",
    "begins or ends wrongly: row_offsets must ascend from 0 to {nnz}, the number of values",
)


def check_csr(op: str, target: Csr, given: Tensor) -> _Sound | None:
    """Raise ValueError unless columns ascend strictly in range; once for each tensor ``given``.

    Returns what is known of the target; None where it may change without being noticed.
    """
    state = _state(target)
    known = _sound.get(given) if state else None
    if known and known.state == state:
        _sound[target.col_index] = known  # of a sparse tensor, a new one in every call
        return known
    for name, tensor in zip(("row_offsets", "col_index"), target[:2], strict=True):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{op}: target's {name} must be int32 or int64, got {tensor.dtype}")
    if len(target.values) and target.shape[0] == 0:
        _refuse(op, target, None)
    serve = dispatch.kernels_serve(op, target.values)
    values = target.values.detach()
    arguments = *target[:2], values.float() if values.itemsize < 4 else values, target.num_cols
    if not dispatch.host_checks(op, target.values):
        assert_sound(*arguments)
    else:
        faults = (torch.ops.histokit if serve else reference).csr_check(*arguments)
        if bool(faults.any()):
            _refuse(op, target, faults)
    if state is None:
        return None
    _sound[given] = _sound[target.col_index] = known = _Sound(state)
    return known


def assert_sound(*arguments: Tensor | int) -> None:
    """On CUDA: a device-side assertion where ``csr_check`` would find a fault."""
    torch.ops.histokit.csr_assert(*arguments)


def _state(target: Csr) -> tuple | None:
    """What changes when the indices do; None where nothing would.

    What a CUDA graph records has to be recorded whole: when it runs again, indices may be others.
    """
    indices = target[:2]
    if any(t.is_inference() for t in indices):
        return None
    stream = None
    if target.values.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return None
        stream = torch.cuda.current_stream(target.values.device).cuda_stream
    return (*((t.data_ptr(), t._version) for t in indices), target.num_cols, stream)


def _refuse(op: str, target: Csr, faults: Tensor | None) -> None:
    """Raise ValueError for the first row that has a fault; without rows, for the entries."""
    row = 0 if faults is None else int(faults.argmax())
    fault = 4 if faults is None else int(faults[row])
    columns = target.col_index[:0]
    if fault < 4:
        columns = target.col_index[int(target.row_offsets[row]) : int(target.row_offsets[row + 1])]
    wrong = (columns < 0) | (columns >= target.num_cols)
    if fault == 1:
        wrong = torch.cat([columns[:1] < 0, columns.diff() == 0])
    column = int(columns[wrong][0]) if wrong.any() else None
    words = _FAULTS[fault - 1].format(column=column, genes=target.num_cols, nnz=len(target.values))
    raise ValueError(f"{op}: row {row} of the sparse target {words}")


def by_column(target: Csr) -> ByColumn:
    """Its entries column by column: a stable sort, done once for each target."""
    known = check_csr("csr_transpose_matmul", target, target.col_index)
    if known is None:
        return _sort_by_column(target)
    if known.by_column is None:
        known.by_column = _sort_by_column(target)
    return known.by_column


def _sort_by_column(target: Csr) -> ByColumn:
    entries, device = len(target.values), target.values.device
    most = max(entries, *target.shape)
    kind = torch.int32 if most <= torch.iinfo(torch.int32).max else torch.int64
    rows = torch.arange(target.shape[0], dtype=kind, device=device)
    rows = rows.repeat_interleave(target.row_offsets.diff(), output_size=entries)
    columns, order = target.col_index.to(kind).sort(stable=True)
    bounds = torch.arange(target.num_cols + 1, dtype=kind, device=device)
    offsets = torch.searchsorted(columns, bounds, out_int32=kind == torch.int32)
    return ByColumn(offsets, rows[order], order.to(kind))


def matmul(row_offsets: Tensor, col_index: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """The product of a sparse matrix (R, C) and dense (C, d): (R, d), on tensor cores if asked."""
    return torch.ops.histokit.csr_matmul(row_offsets, col_index, values, dense, dispatch.products())


def _csr_matmul_backward(ctx, grad):
    genes, row_offsets, col_index, values = ctx.genes, *ctx.saved_tensors
    op = torch.ops.histokit.csr_transpose_matmul
    return None, None, None, op(row_offsets, col_index, values, grad, genes)[0], None


def _csr_setup(ctx, inputs, output):
    ctx.genes = inputs[3].shape[0]
    ctx.save_for_backward(*inputs[:3])


def _csr_transpose_backward(ctx, grad, _):
    return None, None, None, matmul(*ctx.saved_tensors, grad), None


def _csr_transpose_fake(row_offsets, col_index, values, dense, num_cols):
    return (
        dense.new_empty(num_cols, dense.shape[1]),
        dense.new_empty(2, num_cols, dtype=torch.float64),
    )


def _csr_transpose_cuda(row_offsets, col_index, values, dense, num_cols):
    """By the row kernels, on the entries in the order of columns."""
    offsets, rows, order = by_column(Csr(row_offsets, col_index, values, num_cols))
    values = values.index_select(0, order)
    out = matmul(offsets, rows, values, dense)
    return out, torch.ops.histokit.csr_moments(offsets, values, row_offsets.shape[0] - 1)


if dispatch.HAS_KERNELS:
    torch.library.register_fake(
        "histokit::csr_matmul",
        lambda row_offsets, col_index, values, dense, products: dense.new_empty(
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
