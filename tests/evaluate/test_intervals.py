"""Intervals cover about as often as they say; benchmarks/interval_coverage.py has longer runs."""

import numpy as np
import pytest
from interval_coverage import (
    DRAWS,
    of_differences,
    of_macros,
    of_means,
    of_win_rates,
)
from scipy import stats

from histokit.evaluate.intervals import mean_interval, row_intervals, unit_mean, units_of

TRIALS = 8000  # two standard errors of a share of 95 % are half a percent
SLACK = 0.006


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# Three to five units show nothing of a skewness, so intervals wide enough for skewed numbers are
# too wide for normal ones there: 96 to 98 % instead of 95.
@pytest.mark.parametrize("name", list(DRAWS))
@pytest.mark.parametrize("units", [3, 4, 5, 10, 30])
def test_means_over_three_to_thirty_units_are_covered(name, units, rng):
    share = of_means(DRAWS[name], [1] * units, 0, TRIALS, rng)
    assert 0.94 - SLACK <= share <= (0.98 if units < 6 else 0.96) + SLACK


@pytest.mark.parametrize(
    "slides",
    [
        [20] * 3,
        [1, 2] * 3,
        list(range(1, 11)),
        [8, 8] + [1] * 6,
        [12, 9, 7, 5, 4, 3, 2, 2] + [1] * 12,
    ],
)
@pytest.mark.parametrize("alike", [1, 0.5])
def test_slides_that_share_patients_are_covered(slides, alike, rng):
    for name in ("normal", "exponential, 2"):
        share = of_means(DRAWS[name], slides, alike, TRIALS, rng)
        assert 0.94 - SLACK <= share <= 0.98 + SLACK, name


@pytest.mark.parametrize("slides", [[1] * 5, [20] * 3, [1, 2] * 5])
def test_paired_differences_are_covered(slides, rng):
    for name, draw in DRAWS.items():
        share = of_differences(draw, slides, TRIALS, rng)
        assert 0.94 - SLACK <= share <= 0.98 + SLACK, name


@pytest.mark.parametrize(
    ("patients", "deviations"),
    [([3] * 3, [1] * 3), ([4] * 3, [3, 1, 1]), ([6, 5, 4, 3, 2, 1, 1, 1], [1] * 8)],
)
def test_means_over_cancers_are_covered(patients, deviations, rng):
    for name in ("normal", "lognormal, 1.8"):
        share = of_macros(DRAWS[name], patients, deviations, 1500, rng)
        assert share >= 0.94 - 0.014, name


def test_the_true_share_of_wins_is_covered(rng):
    """By 96 % and more: pathways that noise turns at random cannot be told from others."""
    for shared, own, spread in [(1.0, 0.0, 0.0), (1.0, 0.2, 1.0), (0.0, 1.0, 1.0)]:
        assert of_win_rates(shared, own, spread, 5, 200, rng) >= 0.94


def test_many_equal_slides_of_a_normal_kind_have_the_t_interval():
    values = np.random.default_rng(0).normal(0.3, 0.1, 800)
    values = np.concatenate([values, 0.6 - values])  # no skewness
    low, high = row_intervals(values[None], np.arange(1600))
    expected = stats.t.interval(0.95, 1599, values.mean(), stats.sem(values))
    assert (low[0], high[0]) == pytest.approx(expected, abs=1e-5)


def test_equally_many_slides_a_patient_are_as_good_as_their_means():
    values = np.random.default_rng(1).normal(size=(5, 12))
    patients = np.tile(np.arange(4), 3)
    means = np.stack([values[:, patients == p].mean(axis=1) for p in range(4)], axis=1)
    np.testing.assert_allclose(
        row_intervals(values, patients), row_intervals(means, np.arange(4)), rtol=1e-10
    )


def test_repeated_slides_of_the_same_patients_tell_no_more():
    values, patients = np.array([[0.1, 0.4, 0.3]]), np.arange(3)
    once = row_intervals(values, patients)
    often = row_intervals(np.tile(values, 10), np.tile(patients, 10))
    np.testing.assert_allclose(once, often)


def test_skewness_moves_the_end_on_its_side():
    low, high = row_intervals(np.array([[0.1, 0.1, 0.1, 0.1, 0.1, 0.9]]), np.arange(6))
    mean = 1.4 / 6
    assert high[0] - mean > 1.5 * (mean - low[0])
    bounded = row_intervals(np.array([[-0.9, 0.9, 0.9]]), np.arange(3), (-1, 1))
    assert (bounded[0][0], bounded[1][0]) == (-1, 1)


def test_fewer_than_three_units_have_no_interval():
    assert np.isnan(row_intervals(np.array([[0.1, 0.2, np.nan]]), np.arange(3))).all()
    assert np.isnan(row_intervals(np.zeros((1, 0)), np.zeros(0, int))).all()
    two_patients = units_of(["P", "P", "P", "P", "Q"])
    found = mean_interval([0.1, 0.2, 0.3, 0.4, 0.2], two_patients)
    assert (np.isnan(found.low), found.unit, found.units) == (True, "patient", 2)


def test_a_patient_of_many_slides_has_no_more_say_than_one_of_a_single_slide():
    values, patients = np.array([[0.5] * 19 + [0.1, 0.3]]), ["P"] * 19 + ["Q", "R"]
    found = mean_interval(values[0], units_of(patients), bounds=(-1, 1))
    ends = row_intervals(np.array([[0.5, 0.1, 0.3]]), np.arange(3), (-1, 1))
    assert (found.value, found.units) == (pytest.approx(0.3), 3)
    assert (found.low, found.high) == pytest.approx((ends[0][0], ends[1][0]))
    values[0, -2:] = np.nan
    assert unit_mean(values, units_of(patients).labels)[0] == pytest.approx(0.5)
    assert np.isnan(unit_mean(values * np.nan, units_of(patients).labels)[0])


def test_a_mean_over_cancers_is_that_of_their_patients_means():
    values, cancers = [0.2, 0.4, 0.6, 0.9], np.array(["A", "A", "A", "B"])
    found = mean_interval(values, units_of(["p", "p", "q", "r"]), cancers)
    assert found.value == pytest.approx(((0.3 + 0.6) / 2 + 0.9) / 2)


def test_rows_use_the_units_that_they_have():
    values = np.array([[0.1, 0.2, 0.4, 0.6], [0.1, np.nan, 0.4, 0.6], [0.2, 0.2, 0.2, 0.2]])
    low, high = row_intervals(values, np.arange(4))
    alone = row_intervals(values[1:2, [0, 2, 3]], np.arange(3))
    assert (low[1], high[1]) == pytest.approx((alone[0][0], alone[1][0]))
    assert (low[2], high[2]) == pytest.approx((0.2, 0.2))


def test_units_are_patients_where_they_are_known():
    known = units_of(["P", "Q", "P", "R"])
    assert (known.labels.tolist(), known.name) == ([0, 1, 0, 2], "patient")
    unknown = units_of(["", "", ""])
    assert (unknown.labels.tolist(), unknown.name) == ([0, 1, 2], "slide")
    mixed = units_of(["P", "", "P", ""])
    assert (mixed.labels.tolist(), mixed.name) == ([0, 1, 0, 2], "patient or slide")
    one = units_of(["P", "P", "P"])
    assert (one.labels.tolist(), one.name) == ([0, 1, 2], "section")


def test_the_variance_of_a_mean_over_cancers_is_that_of_the_cancers_added_up():
    rng = np.random.default_rng(3)
    values, cancers = rng.normal(size=600), np.repeat(["A", "B"], [400, 200])
    found = mean_interval(values, units_of([f"p{i}" for i in range(600)]), cancers)
    parts = [values[cancers == c] for c in "AB"]
    error = np.sqrt(sum(stats.sem(part) ** 2 for part in parts)) / 2
    center = np.mean([part.mean() for part in parts])
    assert (found.low, found.high) == pytest.approx(
        (center - 1.965 * error, center + 1.965 * error), abs=2e-3
    )
    assert (found.unit, found.units) == ("patient", 600)


def test_cancers_are_the_units_where_one_has_few_patients():
    values, cancers = [0.1, 0.3, 0.5, 0.8, 0.2], np.array(["A", "A", "A", "B", "C"])
    found = mean_interval(values, units_of(["p", "q", "r", "s", "t"]), cancers)
    expected = row_intervals(np.array([[0.3, 0.8, 0.2]]), np.arange(3))
    assert (found.low, found.high) == pytest.approx((expected[0][0], expected[1][0]))
    assert (found.unit, found.units) == ("cancer", 3)
    two = mean_interval(values[:4], units_of(["p", "q", "r", "s"]), cancers[:4])
    assert (np.isnan(two.low), two.unit, two.units) == (True, "cancer", 2)


def test_many_rows_are_fast():
    """A library of 12,529 pathways on 100 slides of 40 patients, some not scored."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12_529, 100))
    values[rng.random(values.shape) < 0.1] = np.nan
    low, high = row_intervals(values, rng.integers(0, 40, 100))
    assert (low <= np.nanmean(values, axis=1)).all()
    assert (high >= np.nanmean(values, axis=1)).all()
