"""Tables of an evaluation: by slide, by gene, and averages with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.evaluate.intervals import Interval, mean_interval, unit_mean, units_of
from histokit.evaluate.metrics import mean_or_nan
from histokit.evaluate.scores import SlideScore

METRICS = ("pcc_hvg", "pcc_all", "mse", "target_variance")
CORRELATION = (-1.0, 1.0)  # what no mean of correlations can leave
POSITIVE = (0.0, np.inf)
BOUNDS = {
    "pcc_hvg": CORRELATION,
    "pcc_all": CORRELATION,
    "mse": POSITIVE,
    "target_variance": POSITIVE,
}
# The correlation of n unrelated pairs of numbers deviates by 1 / sqrt(n - 1): .23 at 20 spots, and
# 1 at two, where it can only be +1 or -1.
MIN_SPOTS = 20


def slide_table(scores: Sequence[SlideScore]) -> pd.DataFrame:
    """One row for each test slide of each fold; what could not be scored is counted beside."""
    return pd.DataFrame([_slide_row(score) for score in scores])


def _slide_row(score: SlideScore) -> dict:
    scored = ~np.isnan(score.pcc)
    constant = score.constant_target & score.measured
    return {
        "fold": score.fold,
        "slide_id": score.slide_id,
        "cancer": score.cancer,
        "patient": score.patient,
        "patient_seen": score.patient_seen,
        "cancer_known": "yes" if score.cancer_known else "no",
        "spots": score.num_spots,
        "below_floor": score.num_spots < MIN_SPOTS,
        "pcc_hvg": mean_or_nan(score.pcc[score.hvg]),
        "hvgs": int(score.hvg.sum()),
        "hvgs_scored": int((score.hvg & scored).sum()),
        "pcc_all": mean_or_nan(score.pcc),
        "genes": len(score.pcc),
        "genes_scored": int(scored.sum()),
        "genes_unmeasured": int((~score.measured).sum()),
        "genes_constant": int(constant.sum()),
        "genes_constant_prediction": int((score.constant_pred & score.measured & ~constant).sum()),
        "mse": mean_or_nan(score.mse),
        "target_variance": mean_or_nan(score.variance),
    }


def averaged(slides: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table of slides that take part in averages: slides of MIN_SPOTS spots at least."""
    return slides[~slides["below_floor"].astype(bool)]


def scores_averaged(scores: Sequence[SlideScore]) -> list[SlideScore]:
    """Scores of the slides that take part in averages."""
    return [score for score in scores if score.num_spots >= MIN_SPOTS]


def pcc_matrix(scores: Sequence[SlideScore], values: str = "pcc") -> pd.DataFrame:
    """Genes of all folds x test slides; a slide tested in several folds has their mean.

    Args:
        scores: the scores of one run.
        values: ``pcc``, ``mse``, ``variance`` or ``target_mean``.
    """
    columns: dict[str, list[pd.Series]] = {}
    for score in scores:
        series = pd.Series(getattr(score, values), index=score.genes["gene"])
        columns.setdefault(score.slide_id, []).append(series)
    merged = {
        slide: parts[0] if len(parts) == 1 else pd.concat(parts, axis=1).mean(axis=1)
        for slide, parts in columns.items()
    }
    genes = pd.Index(list(dict.fromkeys(g for s in scores for g in s.genes["gene"])), name="gene")
    return pd.DataFrame(
        {slide: series.reindex(genes) for slide, series in merged.items()}, index=genes, dtype=float
    )


def gene_table(scores: Sequence[SlideScore]) -> pd.DataFrame:
    """One row a gene, best mean PCC first: its averages over patients and what was not scored.

    ``pcc``, ``mse`` and ``target_variance`` are means over a patient's slides, then over patients.
    Slides of fewer than MIN_SPOTS spots take part in nothing but the list of genes.
    """
    names = pd.concat([s.genes[["gene", "gene_id", "symbol"]] for s in scores])
    table = names.drop_duplicates("gene").set_index("gene")
    table["hvg_folds"] = _count(scores, table.index, lambda s: s.hvg, per="fold")
    scores = scores_averaged(scores)
    pcc = pcc_matrix(scores).reindex(table.index)
    patients = {score.slide_id: score.patient for score in scores}
    labels = units_of([patients[slide_id] for slide_id in pcc.columns]).labels
    table["pcc"] = unit_mean(pcc.to_numpy(), labels)
    table["pcc_lowest"] = pcc.min(axis=1)
    table["pcc_highest"] = pcc.max(axis=1)
    for name, values in (("mse", "mse"), ("target_variance", "variance")):
        table[name] = unit_mean(pcc_matrix(scores, values).reindex(table.index).to_numpy(), labels)
    table["slides_scored"] = pcc.notna().sum(axis=1)
    table["slides_unmeasured"] = _count(scores, pcc.index, lambda s: ~s.measured)
    table["slides_constant"] = _count(scores, pcc.index, lambda s: s.constant_target)
    table["slides_constant_prediction"] = _count(
        scores, pcc.index, lambda s: s.constant_pred & ~s.constant_target
    )
    return table.sort_values("pcc", ascending=False, kind="stable", na_position="last")


def _count(scores, genes: pd.Index, condition, per: str = "slide_id") -> np.ndarray:
    """How many slides (or folds) a condition on genes holds in, each counted once."""
    seen: dict[str, np.ndarray] = {}
    for score in scores:
        rows = genes.get_indexer(score.genes["gene"])
        flags = seen.setdefault(getattr(score, per), np.zeros(len(genes), bool))
        flags[rows] |= condition(score)
    return np.sum(list(seen.values()), axis=0) if seen else np.zeros(len(genes), int)


def one_row_a_slide(slides: pd.DataFrame) -> pd.DataFrame:
    """Average the folds in which a slide was tested: more folds give it no more weight."""
    rule = {
        name: "mean" if pd.api.types.is_numeric_dtype(slides[name]) else "first"
        for name in slides.columns
        if name != "slide_id"
    }
    return slides.groupby("slide_id", sort=False).agg(rule).reset_index()


def summarize(slides: pd.DataFrame) -> pd.DataFrame:
    """Averages over patients with 95 % intervals.

    Args:
        slides: as ``slide_table`` returns them.

    Returns:
        Rows by (``by``, ``group``, ``average``, ``metric``): all slides, by whether the patient
        was seen in training, by cancer, by fold, by patient. ``mean`` is the mean over the slides
        of each ``unit``, then over ``units`` of them: patients; slides where all are of one patient
        or none is known. ``macro`` is the mean over cancers of that. ``slides`` and ``patients``
        are averaged; ``slides_below_floor`` are left out for their few spots. ``low`` and ``high``
        are over ``units`` of the kind ``unit`` (see ``histokit.evaluate.intervals``), NaN where
        too few.
    """
    groups = [("all", "all", slides)]
    for by in ("patient_seen", "cancer", "fold", "patient"):
        groups += [(by, name, rows) for name, rows in slides.groupby(by, sort=False)]
    rows = []
    for by, name, listed in groups:
        members = one_row_a_slide(averaged(listed))
        counts = {
            "slides": len(members),
            "patients": members.loc[members["patient"] != "", "patient"].nunique(),
            "slides_below_floor": listed["slide_id"].nunique() - len(members),
        }
        for metric in METRICS:
            for average in ("mean", "macro") if by in ("all", "patient_seen") else ("mean",):
                rows.append(
                    {"by": by, "group": name, "average": average, "metric": metric}
                    | counts
                    | dataclasses.asdict(_averaged(members, metric, average))
                )
    return pd.DataFrame(rows)


def _averaged(members: pd.DataFrame, metric: str, average: str) -> Interval:
    """The mean of a metric over slides, one row each, and its interval."""
    values, cancers = members[metric].to_numpy(dtype=float), members["cancer"].to_numpy()
    units, within = units_of(members["patient"]), cancers if average == "macro" else None
    return mean_interval(values, units, within, BOUNDS[metric])


def pick(summary: pd.DataFrame, metric: str, by="all", group="all", average="mean") -> pd.Series:
    """The one row of a summary."""
    wanted = {"metric": metric, "by": by, "group": group, "average": average}
    rows = summary.loc[(summary[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    return rows.iloc[0]


def check_same_slides(tested: dict[str, set[str]]) -> None:
    """Runs are compared on the same test slides only.

    Args:
        tested: test slides of each run.

    Raises:
        InputError: names the slides that one run tested and another did not.
    """
    first, slides = next(iter(tested.items()))
    for other, theirs in tested.items():
        differences = [
            f"{name} alone tests {', '.join(sorted(own))}"
            for name, own in ((first, slides - theirs), (other, theirs - slides))
            if own
        ]
        if differences:
            raise InputError(
                f"{first} and {other} cannot be compared, their test slides differ: "
                f"{'; '.join(differences)}; train both on the same folds"
            )
