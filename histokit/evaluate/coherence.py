"""Gene Pathway Coherence: how well the genes of a pathway are predicted together.

Everything here comes from correlations by gene and slide, never from predicted expression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import wilcoxon

from histokit.evaluate.intervals import ANYWHERE, row_intervals, unit_mean, units_of
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.summary import CORRELATION, pcc_matrix

LEVELS = 10


def membership(gene_sets: Mapping[str, Collection[str]], genes: pd.Index) -> sp.csr_matrix:
    """Which genes belong to which set: (M, G) CSR of ones; a gene not in ``genes`` is left out."""
    columns = [genes.get_indexer(list(dict.fromkeys(members))) for members in gene_sets.values()]
    columns = [own[own >= 0] for own in columns]
    ends = np.cumsum([0, *map(len, columns)])
    indices = np.concatenate([*columns, np.zeros(0, int)]).astype(np.int64)
    shape = (len(gene_sets), len(genes))
    return sp.csr_matrix((np.ones(len(indices)), indices, ends), shape=shape)


def pathway_by_slide(
    gene_sets: Mapping[str, Collection[str]], pcc: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The inner mean of Eq. 7 of HistoPrism: mean r of a pathway's genes on each slide.

    Args:
        gene_sets: pathway to genes, M of them.
        pcc: genes x slides, NaN where r does not exist; such genes leave the mean, never as zero.

    Returns:
        Pathways x slides: the mean, NaN where no gene was scored, and the genes behind it.
    """
    members, r = membership(gene_sets, pcc.index), pcc.to_numpy(dtype=float)
    scored = ~np.isnan(r)
    counts = (members @ scored.astype(float)).astype(int)
    sums = members @ np.where(scored, r, 0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    index = pd.Index(list(gene_sets), name="pathway")
    return (
        pd.DataFrame(means, index, pcc.columns),
        pd.DataFrame(counts, index, pcc.columns),
    )


def coherence(
    gene_sets: Mapping[str, Collection[str]],
    pcc: pd.DataFrame,
    variance: pd.Series,
    patients: pd.Series,
) -> pd.DataFrame:
    """Score pathways: mean r of their genes on each slide, then over patients.

    Eq. 7 of HistoPrism takes the mean over slides; that is ``score_over_slides``.

    Args:
        gene_sets: pathway to genes.
        pcc: genes x slides, of ``histokit.evaluate.summary.pcc_matrix``.
        variance: the variance of each gene, as ``gene_variance`` returns it.
        patients: the patients of each slide, empty where unknown.

    Returns:
        One row a pathway, in the order given: ``score``, the mean over a patient's slides and then
        over patients, its 95 % interval ``low`` and ``high``, ``score_over_slides``, ``genes`` of
        the panel, ``genes_scored`` on at least one slide, ``genes_per_slide`` behind the mean on a
        slide, ``slides``, ``variance`` and ``variance_level`` as in appendix C,
        ``mean_level``, the mean of its genes' levels, and ``expected``, the score with each r
        replaced by the slide's mean over all genes of the same variance level: what any genes as
        variable would reach.
    """
    by_slide, counts = pathway_by_slide(gene_sets, pcc)
    members = membership(gene_sets, pcc.index)
    table = pd.DataFrame(index=by_slide.index)
    table["score"] = slide_means(by_slide, patients)
    table["low"], table["high"] = slide_intervals(by_slide, patients, CORRELATION)
    table["score_over_slides"] = by_slide.mean(axis=1)
    table["genes"] = members.getnnz(axis=1)
    table["genes_scored"] = (members @ pcc.notna().any(axis=1).to_numpy().astype(float)).astype(int)
    table["genes_per_slide"] = counts.where(counts > 0).mean(axis=1)
    table["slides"] = by_slide.notna().sum(axis=1)
    variance = variance.reindex(pcc.index)
    thresholds = level_thresholds(variance)
    table["variance"] = _mean_of_members(members, variance.to_numpy(dtype=float))
    table["variance_level"] = levels_of(table["variance"].to_numpy(), thresholds)
    gene_levels = levels_of(variance.to_numpy(dtype=float), thresholds)
    alike = pcc.groupby(gene_levels).transform("mean").where(pcc.notna())
    table["expected"] = slide_means(pathway_by_slide(gene_sets, alike)[0], patients)
    gene_levels = np.where(gene_levels > 0, gene_levels, np.nan)
    table["mean_level"] = _mean_of_members(members, gene_levels)
    return table


def _mean_of_members(members: sp.csr_matrix, values: np.ndarray) -> np.ndarray:
    """Mean over the genes of each set of what is not NaN."""
    known = ~np.isnan(values)
    count = members @ known.astype(float)
    total = members @ np.where(known, values, 0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def gene_variance(scores: Sequence[SlideScore]) -> pd.Series:
    """Variance of each gene over all spots of the test set that measured it, by gene name.

    Spots of all slides are pooled, as in appendix C of HistoPrism; a slide that several folds test
    counts once. A slide that did not measure a gene has no say, where the paper fills in zeros.
    """
    variance, mean = pcc_matrix(scores, "variance"), pcc_matrix(scores, "target_mean")
    spots = {score.slide_id: score.num_spots for score in scores}
    weight = variance.notna() * pd.Series(spots)[variance.columns]
    total = weight.sum(axis=1).where(lambda n: n > 0)
    grand = (weight * mean.fillna(0)).sum(axis=1) / total
    spread = variance + mean.sub(grand, axis=0) ** 2
    return ((weight * spread.fillna(0)).sum(axis=1) / total).rename("variance")


def level_thresholds(variance: pd.Series) -> np.ndarray:
    """The nine variances between ten levels that hold a tenth of the genes each.

    The paper's own thresholds (its Table 7) are those of its test set and not printed.
    """
    known = variance.dropna()
    shares = np.arange(1, LEVELS) / LEVELS
    return np.quantile(known, shares) if len(known) else np.full(LEVELS - 1, np.nan)


def levels_of(variance: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Level 1 (lowest) to 10 of each variance; 0 where there is none."""
    return np.where(np.isnan(variance), 0, np.searchsorted(thresholds, variance) + 1)


def slide_means(by_slide: pd.DataFrame, patients: pd.Series) -> pd.Series:
    """Mean of each row over the slides of a patient, then over patients.

    Args:
        by_slide: rows x slides, NaN where a slide has no value.
        patients: the patients of each slide, empty where unknown: then a slide counts as one.
    """
    units = units_of(patients.reindex(by_slide.columns).fillna(""))
    means = unit_mean(by_slide.to_numpy(dtype=float), units.labels)
    return pd.Series(means, by_slide.index)


def slide_intervals(
    by_slide: pd.DataFrame, patients: pd.Series, bounds: tuple[float, float] = ANYWHERE
) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of ``slide_means``.

    Args:
        by_slide: rows x slides, NaN where a slide has no value.
        patients: the patients of each slide, empty where unknown.
        bounds: what no mean can leave.

    Returns:
        Two (M,) arrays; NaN where fewer than three patients (or slides) have a value.
    """
    units = units_of(patients.reindex(by_slide.columns).fillna(""))
    return row_intervals(by_slide.to_numpy(dtype=float), units.labels, bounds)


def scores_by_level(
    table: pd.DataFrame,
    by_slide: pd.DataFrame,
    patients: pd.Series,
    bounds: tuple[float, float] = CORRELATION,
) -> pd.DataFrame:
    """Mean over the pathways of each variance level.

    Args:
        table: as ``coherence`` returns it; its ``variance_level`` is used.
        by_slide: pathways x slides, scores or gains.
        patients: the patients of each slide, empty where unknown.
        bounds: what no mean can leave.

    Returns:
        One row for each level that has pathways: pathways, value, low, high.
    """
    levels = table["variance_level"].reindex(by_slide.index)
    groups = by_slide[levels > 0].groupby(levels[levels > 0])
    means = groups.mean()
    low, high = slide_intervals(means, patients, bounds)
    result = pd.DataFrame({"pathways": groups.size(), "value": slide_means(means, patients)})
    return result.assign(low=low, high=high).rename_axis("level")


@dataclasses.dataclass(frozen=True)
class WinRate:
    """How often one run scores pathways higher than another.

    Attributes:
        pathways: compared; ``wins`` of them higher, ``ties`` equal.
        rate: wins / pathways; ``low`` is the share whose own 95 % interval of the gain lies above
            zero, ``high`` the share whose interval does not lie below, so that noise that turns
            pathways one way or the other by chance widens it.
        gain: mean difference; ``gain_low`` and ``gain_high`` its 95 % interval.
        p_value: Wilcoxon's signed-rank test over pathways, two-sided. Pathways share genes and
            slides and are not independent, so it is too small; the intervals are not.
    """

    pathways: int
    wins: int
    ties: int
    rate: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    p_value: float


def paired(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two genes x slides tables on what both have: shared genes, NaN where either is NaN."""
    genes = a.index.intersection(b.index, sort=False)
    a, b = a.loc[genes], b.loc[genes, a.columns]
    both = a.notna() & b.notna()
    return a.where(both), b.where(both)


def win_rate(gains: pd.DataFrame, patients: pd.Series) -> WinRate:
    """Compare two runs pathway by pathway.

    Args:
        gains: pathways x slides, score of one run minus score of the other on the same genes.
        patients: the patients of each slide, empty where unknown.

    Raises:
        ValueError: no pathway has a score on any slide.
    """
    gains = gains.dropna(how="all")
    if gains.empty:
        raise ValueError("win_rate: gains must hold a number for at least one pathway")
    mean = slide_means(gains, patients).to_numpy()
    low, high = slide_intervals(gains, patients)
    rate_ends = (np.nan, np.nan)
    if not np.isnan(low).all():  # a pathway without an interval may be won or not
        rate_ends = (low > 0).mean(), (~(high <= 0)).mean()
    gain_ends = slide_intervals(gains.mean().to_frame().T, patients)
    p_value = float(wilcoxon(mean).pvalue) if mean.any() else 1.0
    return WinRate(
        pathways=len(mean),
        wins=int((mean > 0).sum()),
        ties=int((mean == 0).sum()),
        rate=float((mean > 0).mean()),
        low=float(rate_ends[0]),
        high=float(rate_ends[1]),
        gain=float(mean.mean()),
        gain_low=float(gain_ends[0][0]),
        gain_high=float(gain_ends[1][0]),
        p_value=p_value,
    )
