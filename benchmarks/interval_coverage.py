"""How often the 95 % intervals of a report cover the truth, simulated.

    python benchmarks/interval_coverage.py

Prints the tables of docs/statistics.md. Numbers of slides are drawn from known distributions, with
effects of the patient that slides share, and the intervals are those of
``histokit.evaluate.intervals``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from histokit.core.options import option, run
from histokit.evaluate.coherence import win_rate
from histokit.evaluate.intervals import mean_interval, row_intervals, units_of

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
# All with mean 0 and deviation 1; the number is the skewness.
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "beta, -0.8": lambda rng, shape: (rng.beta(8, 2, shape) - 0.8) / np.sqrt(0.16 / 11),
    "lognormal, 1.8": lambda rng, shape: (
        (rng.lognormal(0, 0.5, shape) - np.exp(1 / 8)) / np.sqrt(np.exp(0.25) * np.expm1(0.25))
    ),
    "exponential, 2": lambda rng, shape: rng.exponential(size=shape) - 1,
}
# Not covered: three to thirty numbers do not show such a tail.
HEAVY: dict[str, Draw] = {
    "lognormal, 6.2": lambda rng, shape: (
        (rng.lognormal(0, 1, shape) - np.exp(0.5)) / np.sqrt(np.e * np.expm1(1))
    ),
}
UNITS = (3, 4, 5, 7, 10, 20, 30)
# Slides of each patient.
COHORTS = {
    "3 patients of 20": [20] * 3,
    "6 patients of 1 or 2": [1, 2] * 3,
    "10 patients of 1 or 2": [1, 2] * 5,
    "10 patients of 1 to 10": list(range(1, 11)),
    "8 patients of 8, 8, 1, 1, ...": [8, 8] + [1] * 6,
    "20 patients of 12, 9, 7, 5, 4, 3, 2, 2, 1, ...": [12, 9, 7, 5, 4, 3, 2, 2] + [1] * 12,
}
# Patients of each cancer, and the deviation in each.
MACROS = {
    "3 cancers of 3": ([3] * 3, [1] * 3),
    "8 cancers of 4": ([4] * 8, [1] * 8),
    "cancers of 3, 10, 30": ([3, 10, 30], [1] * 3),
    "3 cancers of 4, one varies thrice as much": ([4] * 3, [3, 1, 1]),
    "cancers of 6, 5, 4, 3, 2, 1, 1, 1": ([6, 5, 4, 3, 2, 1, 1, 1], [1] * 8),
    "5 cancers of 1": ([1] * 5, [1] * 5),
}
# Deviations of what all pathways share on a slide and of what each has of its own, true gains.
WINS = {
    "one gain for all, shared noise": (1.0, 0.0, 0.0),
    "spread gains, shared noise": (1.0, 0.2, 1.0),
    "spread gains, noise of each alone": (0.0, 1.0, 1.0),
}


def of_means(
    draw: Draw, slides: Sequence[int], alike: float, trials: int, rng: np.random.Generator
) -> float:
    """Share of trials in which the interval of a mean over slides covers it.

    Args:
        draw: the draw of the effects of patients and slides.
        slides: the slides of each patient.
        alike: correlation of two slides of a patient.
        trials: how many.
        rng: random numbers.
    """
    labels = np.repeat(np.arange(len(slides)), slides)
    values = np.sqrt(alike) * draw(rng, (trials, len(slides)))[:, labels]
    values += np.sqrt(1 - alike) * draw(rng, values.shape)
    return covered(*row_intervals(values, labels))


def of_differences(
    draw: Draw, slides: Sequence[int], trials: int, rng: np.random.Generator
) -> float:
    """The same for the difference of two runs, paired by slide; hard slides are hard for both."""
    labels = np.repeat(np.arange(len(slides)), slides)
    hard = 3 * rng.normal(size=(trials, len(labels)))
    ours, theirs = (
        hard + scale * (draw(rng, (trials, len(slides)))[:, labels] + draw(rng, hard.shape))
        for scale in (1, 0.3)
    )
    return covered(*row_intervals(ours - theirs, labels))


def of_macros(
    draw: Draw, patients: Sequence[int], deviations, trials: int, rng: np.random.Generator
) -> float:
    """The same for a mean over cancers, a slide a patient."""
    cancers = np.repeat(np.arange(len(patients)), patients)
    values = draw(rng, (trials, len(cancers))) * np.asarray(deviations)[cancers]
    units = units_of([f"p{i}" for i in range(len(cancers))])
    found = [mean_interval(row, units, cancers) for row in values]
    return covered(np.array([i.low for i in found]), np.array([i.high for i in found]))


def of_win_rates(
    shared: float, own: float, spread: float, patients: int, trials: int, rng: np.random.Generator
) -> float:
    """Share of trials whose interval holds the share of pathways that truly gain."""
    hits, names = 0, pd.Series([f"p{i}" for i in range(patients)])
    for _ in range(trials):
        gain = rng.normal(0.3, spread, (100, 1)) if spread else np.full((100, 1), 0.3)
        noise = shared * rng.normal(size=patients) + own * rng.normal(size=(100, patients))
        wins, truth = win_rate(pd.DataFrame(gain + noise), names), (gain > 0).mean()
        hits += wins.low <= truth <= wins.high
    return hits / trials


def covered(low: np.ndarray, high: np.ndarray) -> float:
    """Share of intervals that hold 0; NaN where none is given."""
    return float(((low <= 0) & (high >= 0)).mean()) if not np.isnan(low).all() else float("nan")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the simulation."""

    trials: int = option(
        20_000, "trials behind each figure; a tenth for macro means, a twentieth for win rates"
    )
    seed: int = option(0, "of the random numbers")


def main(cfg: Options) -> None:
    """Print every table."""
    rng, few = np.random.default_rng(cfg.seed), cfg.trials // 10
    names = list(DRAWS)
    every = DRAWS | HEAVY
    show("units", list(every), {
        str(n): [of_means(draw, [1] * n, 0, cfg.trials, rng) for draw in every.values()]
        for n in UNITS
    })  # fmt: skip
    show("slides of patients, wholly or half alike",
         [f"{d}, {alike}" for d in ("normal", "exponential, 2") for alike in (1, 0.5)], {
        name: [of_means(DRAWS[d], slides, alike, cfg.trials, rng)
               for d in ("normal", "exponential, 2") for alike in (1, 0.5)]
        for name, slides in COHORTS.items()
    })  # fmt: skip
    show("paired differences", names, {
        name: [of_differences(DRAWS[d], slides, cfg.trials, rng) for d in names]
        for name, slides in {"5 slides": [1] * 5, **COHORTS}.items()
    })  # fmt: skip
    show("mean over cancers", names, {
        name: [of_macros(DRAWS[d], *cohort, few, rng) for d in names]
        for name, cohort in MACROS.items()
    })  # fmt: skip
    show("win rate", [f"{n} patients" for n in (3, 5, 10)], {
        name: [of_win_rates(*kind, n, few // 2, rng) for n in (3, 5, 10)]
        for name, kind in WINS.items()
    })  # fmt: skip


def show(title: str, columns: Sequence[str], rows: dict[str, Sequence[float]]) -> None:
    """Print a table in markdown, in percent."""
    print(f"\n| {title} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in values) + " |")


if __name__ == "__main__":
    run(main, Options, __doc__)
