"""Tables of an evaluation: by slide, by gene, and averages with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histokit.errors import InputError
from histokit.evaluate import SlideScore
from histokit.metrics import bootstrap_interval, macro_mean, mean_or_nan

METRICS = ("pcc_hvg", "pcc_all", "mse")


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


def pcc_matrix(scores: Sequence[SlideScore], values: str = "pcc") -> pd.DataFrame:
    """Genes of all folds x test slides; a slide tested in several folds has their mean.

    Args:
        scores: of one run.
        values: ``pcc``, ``mse`` or ``variance``.
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
    return pd.DataFrame({slide: series.reindex(genes) for slide, series in merged.items()})


def gene_table(scores: Sequence[SlideScore]) -> pd.DataFrame:
    """One row a gene, best mean PCC first: its averages over slides and what was not scored."""
    pcc = pcc_matrix(scores)
    names = pd.concat([s.genes[["gene", "gene_id", "symbol"]] for s in scores])
    table = names.drop_duplicates("gene").set_index("gene").loc[pcc.index]
    table["hvg_folds"] = _count(scores, pcc.index, lambda s: s.hvg, per="fold")
    with warnings.catch_warnings():  # a gene without any score is NaN, which is the answer
        warnings.simplefilter("ignore", RuntimeWarning)
        table["pcc"] = np.nanmean(pcc, axis=1)
        table["pcc_lowest"] = np.nanmin(pcc, axis=1)
        table["pcc_highest"] = np.nanmax(pcc, axis=1)
    table["mse"] = pcc_matrix(scores, "mse").mean(axis=1)
    table["target_variance"] = pcc_matrix(scores, "variance").mean(axis=1)
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
    return np.sum(list(seen.values()), axis=0)


def one_row_a_slide(slides: pd.DataFrame) -> pd.DataFrame:
    """Average the folds in which a slide was tested: more folds give it no more weight."""
    rule = {
        name: "mean" if pd.api.types.is_numeric_dtype(slides[name]) else "first"
        for name in slides.columns
        if name != "slide_id"
    }
    return slides.groupby("slide_id", sort=False).agg(rule).reset_index()


def summarise(slides: pd.DataFrame, resamples: int = 10_000) -> pd.DataFrame:
    """Averages over slides with 95 % bootstrap intervals.

    Args:
        slides: of ``slide_table``.
        resamples: of the bootstrap; its seed is fixed, so the same table gives the same interval.

    Returns:
        Rows by (``by``, ``group``, ``average``, ``metric``): all slides, by whether the patient
        was seen in training, by fold, by cancer; columns slides, patients, value, low, high.
        ``micro`` is the mean over slides, ``macro`` the mean over cancers of the mean over their
        slides.
    """
    groups = [("all", "all", slides)]
    for by in ("patient_seen", "cancer", "fold"):
        groups += [(by, name, rows) for name, rows in slides.groupby(by, sort=False)]
    rows = []
    for by, name, members in groups:
        members = one_row_a_slide(members)
        patients = members.loc[members["patient"] != "", "patient"].nunique()
        for metric in METRICS:
            values, cancers = members[metric].to_numpy(), members["cancer"].to_numpy()
            averages = {"micro": (mean_or_nan(values), None)}
            if by in ("all", "patient_seen"):
                averages["macro"] = (macro_mean(values, cancers), cancers)
            for average, (value, within) in averages.items():
                low, high = bootstrap_interval(values, within, resamples)
                rows.append([by, name, average, metric, len(members), patients, value, low, high])
    columns = ["by", "group", "average", "metric", "slides", "patients", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def pick(summary: pd.DataFrame, metric: str, by="all", group="all", average="micro") -> pd.Series:
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


def compare(runs: Mapping[str, Mapping], resamples: int = 10_000) -> pd.DataFrame:
    """Runs on the same slides, those of one target together: figures of others say nothing here.

    Args:
        runs: by name, ``slides`` (of ``slide_table``), ``summary``, ``model``, ``encoder``,
            ``transform``.
        resamples: of the bootstrap of the differences.

    Returns:
        Blocks by transform and group of slides (all; by whether the patient was seen, where all
        runs agree on that), one row a run, best PCC first; ``difference`` is to the first row of
        the block, paired by slide.
    """
    groups = [("all", "all")]
    seen = [_by_slide(run["slides"], "patient_seen").sort_index() for run in runs.values()]
    if all(other.equals(seen[0]) for other in seen) and seen[0].nunique() > 1:
        groups += [("patient_seen", name) for name in seen[0].unique()]
    rows = []
    for transform in dict.fromkeys(run["transform"] for run in runs.values()):
        alike = {name: run for name, run in runs.items() if run["transform"] == transform}
        for by, group in groups:
            members = seen[0].index if by == "all" else seen[0].index[seen[0] == group]
            rows += _block(alike, by, group, members, resamples)
    columns = ["difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*rows[0], *columns])))


def _block(runs: Mapping, by: str, group: str, slides: pd.Index, resamples: int) -> list[dict]:
    block = [_compared(name, run, by, group) for name, run in runs.items()]
    # Controls come last: nobody chooses one, however high it scores.
    block.sort(
        key=lambda row: (
            bool(runs[row["run"]].get("control")),
            -np.nan_to_num(row["pcc_hvg"], nan=-2),
        )
    )
    values = {name: _by_slide(run["slides"], "pcc_hvg")[slides] for name, run in runs.items()}
    for row in block[1:]:
        paired = (values[row["run"]] - values[block[0]["run"]]).to_numpy()
        row["difference"] = mean_or_nan(paired)
        row["difference_low"], row["difference_high"] = bootstrap_interval(paired, None, resamples)
    return block


def _by_slide(slides: pd.DataFrame, column: str) -> pd.Series:
    return one_row_a_slide(slides).set_index("slide_id")[column]


def _compared(name: str, run: Mapping, by: str, group: str) -> dict:
    row = {"by": by, "group": group, "run": name}
    row |= {key: run[key] for key in ("model", "encoder", "transform")}
    for metric in METRICS:
        result = pick(run["summary"], metric, by, group)
        row |= {"slides": result["slides"], "patients": result["patients"]}
        row |= {metric: result["value"], f"{metric}_low": result["low"]}
        row[f"{metric}_high"] = result["high"]
    return row
