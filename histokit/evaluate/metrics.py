"""Averages that do not flatter; correlations that stream are in ``histokit.ops``."""

from __future__ import annotations

import numpy as np


def mean_or_nan(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN, without a warning, where there is nothing."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def macro_mean(values: np.ndarray, groups: np.ndarray) -> float:
    """Mean over groups of the mean within each group; NaN is left out. Both are (S,)."""
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    return mean_or_nan([mean_or_nan(values[groups == group]) for group in np.unique(groups)])
