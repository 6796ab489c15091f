"""95 % intervals of means over slides that cover about as often as they say.

Slides of one patient are alike, so patients are what is counted wherever they are known. How often
they cover is measured by ``benchmarks/interval_coverage.py`` and stated in ``docs/statistics.md``.
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
    """What intervals are over.

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
    """Two ends, NaN where there are too few units, and what the interval is over.

    Attributes:
        unit: the name of ``Units``, or ``cancer``.
        units: how many of them have a value.
    """

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


def row_intervals(
    values: np.ndarray, labels: np.ndarray, bounds: tuple[float, float] = ANYWHERE
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean of each row, its entries independent between units only.

    A t interval: the mean of units' means, each weighted by its slides, and a variance from the
    residuals of the units. Skewness moves an end outwards as Willink 2005 (after Hall 1992) has it,
    and the other end half as far inwards; with n units both reach 1 + 12 / n^3 times as far.

    Args:
        values: (M, S), NaN where a slide has no value.
        labels: (S,) int from 0, the unit of each slide.
        bounds: what no mean can leave, such as (-1, 1) for correlations.

    Returns:
        Two (M,) arrays, NaN with fewer than three units, or where one unit outweighs the others
        so far that they count as fewer than two.
    """
    values = np.asarray(values, dtype=float)
    return _ends(*_spread(*_unit_means(values, labels)), bounds)


def mean_interval(
    values: np.ndarray,
    units: Units,
    groups: np.ndarray | None = None,
    bounds: tuple[float, float] = ANYWHERE,
) -> Interval:
    """95 % interval of a mean over slides, or of the mean over groups of their means.

    Args:
        values: (S,), one number a slide; NaN is left out.
        units: the units of the slides.
        groups: (S,); with it the interval is of the macro mean. Groups of three units and more
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
        return Interval(float(low[0]), float(high[0]), units.name, found)
    groups = np.asarray(groups)[keep]
    names = np.unique(groups)
    parts = [_unit_means(values[None, groups == g], labels[groups == g]) for g in names]
    spreads = [_spread(*part) for part in parts]
    if all(freedom[0] >= 1 for _, _, freedom, _ in spreads):
        center, variance, freedom, third = (np.array(x)[:, 0] for x in zip(*spreads, strict=True))
        variance, third = variance / len(names) ** 2, third / len(names) ** 3
        total = variance.sum()
        welch = total**2 / (variance**2 / freedom).sum() if total > 0 else freedom.sum()
        joined = (center.mean(), total, welch, third.sum())
        low, high = _ends(*(np.array([x]) for x in joined), bounds)
        return Interval(float(low[0]), float(high[0]), units.name, found)
    means = np.array([spread[0][0] for spread in spreads])
    low, high = row_intervals(means[None], np.arange(len(names)), bounds)
    return Interval(float(low[0]), float(high[0]), "cancer", len(names))


def _unit_means(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each unit in each row and the slides behind it, both (M, P)."""
    labels = np.asarray(labels, dtype=int)
    member = np.eye(labels.max(initial=-1) + 1)[labels]
    known = ~np.isnan(values)
    counts = known.astype(float) @ member
    sums = np.where(known, values, 0) @ member
    return sums / np.maximum(counts, 1), counts


def _spread(means: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean over slides, its variance, degrees of freedom and third central moment, each (M,).

    A unit's share w of the slides weighs its mean. Were all units' means of one variance, the
    expectation of a squared residual would be ``expected`` times it; the degrees of freedom are NaN
    where no interval can be given.
    """
    units, slides = (counts > 0).sum(axis=1), counts.sum(axis=1)
    w = counts / np.maximum(slides, 1)[:, None]
    squares = (w**2).sum(axis=1)
    center = np.where(units > 0, (w * means).sum(axis=1), np.nan)
    residual = np.where(counts > 0, means - center[:, None], 0)
    enough = (units >= FEWEST) & (squares <= 0.5)
    expected = np.where(enough[:, None], 1 - 2 * w + squares[:, None], 1)
    variance = ((w * residual) ** 2 / expected).sum(axis=1)
    n = np.maximum(units, FEWEST)
    third = ((w * residual) ** 3).sum(axis=1) * n**2 / ((n - 1) * (n - 2))
    return center, variance, np.where(enough, _freedom(w, squares, expected), np.nan), third


def _freedom(w: np.ndarray, squares: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the variance in ``_spread``: (M,); P - 1 for P units of equal size.

    Where sizes differ, those of Satterthwaite are too few and the units that equal sizes would need
    for the same variance (Kish), less one, are too many: coverage lies between. Taken is their
    geometric mean.
    """
    k = w**2 / expected
    k0, k1, k2 = ((k * w**power).sum(axis=1) for power in range(3))
    crossed = squares**2 * k0**2 + 2 * k0 * k2 + 2 * k1**2 - 4 * squares * k0 * k1
    own = (k**2 * (expected**2 - (squares[:, None] - 2 * w) ** 2)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # rows without an interval
        satterthwaite = squares**2 / (crossed + own)
        return np.sqrt(satterthwaite * (1 / squares - 1))


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
