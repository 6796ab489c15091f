"""Squares on a slide into which transcripts, cells or bins are pooled."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.core.errors import InputError

_BITS = 20  # of a row, a column or a gene in a key
_LIMIT = 1 << _BITS
_PENDING = 1 << 24  # entries that are held before they are added up


def squares_of(
    pixels: np.ndarray, side: float, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The squares of a grid whose first corner is pixel (0, 0).

    Args:
        pixels: (N, 2) x, y in level-0 pixels.
        side: of a square, in level-0 pixels.
        where: the slide or file in words, for error messages.

    Returns:
        inside (N,) bool, false for negative pixels; row and column (M,) int64 of those inside.

    Raises:
        InputError: pixels that are no numbers, or more squares than any slide has.
    """
    if not np.isfinite(pixels).all():
        raise InputError(f"{where} holds a place that is no number; it is damaged, copy it again")
    inside = (pixels >= 0).all(axis=1)
    place = np.floor(pixels[inside] / side)
    if len(place) and place.max() >= _LIMIT:
        raise InputError(
            f"{where} holds a place {pixels.max():.3g} pixels from the image's corner, which is "
            f"{place.max():.3g} squares of {side:.3g} pixels; check the alignment and the side of "
            "the squares"
        )
    column, row = place.astype(np.int64).T
    return inside, row, column


class Pool:
    """Counts of genes by square, added up batch by batch in memory of the size of the result."""

    def __init__(self):
        self._keys, self._counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]

    def add(self, row: np.ndarray, column: np.ndarray, gene: np.ndarray) -> None:
        """Count one for each entry of row, column and gene (M,) int64."""
        keys, counts = np.unique(
            (row << 2 * _BITS) | (column << _BITS) | gene.astype(np.int64), return_counts=True
        )
        self._keys.append(keys)
        self._counts.append(counts)
        if sum(map(len, self._keys[1:])) > _PENDING:
            self._sum()

    def _sum(self) -> None:
        keys, place = np.unique(np.concatenate(self._keys), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, place, np.concatenate(self._counts))
        self._keys, self._counts = [keys], [counts]

    def result(self, genes: int) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
        """Row and column (S,) of the squares that hold anything, in order; counts (S, genes)."""
        self._sum()
        keys, counts = self._keys[0], self._counts[0]
        squares, place = np.unique(keys >> _BITS, return_inverse=True)
        matrix = sp.csr_matrix(
            (counts.astype(np.float64), (place, keys & (_LIMIT - 1))), (len(squares), genes)
        )
        return squares >> _BITS, squares & (_LIMIT - 1), matrix


def square_spots(row: np.ndarray, column: np.ndarray, side: float) -> pd.DataFrame:
    """Squares (S,) as spots: barcode, the center x and y in level-0 pixels, and their place."""
    return pd.DataFrame(
        {
            "barcode": [f"{r:05d}x{c:05d}" for r, c in zip(row, column, strict=True)],
            "x": (column + 0.5) * side,
            "y": (row + 0.5) * side,
            "array_row": row,
            "array_col": column,
        }
    )


def pool_rows(
    matrix: sp.csr_matrix, row: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Add up rows of a matrix (N, G) by their square, row and column (N,) int64.

    Returns:
        As ``Pool.result``: squares without any count are left out.
    """
    squares, place = np.unique((row << _BITS) | column, return_inverse=True)
    adder = sp.csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))))
    pooled = sp.csr_matrix(adder @ matrix)
    kept = np.asarray(pooled.sum(axis=1)).ravel() > 0
    squares = squares[kept]
    return squares >> _BITS, squares & (_LIMIT - 1), pooled[kept]
