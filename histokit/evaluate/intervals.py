"""Means over patients, and 95 % intervals of them that cover about as often as they say.

Slides of one patient are alike, so patients are what is averaged and counted wherever they are
known: a patient of many slides has no more say than one of a single slide. How often the intervals
cover is measured by ``benchmarks/interval_coverage.py`` and stated in ``docs/statistics.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

FEWEST = 3  # units that an interval takes
_TAIL = 0.975
_STRETCH = 12  # the least with which the mean of three or four exponential numbers is covered
ANYWHERE = (-np.inf, np.inf)


@dataclasses.dataclass(frozen=True)
class Units:
    """What means and their intervals are over.

    Attributes:
        labels: (S,) int from 0, the unit of each slide.
        name: ``patient``; ``slide`` where no patient is known; ``patient or slide`` where some
            are; ``section`` where all slides are of one patient, so that an interval says how
            sections of that patient vary and nothing of others.
    """

    labels: np.ndarray
    name: str


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean, the ends of its interval (NaN where there are too few units), and what it is over.

    Attributes:
        value: the mean over units of the mean over each unit's slides; NaN without any.
        unit: the name of ``Units``, or ``cancer``.
        units: how many of them have a value.
    """

    value: float
    low: float
    high: float
    unit: str
    units: int


def units_of(patients: Sequence[str]) -> Units:
    """The units of slides by their patients, (S,) text; an unknown one is empty."""
    patients = np.asarray(patients, dtype=object)
    known = patients != ""
    if known.all() and len(set(patients)) == 1:
        return Units(np.arange(len(patients)), "section")
    name = "patient" if known.all() else "patient or slide" if known.any() else "slide"
    keys = [("patient", p) if p else ("slide", i) for i, p in enumerate(patients)]
    codes = {key: code for code, key in enumerate(dict.fromkeys(keys))}
    return Units(np.array([codes[key] for key in keys], dtype=int), name)


def unit_mean(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over units of the mean over each unit's slides, row by row.

    Args:
        values: (M, S), NaN where a slide has no value.
        labels: (S,) int from 0, the unit of each slide.

    Returns:
        (M,), NaN where no slide has a value.
    """
    return _spread(_unit_means(values, labels))[0]


def row_intervals(
    values: np.ndarray, labels: np.ndarray, bounds: tuple[float, float] = ANYWHERE
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of ``unit_mean`` of each row, its entries independent between units only.

    A t interval over the means of units. Skewness moves an end outwards as Willink 2005 (after Hall
    1992) has it, and the other end half as far inwards; with n units both reach 1 + 12 / n^3 times
    as far.

    Args:
        values: (M, S), NaN where a slide has no value.
        labels: (S,) int from 0, the unit of each slide.
        bounds: what no mean can leave, such as (-1, 1) for correlations.

    Returns:
        Two (M,) arrays, NaN with fewer than three units.
    """
    return _ends(*_spread(_unit_means(values, labels)), bounds)


def mean_interval(
    values: np.ndarray,
    units: Units,
    groups: np.ndarray | None = None,
    bounds: tuple[float, float] = ANYWHERE,
) -> Interval:
    """The mean over units of their slides' mean, or the mean over groups of that, and its interval.

    Args:
        values: (S,), one number a slide; NaN is left out.
        units: the units of the slides.
        groups: (S,); with it the mean is the macro mean. Groups of three units and more
            vary each for itself, and variances add (Welch's degrees of freedom). Where a group is
            smaller, its variance is unknown, and the groups themselves are the units: that is
            wider, because it counts how groups differ.
        bounds: as ``row_intervals`` has them.
    """
    values = np.asarray(values, dtype=float)
    keep = ~np.isnan(values)
    values, labels = values[keep], units.labels[keep]
    found = len(np.unique(labels))
    if groups is None or len(np.unique(np.asarray(groups)[keep])) < 2:
        low, high = row_intervals(values[None], labels, bounds)
        value = unit_mean(values[None], labels)
        return Interval(*(float(x[0]) for x in (value, low, high)), units.name, found)
    groups = np.asarray(groups)[keep]
    names = np.unique(groups)
    parts = [_unit_means(values[None, groups == g], labels[groups == g]) for g in names]
    spreads = [_spread(part) for part in parts]
    means = np.array([spread[0][0] for spread in spreads])
    value = float(means.mean())
    if all(freedom[0] >= 1 for _, _, freedom, _ in spreads):
        center, variance, freedom, third = (np.array(x)[:, 0] for x in zip(*spreads, strict=True))
        variance, third = variance / len(names) ** 2, third / len(names) ** 3
        total = variance.sum()
        welch = total**2 / (variance**2 / freedom).sum() if total > 0 else freedom.sum()
        joined = (center.mean(), total, welch, third.sum())
        low, high = _ends(*(np.array([x]) for x in joined), bounds)
        return Interval(value, float(low[0]), float(high[0]), units.name, found)
    low, high = row_intervals(means[None], np.arange(len(names)), bounds)
    return Interval(value, float(low[0]), float(high[0]), "cancer", len(names))


def _unit_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of each unit's slides in each row of (M, S): (M, P), NaN where none has a value."""
    values, labels = np.asarray(values, dtype=float), np.asarray(labels, dtype=int)
    member = np.eye(labels.max(initial=-1) + 1)[labels]
    known = ~np.isnan(values)
    counts = known.astype(float) @ member
    sums = np.where(known, values, 0) @ member
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _spread(means: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean over units, its variance, degrees of freedom and third central moment, each (M,).

    Args:
        means: (M, P) means of units, NaN for a unit without any.

    Returns:
        As above; the degrees of freedom, n - 1 of n units, are NaN where no interval can be given.
    """
    known = ~np.isnan(means)
    units = known.sum(axis=1)
    center = np.where(
        units > 0, np.where(known, means, 0).sum(axis=1) / np.maximum(units, 1), np.nan
    )
    residual = np.where(known, means - center[:, None], 0)
    n = np.maximum(units, FEWEST)
    variance = (residual**2).sum(axis=1) / (n * (n - 1))
    third = (residual**3).sum(axis=1) / (n * (n - 1) * (n - 2))
    return center, variance, np.where(units >= FEWEST, n - 1.0, np.nan), third


def _ends(center, variance, freedom, third, bounds) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the intervals of means; all arrays are (M,)."""
    t, error = stdtrit(freedom, _TAIL), np.sqrt(variance)
    skew = np.divide(third, error**3, out=np.zeros_like(third), where=error > 0)
    a = np.where(np.abs(skew) < 1e-9, 1e-9, skew / 6)  # the limit at 0 is the t interval

    def reach(sign: int) -> np.ndarray:
        moved = sign * (np.cbrt(1 + 6 * a * (sign * t - a)) - 1) / (2 * a)
        moved = np.where(moved > t, moved, (moved + t) / 2)
        return moved * error * (1 + _STRETCH / np.maximum(freedom + 1, FEWEST) ** 3)

    return np.clip(center - reach(1), *bounds), np.clip(center + reach(-1), *bounds)
