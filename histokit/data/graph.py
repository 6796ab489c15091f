"""Which spots are neighbors, what stands around a patch, and genes that neighbors share.

Graphs and statistics are squidpy's.
"""

from __future__ import annotations

import logging
import warnings

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree

from histokit.core.errors import InputError

CHOICES = ("none", "mean", "attention")
# Reach of a graph in pitches. TOUCHING lies between a neighbor and the diagonal, 1.41, of a square
# array: 4 neighbors there and 6 on a hexagonal one. AROUND takes in the diagonals: 8 and 6.
TOUCHING, AROUND = 1.3, 1.5
SHARPNESS = 4.0  # of attention: how much more a patch that looks the same counts than an unlike one


def spot_graph(centers: np.ndarray, reach: float) -> sp.csr_matrix:
    """Which spots are nearer than ``reach`` times the median distance to the nearest spot.

    By ``squidpy.gr.spatial_neighbors_radius``. The nearest k spots would be the same inside
    a hexagonal array, but not at its edge, and on a square one would leave the choice among
    diagonals to the order of the spots.

    Args:
        centers: (N, 2) spot centers x, y in any unit.
        reach: ``TOUCHING`` or ``AROUND``.

    Returns:
        (N, N) symmetric CSR of ones, without a diagonal; empty for a single spot.

    Raises:
        InputError: coordinates that are not finite.
    """
    count = len(centers)
    if not np.isfinite(centers).all():
        raise InputError("spots have no coordinates, or some that are not finite")
    if count < 2:
        return sp.csr_matrix((count, count))
    pitch = np.median(cKDTree(centers).query(centers, k=2)[0][:, 1])
    if pitch == 0:
        raise InputError("most spots lie at the place of another one")
    data = anndata.AnnData(obsm={"spatial": np.asarray(centers, dtype=np.float64)})
    found = _squidpy().gr.spatial_neighbors_radius(data, radius=float(reach * pitch), copy=True)
    graph = sp.csr_matrix(found.connectivities)
    graph.sort_indices()
    return graph


def morans_i(y: sp.csr_matrix, graph: sp.csr_matrix) -> pd.DataFrame:
    """Moran's I of each gene and its one-tailed p-value under the assumption of normality.

    By ``squidpy.gr.spatial_autocorr`` with its defaults, which scale the graph's rows to sum to 1.

    Args:
        y: (N, G) CSR expression.
        graph: (N, N) neighbors.

    Returns:
        One row a gene: ``I``, ``p``; NaN for a constant gene.

    Raises:
        InputError: a graph without edges.
    """
    if not graph.nnz:
        raise InputError(f"{y.shape[0]} spots of which none has a neighbor have no pattern")
    data = anndata.AnnData(sp.csr_matrix(y), obsp={"spatial_connectivities": graph})
    constant = data.X.max(axis=0).toarray().ravel() == data.X.min(axis=0).toarray().ravel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant genes, which are NaN below
        found = (
            _squidpy()
            .gr.spatial_autocorr(data, mode="moran", copy=True, show_progress_bar=False)
            .loc[data.var_names]
        )
    table = pd.DataFrame({"I": found["I"].to_numpy(), "p": found["pval_norm"].to_numpy()})
    table[constant] = np.nan
    return table


def with_neighbors(features: torch.Tensor, centers: np.ndarray, how: str) -> torch.Tensor:
    """Set a weighted mean of each spot's neighbors beside its own features.

    ``mean`` weighs all neighbors alike. ``attention`` weighs them by likeness: a softmax of the
    correlation between patches whose features are standardized over the slide. A spot without
    neighbors gets its own features. Neither has parameters, so any model may follow.

    Args:
        features: (N, D) of one slide.
        centers: (N, 2) spot centers.
        how: ``none``, ``mean`` or ``attention``.

    Returns:
        (N, D), or (N, 2 D) with neighbors.
    """
    if how == "none":
        return features
    x, graph = features.numpy(), spot_graph(centers, AROUND).astype(np.float32)
    if how == "attention" and len(x):
        z = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)
        z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-6)
        rows, columns = graph.nonzero()
        likeness = np.einsum("nd,nd->n", z[rows], z[columns])
        weight = np.exp(SHARPNESS * likeness)
        graph = sp.csr_matrix((weight, (rows, columns)), shape=graph.shape)
    total = np.asarray(graph.sum(axis=1)).ravel()
    alone = sp.diags((total == 0).astype(np.float32))
    around = (sp.diags(1 / np.where(total == 0, 1, total)) @ graph + alone) @ x
    return torch.cat([features, torch.from_numpy(around.astype(np.float32))], dim=1)


def _squidpy():
    """squidpy, whose import takes seconds and warns of what does not concern it here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import squidpy
    logging.getLogger("spatialdata._logging").setLevel(logging.WARNING)  # a line for each graph
    return squidpy
