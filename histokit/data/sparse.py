"""SciPy's sparse matrices as torch tensors."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
import torch


def csr_tensor(matrix: sp.csr_matrix) -> torch.Tensor:
    """A SciPy CSR matrix (N, G) as a torch sparse CSR tensor with int64 indices."""
    indices = (torch.from_numpy(i.astype(np.int64)) for i in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        # Torch says once a process that its CSR tensors are in beta; what is used here is tested.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            *indices, torch.from_numpy(matrix.data), size=matrix.shape, check_invariants=False
        )
