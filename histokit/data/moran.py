"""Moran's I of every gene of a slide in closed form, with analytic p-values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.spatial import cKDTree
from scipy.stats import norm

from histokit.core.errors import InputError

REACH = 1.3  # in pitches: between a neighbour and the diagonal, 1.41, of a square array
BLOCK = 1 << 19  # entries of a dense block, which then stays in the cache


def neighbour_graph(centres: np.ndarray) -> sp.csr_matrix:
    """Which spots touch: those within 1.3 pitches, 4 on a square array and 6 on a hexagonal one.

    The nearest k would be the same on a hexagonal array, but on a square one leave the choice among
    diagonals to the order of the spots.

    Args:
        centres: (N, 2) spot centres in any unit.

    Returns:
        (N, N) symmetric CSR of ones, without a diagonal.

    Raises:
        InputError: coordinates that are not finite, or fewer than three different places.
    """
    if not np.isfinite(centres).all():
        raise InputError("spots have no coordinates, or some that are not finite")
    if len(np.unique(centres, axis=0)) < 3:
        raise InputError(f"{len(centres)} spots at fewer than three places have no neighbourhood")
    tree = cKDTree(centres)
    pitch = np.median(tree.query(centres, k=2)[0][:, 1])
    first, second = tree.query_pairs(REACH * pitch, output_type="ndarray").T
    ones = np.ones(len(first))
    half = sp.csr_matrix((ones, (first, second)), shape=(len(centres), len(centres)))
    return (half + half.T).tocsr()


def morans_i(y: sp.csr_matrix, graph: sp.csr_matrix) -> pd.DataFrame:
    """Moran's I and its one-tailed p-value under the assumption of normality.

    As ``squidpy.gr.spatial_autocorr`` with its defaults: the graph's rows are scaled to sum to 1
    (``W``), and with ``z = y - mean(y)``, ``I = N / sum(W) * z W z / z z``. The mean is taken out
    afterwards, ``z W z = y W y - mean(y) (1 W y + y W 1) + mean(y)^2 sum(W)``; each pair of
    neighbours is visited once, for a block of genes together, and blocks share torch's number of
    threads. Sums are in float64.

    Args:
        y: (N, G) CSR expression.
        graph: (N, N) neighbours; a spot without any takes no part in ``z W z``.

    Returns:
        One row a gene: ``I``, ``p``; NaN for a constant gene.
    """
    num = y.shape[0]
    degree = np.asarray(graph.sum(axis=1)).ravel()
    weights = sp.csr_matrix(sp.diags(1 / np.where(degree > 0, degree, 1)) @ graph)
    s0 = weights.sum()
    both = np.asarray(weights.sum(axis=0)).ravel() + np.asarray(weights.sum(axis=1)).ravel()
    each_pair_once = sp.triu(weights + weights.T).tocsr()
    sides = np.stack([np.full(num, 1 / num), both])
    columns, width = y.tocsc(), max(1, BLOCK // num)
    cross, square = np.empty(y.shape[1]), np.empty(y.shape[1])

    def add_up(start: int) -> None:
        block = slice(start, start + width)
        dense = columns[:, block].toarray(order="C").astype(np.float64)
        mean, edge = sides @ dense
        square[block] = np.einsum("ng,ng->g", dense, dense) - num * mean**2
        square[block][square[block] <= 1e-12 * num * mean**2] = 0
        cross[block] = np.einsum("ng,ng->g", dense, each_pair_once @ dense)
        cross[block] += mean**2 * s0 - mean * edge

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # SciPy lets go of the interpreter
        list(threads.map(add_up, range(0, y.shape[1], width)))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(square > 0, num / s0 * cross / square, np.nan)
    deviation = np.sqrt(_variance(weights))
    return pd.DataFrame({"I": value, "p": norm.sf(abs(value + 1 / (num - 1)) / deviation)})


def _variance(weights: sp.csr_matrix) -> float:
    """Of Moran's I where values are normal (Cliff and Ord 1981)."""
    num, s0 = weights.shape[0], weights.sum()
    s1 = (weights + weights.T).power(2).sum() / 2
    s2 = np.square(np.asarray(weights.sum(axis=0)).ravel() + weights.sum(axis=1).A1).sum()
    expected = 1 / (num - 1)
    return (num**2 * s1 - num * s2 + 3 * s0**2) / ((num**2 - 1) * s0**2) - expected**2
