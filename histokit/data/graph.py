"""Tissue around a patch: the features of the neighbouring spots beside its own."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree

CHOICES = ("none", "mean", "attention")
REACH = 1.5  # pitches: eight neighbours on a square grid, six on a hexagonal one
SHARPNESS = 4.0  # of attention: how much more a patch that looks the same counts than an unlike one


def neighbour_graph(centres: np.ndarray) -> sp.csr_matrix:
    """Which spots are neighbours.

    Args:
        centres: (N, 2) spot centres x, y in any unit.

    Returns:
        (N, N) CSR of ones, symmetric, nothing on its diagonal: spots nearer than ``REACH`` times
        the median distance to the nearest spot.
    """
    count = len(centres)
    if count < 2:
        return sp.csr_matrix((count, count), dtype=np.float32)
    tree = cKDTree(centres)
    pitch = np.median(tree.query(centres, k=2)[0][:, 1])
    a, b = tree.query_pairs(REACH * pitch, output_type="ndarray").T
    ones = np.ones(2 * len(a), np.float32)
    return sp.csr_matrix((ones, (np.r_[a, b], np.r_[b, a])), shape=(count, count))


def with_neighbours(features: torch.Tensor, centres: np.ndarray, how: str) -> torch.Tensor:
    """Set a weighted mean of each spot's neighbours beside its own features.

    ``mean`` weighs all neighbours alike. ``attention`` weighs them by likeness: a softmax of the
    correlation between patches whose features are standardised over the slide. A spot without
    neighbours gets its own features. Neither has parameters, so any model may follow.

    Args:
        features: (N, D) of one slide.
        centres: (N, 2) spot centres.
        how: ``none``, ``mean`` or ``attention``.

    Returns:
        (N, D), or (N, 2 D) with neighbours.
    """
    if how == "none":
        return features
    x, graph = features.numpy(), neighbour_graph(centres)
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
