"""The cases of bench_ops.py that have a linear head over the whole transcriptome."""

from __future__ import annotations

import numpy as np
import torch
from op_case import Case
from torch.nn import functional as F

from histokit import ops
from histokit.profile import rivals


def head(rows: int, genes: int, device: str):
    """A linear head and a target of which 8 % is not zero, dense and sparse."""
    rng = np.random.default_rng(0)
    hidden = torch.randn(rows, 256, device=device)
    weight = torch.randn(genes, 256, device=device) / 16
    bias = torch.randn(genes, device=device)
    target = torch.zeros(rows, genes)
    for n in range(rows):  # distinct genes of each spot
        own = torch.from_numpy(np.flatnonzero(rng.random(genes, dtype=np.float32) < 0.08))
        target[n, own] = torch.rand(len(own)) * 3
    target = target.to(device)
    return hidden, weight, bias, target, target.to_sparse_csr()


def pearson_of_head(device: str, scale: float) -> Case:
    """Every gene's correlation of a linear head, without its predictions."""
    rows, genes = int(10_000 * scale), 38_982
    hidden, weight, bias, target, sparse = head(rows, genes, device)

    def dense():
        return rivals.pearson_two_pass(F.linear(hidden, weight, bias), target)

    def by_blocks():
        return rivals.head_pearson_by_blocks(hidden, weight, bias, target)

    nnz, dim = sparse.values().numel(), hidden.shape[1]
    return Case(
        f"N {rows}, G {genes}, d {dim}, 8 %",
        lambda: ops.linear_pearson(hidden, weight, bias, sparse)[0],
        {"dense head, then Pearson": dense},
        {"blocks of genes": by_blocks},
        {"dense head, then Pearson": 8},
        "matrix",
        2.0 * (nnz * dim + genes * dim**2 + rows * dim**2),
        {"dense head, then Pearson": 20},
        once=("dense head, then Pearson",),
        graph=False,  # it would sort the target in every call
    )


def loss_of_head(device: str, scale: float) -> Case:
    """Loss of the whole-transcriptome head, forward and backward."""
    rows, genes = int(3_000 * scale), 38_982
    *parameters, target, sparse = head(rows, genes, device)
    parameters = [p.requires_grad_() for p in parameters]

    def run(loss):
        with torch.enable_grad():
            return torch.autograd.grad(loss(), parameters)

    nnz, dim = sparse.values().numel(), parameters[0].shape[1]
    return Case(
        f"N {rows}, G {genes}, d {dim}, 8 %, forward + backward",
        lambda: run(lambda: ops.linear_mse(*parameters, sparse)),
        {"F.linear + mse_loss": lambda: run(lambda: F.mse_loss(F.linear(*parameters), target))},
        {
            "blocks of genes, gradients by hand": lambda: tuple(
                rivals.head_loss_by_blocks(*(p.detach() for p in parameters), target)[1:]
            )
        },
        {"F.linear + mse_loss": 5},
        "matrix",
        2.0 * (2 * nnz * dim + 2 * genes * dim**2 + 2 * rows * dim**2),
        {"F.linear + mse_loss": 10},
        graph=False,
    )


def sparse_product(device: str, scale: float) -> Case:
    """The product of a sparse target, turned, with the hidden layer: what both ops above need."""
    rows, genes = int(3_000 * scale), 38_982
    hidden, _, _, target, sparse = head(rows, genes, device)
    turned = target.T.to_sparse_csr()
    given = sparse.crow_indices(), sparse.col_indices(), sparse.values()
    nnz, dim = sparse.values().numel(), hidden.shape[1]
    return Case(
        f"N {rows}, G {genes}, d {dim}, 8 %",
        lambda: torch.ops.histokit.csr_transpose_matmul(*given, hidden, genes)[0],
        {"dense target": lambda: target.T @ hidden},
        {"torch's sparse product, turned ahead": lambda: turned @ hidden},
        {},
        "matrix",
        2.0 * nnz * dim,
        graph=False,
    )
