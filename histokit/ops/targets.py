"""Dense and sparse targets of linear_pearson and linear_mse: their checks and products.

Both ops need, with ``Hc = H - mean(H)``, only ``Hc^T Hc`` (d, d), ``Y^T Hc`` (G, d), the moments of
Y, and small dense products. Sparse targets go through the CSR kernels, dense ones through GEMM in
blocks of genes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from histokit.ops import dispatch
from histokit.ops.csr import Csr, check_csr
from histokit.ops.dispatch import check_float, check_shape, check_tensor
from histokit.ops.gemm import matmul, transposed_matmul

GENES = 1024  # genes of a dense target that are centered at a time
ROWS = 1024  # rows of it, and genes of the weight, that are worked on at a time, in the cache
CUDA_GENES = CUDA_ROWS = 1 << 16  # a whole transcriptome: there launches cost more than they save
CUDA_ENTRIES = 1 << 28  # of a dense block on CUDA: 1 GB of float32


def weight_rows(like: Tensor, width: int = 1) -> int:
    """Genes of the weight that are worked on at a time, with results of this width."""
    return max(1, min(CUDA_ROWS, CUDA_ENTRIES // width)) if dispatch.on_cuda(like) else ROWS


def dense_block(like: Tensor) -> tuple[int, int]:
    """Genes and rows of a dense target that are worked on at a time."""
    if not dispatch.on_cuda(like):
        return GENES, ROWS
    return CUDA_GENES, max(1, CUDA_ENTRIES // max(1, min(like.shape[1], CUDA_GENES)))


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
    most_genes, most_rows = dense_block(target)
    for first in range(0, genes if rows else 0, most_genes):
        block = slice(first, first + most_genes)
        mean = target[:, block].mean(0, dtype=dense.dtype)
        rest = torch.zeros_like(moments[0, block])
        parts = zip(target[:, block].split(most_rows), dense.split(most_rows), strict=True)
        for some, own in parts:
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
