import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from histokit.evaluate.coherence import (
    coherence,
    gene_variance,
    level_thresholds,
    levels_of,
    paired,
    pathway_by_slide,
    scores_by_level,
    slide_intervals,
    win_rate,
)
from histokit.evaluate.intervals import row_intervals
from histokit.evaluate.scores import SlideScore

GENES = [f"G{i}" for i in range(40)]


def table(seed, slides=5, lost=0.1):
    rng = np.random.default_rng(seed)
    values = rng.uniform(-1, 1, (len(GENES), slides))
    values[rng.random(values.shape) < lost] = np.nan
    return pd.DataFrame(values, GENES, [f"s{i}" for i in range(slides)])


VARIANCE = pd.Series(np.linspace(0.1, 4, 40), GENES)
NOBODY = pd.Series(dtype=object)  # no slide names its patient
SETS = {"low": GENES[:7], "high": [*GENES[30:], "ABSENT"], "one": ["G3"], "none": ["ABSENT"]}


def test_scores_equal_equation_7_written_as_loops():
    pcc = table(0)
    pcc.loc["G3", ["s0", "s2"]] = np.nan
    result = coherence(SETS, pcc, VARIANCE, NOBODY)
    for name, genes in SETS.items():
        per_slide = []
        for slide in pcc.columns:
            scored = [pcc.at[g, slide] for g in genes if g in pcc.index]
            scored = [r for r in scored if not np.isnan(r)]
            if scored:
                per_slide.append(np.mean(scored))
        row = result.loc[name]
        assert row["slides"] == len(per_slide)
        if per_slide:
            assert row["score"] == pytest.approx(np.mean(per_slide), abs=1e-12)
        else:
            assert np.isnan(row["score"])
    assert result["genes"].to_dict() == {"low": 7, "high": 10, "one": 1, "none": 0}
    assert result.loc["one", "slides"] == pcc.loc["G3"].notna().sum()
    assert result.loc["one", "genes_per_slide"] == 1
    counts = pathway_by_slide(SETS, pcc)[1]
    assert counts.loc["low"].tolist() == pcc.loc[GENES[:7]].notna().sum().tolist()


def test_a_pathways_level_is_that_of_its_mean_variance():
    result = coherence(SETS, table(0), VARIANCE, NOBODY)
    assert levels_of(VARIANCE.to_numpy(), level_thresholds(VARIANCE)).tolist() == [
        1 + i // 4 for i in range(40)
    ]
    assert result.loc["low", "variance"] == pytest.approx(VARIANCE[:7].mean())
    assert result.loc["low", "variance_level"] == 1
    assert result.loc["high", "mean_level"] == pytest.approx((2 * 8 + 4 * 9 + 4 * 10) / 10)
    assert result.loc["none", "variance_level"] == 0


def test_expected_is_reached_by_genes_that_are_like_their_level():
    levels = levels_of(VARIANCE.to_numpy(), level_thresholds(VARIANCE))
    pcc = pd.DataFrame(dict.fromkeys(("a", "b"), levels / 20), GENES)
    result = coherence(SETS, pcc, VARIANCE, NOBODY)
    np.testing.assert_allclose(result["expected"], result["score"])
    pcc.loc[GENES[30]] += 0.3
    result = coherence({"one": [GENES[30]]}, pcc, VARIANCE, NOBODY)
    assert result["score"].iloc[0] - result["expected"].iloc[0] == pytest.approx(0.3 * 3 / 4)


def test_intervals_are_over_the_patients_of_the_slides():
    values = np.random.default_rng(1).normal(0.3, 0.1, (2, 8))
    by_slide = pd.DataFrame(values, columns=[f"s{i}" for i in range(8)])
    patients = pd.Series(["p", "q", "r", "p", "q", "r", "t", "t"], by_slide.columns)
    found = slide_intervals(by_slide, patients[::-1])
    np.testing.assert_allclose(found, row_intervals(values, [0, 1, 2, 0, 1, 2, 3, 3]))
    alone = slide_intervals(by_slide, NOBODY)
    np.testing.assert_allclose(alone, row_intervals(values, np.arange(8)))
    two = slide_intervals(by_slide, patients.replace({"r": "p", "t": "q"}))
    assert np.isnan(two).all()


def score(slide_id, y, fold="f"):
    names = pd.DataFrame({"gene": GENES[: y.shape[1]], "gene_id": "", "symbol": ""})
    nothing = np.zeros(y.shape[1], bool)
    return SlideScore(
        fold=fold, slide_id=slide_id, cancer="IDC", patient="", patient_seen="no",
        num_spots=len(y), cancer_known=True, genes=names, hvg=nothing, learned=~nothing,
        measured=~np.isnan(y).any(0),
        constant_target=nothing, constant_pred=nothing, pcc=y[0], mse=y[0],
        variance=y.var(axis=0), target_mean=y.mean(axis=0),
    )  # fmt: skip


def test_variance_pools_the_spots_of_the_test_set_once():
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, (30, 4)), rng.normal(-1, 2, (11, 4))
    b[:, 2] = np.nan
    variance = gene_variance([score("a", a), score("b", b), score("a", a, fold="g")])
    both = np.concatenate([a, b])
    np.testing.assert_allclose(variance[["G0", "G1", "G3"]], both[:, [0, 1, 3]].var(axis=0))
    assert variance["G2"] == pytest.approx(a[:, 2].var())


def test_win_rate_counts_and_tests_as_scipy():
    rng = np.random.default_rng(3)
    gains = pd.DataFrame(rng.normal(0.02, 0.05, (60, 6)))
    gains.iloc[0] = 0.0
    gains.iloc[1] = np.nan
    result = win_rate(gains, NOBODY)
    mean = gains.drop(index=1).mean(axis=1)
    assert (result.pathways, result.ties) == (59, 1)
    assert result.wins == (mean > 0).sum()
    assert result.rate == pytest.approx(result.wins / 59)
    low, high = slide_intervals(gains.drop(index=1), NOBODY)
    assert result.low == pytest.approx((low > 0).mean())
    assert result.high == pytest.approx((high > 0).mean())
    assert result.low < result.rate < result.high
    assert result.gain_low < result.gain < result.gain_high
    assert result.p_value == pytest.approx(wilcoxon(mean).pvalue)


def test_equal_runs_win_nothing_and_one_slide_has_no_interval():
    equal = win_rate(pd.DataFrame(np.zeros((5, 3))), NOBODY)
    assert (equal.wins, equal.ties, equal.p_value) == (0, 5, 1.0)
    assert (equal.low, equal.high, equal.gain_low, equal.gain_high) == (0, 0, 0, 0)
    single = win_rate(pd.DataFrame([[0.1], [-0.2]]), NOBODY)
    assert single.rate == 0.5
    assert np.isnan([single.low, single.gain_high]).all()


def test_runs_are_paired_on_what_both_have():
    a, b = table(1), table(2)[::-1].drop(index="G5")
    left, right = paired(a, b[["s1", "s0", "s2", "s3", "s4"]])
    assert left.index.equals(right.index)
    assert "G5" not in left.index
    pd.testing.assert_frame_equal(left.isna(), right.isna())
    assert right.at["G7", "s1"] == b.at["G7", "s1"] or np.isnan(right.at["G7", "s1"])


def test_scores_by_level_average_pathways_then_slides():
    pcc = table(4, lost=0)
    result = coherence(SETS, pcc, VARIANCE, NOBODY)
    by_slide = pathway_by_slide(SETS, pcc)[0]
    levels = scores_by_level(result, by_slide, NOBODY)
    assert levels["pathways"].sum() == 3
    assert levels.loc[1, "pathways"] == 2
    assert levels.loc[1, "value"] == pytest.approx(result.loc[["low", "one"], "score"].mean())
    assert (levels["low"] <= levels["value"]).all()
