"""Tables of an evaluation in the words of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histokit.data.gene_names import names_of
from histokit.evaluate.intervals import FEWEST
from histokit.evaluate.summary import METRICS, MIN_SPOTS, averaged, pick
from histokit.evaluate.verdict import averaging, over_units, with_interval
from histokit.report.page import NONE, Picture, Section, Table, number, plural

SEEN_GROUPS = {
    "yes": "patients also in training",
    "no": "new patients",
    "unknown": "patients unknown",
}
_FOLDS = 12  # with more folds, a row each would bury the rest; summary.csv has them all
_GENES = 10


def headings(num_hvg: int) -> list[str]:
    """Column headings of the figures of ``METRICS``."""
    return [f"PCC, top {num_hvg} HVGs", "PCC, all genes", "MSE", "target variance"]


def figure_cells(row: Mapping) -> list[str]:
    """The figures of a row, each with its interval; the targets' variance is no estimate."""
    digits = {"pcc_hvg": 2, "pcc_all": 2, "mse": 3}
    cells = [
        with_interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"], places)
        for metric, places in digits.items()
    ]
    return [*cells, number(float(row["target_variance"]), 3)]


def _averages(summary: pd.DataFrame, by: str, group: str, average: str = "mean") -> list:
    """Slides, patients, the figures of one group, and what their intervals are over."""
    results = {metric: pick(summary, metric, by, group, average) for metric in METRICS}
    figures = {}
    for metric, result in results.items():
        figures |= {metric: result["value"], f"{metric}_low": result["low"]}
        figures[f"{metric}_high"] = result["high"]
    fullest = max(results.values(), key=lambda result: result["units"])
    over = over_units(fullest["unit"], int(fullest["units"]))
    if all(np.isnan(result["low"]) for result in results.values()):
        over = f"none: {over}"
    counts = [int(fullest["slides"]), int(fullest["patients"]) or NONE]
    return [*counts, *figure_cells(figures), over]


def result_table(summary: pd.DataFrame, num_hvg: int) -> Table:
    """All test slides, then parts of them wherever there is more than one part."""
    parts = {
        by: list(dict.fromkeys(summary.loc[summary["by"] == by, "group"]))
        for by in ("patient_seen", "cancer", "fold")
    }
    rows = [["all test slides", *_averages(summary, "all", "all")]]
    if len(parts["cancer"]) > 1:
        rows.append(["all, mean of cancers", *_averages(summary, "all", "all", "macro")])
    for by, groups in parts.items():
        if len(groups) == 1 or (by == "fold" and not _folds_say_more(summary, groups)):
            continue
        for group in groups:
            name = SEEN_GROUPS[group] if by == "patient_seen" else f"{by} {group or NONE}"
            rows.append([name, *_averages(summary, by, group)])
    note = (
        f"{averaging(pick(summary, 'pcc_hvg')['unit'])} Brackets: 95 % interval, which takes "
        f"{FEWEST} patients (or slides, where all are of one or none is known) at least; a dash "
        "where nothing could be scored."
    )
    left = int(summary.loc[summary["by"] == "all", "slides_below_floor"].iloc[0])
    if left:
        note += f" {plural(left, 'slide')} of fewer than {MIN_SPOTS} spots left out."
    columns = ["", "slides", "patients", *headings(num_hvg), "95 % interval over"]
    return Table("", columns, rows, note)


def _folds_say_more(summary: pd.DataFrame, folds: list) -> bool:
    """Folds of one slide repeat the table of slides."""
    several = summary.loc[summary["by"] == "fold", "slides"].max() > 1
    return several and len(folds) <= _FOLDS


def slide_rows(slides: pd.DataFrame, num_hvg: int) -> list[Table]:
    """One row a test slide: its figures, and what could not be scored."""
    names = ["slide", "fold", "cancer", "patient", "in training"]
    figures, counts = [], []
    for s in slides.itertuples():
        row = [s.slide_id, s.fold, s.cancer or NONE, s.patient or NONE, s.patient_seen]
        error, variance = number(s.mse, 3), number(s.target_variance, 3)
        spots = f"{s.spots:,}, not averaged" if s.below_floor else s.spots
        figures.append([*row, spots, s.pcc_hvg, s.pcc_all, error, variance])
        scored = [f"{s.hvgs_scored} of {s.hvgs}", f"{s.genes_scored:,} of {s.genes:,}"]
        missing = [s.genes_unmeasured, s.genes_constant, s.genes_constant_prediction]
        counts.append([*row[:2], *scored, *missing])
    columns = [*names, "spots", *headings(num_hvg)]
    scored = ["HVGs scored", "genes scored", "not measured", "constant", "constant prediction"]
    return [
        Table("", columns, figures, text_columns=5),
        Table("What could be scored", [*names[:2], *scored], counts, text_columns=2),
    ]


def patient_table(slides: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """One row a patient that is known: means over its slides, and what could not be scored.

    Args:
        slides: as ``histokit.evaluate.summary.slide_table`` returns them.
        summary: as ``histokit.evaluate.summary.summarize`` returns it.

    Returns:
        patient, patient_seen, slides and spots that are averaged, slides_below_floor, the figures
        of ``METRICS``, and the least and the most genes of a slide that are constant in measurement
        (genes_constant_) or in prediction (genes_constant_prediction_).
    """
    rows = []
    for patient, listed in slides[slides["patient"] != ""].groupby("patient", sort=False):
        once = averaged(listed).drop_duplicates("slide_id")
        counts = pick(summary, "pcc_hvg", "patient", patient)
        row = {"patient": patient, "patient_seen": ", ".join(listed["patient_seen"].unique())}
        row |= {"slides": int(counts["slides"]), "spots": int(once["spots"].sum())}
        row["slides_below_floor"] = int(counts["slides_below_floor"])
        row |= {m: pick(summary, m, "patient", patient)["value"] for m in METRICS}
        for name in ("genes_constant", "genes_constant_prediction"):
            row |= {f"{name}_least": listed[name].min(), f"{name}_most": listed[name].max()}
        rows.append(row)
    return pd.DataFrame(rows)


def patient_rows(patients: pd.DataFrame, num_hvg: int) -> Table:
    """The table of ``patient_table`` for reading."""
    columns = ["patient", "in training", "slides", "spots", *headings(num_hvg)]
    columns += ["constant genes", "constant predictions"]
    rows = [
        [p.patient, p.patient_seen, p.slides, p.spots, float(p.pcc_hvg), float(p.pcc_all),
         number(p.mse, 3), number(p.target_variance, 3),
         _span(p.genes_constant_least, p.genes_constant_most),
         _span(p.genes_constant_prediction_least, p.genes_constant_prediction_most)]
        for p in patients.itertuples()
    ]  # fmt: skip
    note = "Means over the slides of a patient. Constant genes are those of a slide."
    return Table("", columns, rows, note, text_columns=2)


def _span(least: int, most: int) -> str:
    return number(least) if least == most else f"{number(least)} to {number(most)}"


def gene_rows(genes: pd.DataFrame) -> list[Table]:
    """The best and the worst predicted of the highly variable genes."""
    scored = genes[(genes["hvg_folds"] > 0) & genes["pcc"].notna()]
    named = {g.Index: names_of(g.Index, g.symbol, g.gene_id) for g in scored.itertuples()}
    words = 2 if any(other for _, other in named.values()) else 1  # the id only where there are ids
    columns = [*("gene", "id")[:words], "PCC", "lowest slide", "highest slide", "slides scored"]

    def rows(part: pd.DataFrame) -> list[list]:
        figures = part[["pcc", "pcc_lowest", "pcc_highest", "slides_scored"]].to_numpy()
        names = [[name or NONE for name in named[gene][:words]] for gene in part.index]
        return [
            [*name, *map(float, row[:3]), int(row[3])]
            for name, row in zip(names, figures, strict=True)
        ]

    if scored.empty:
        return []
    best = Table("Best predicted", columns, rows(scored.head(_GENES)), "", words)
    worst = Table("Worst predicted", columns, rows(scored.tail(_GENES).iloc[::-1]), "", words)
    return [best, worst] if len(scored) > _GENES else [best]


def map_sections(maps: Sequence[Picture], genes: pd.DataFrame) -> list[Section]:
    """The pictures of tissue, and how their genes were chosen; nothing without pictures."""
    if not maps:
        return []
    text = (
        "The most variable genes; none has a correlation by which to choose."
        if genes["pcc"].isna().all()
        else "Best, median and worst of the highly variable genes by their mean PCC over all test "
        "patients, on slides that stand in the middle of their fold."
    )
    return [Section("On the tissue", text, pictures=maps)]


def detail_sections(
    slides: pd.DataFrame, patients: pd.DataFrame, genes: pd.DataFrame
) -> list[Section]:
    """Every test patient and slide, and the best and the worst of the highly variable genes."""
    sections, hvgs = [], int(slides["hvgs"].max())
    if len(patients):
        sections.append(Section("Patients", tables=[patient_rows(patients, hvgs)]))
    sections.append(Section("Slides", tables=slide_rows(slides, hvgs)))
    if tables := gene_rows(genes):
        text = "Highly variable genes only; genes.csv holds every gene."
        sections.append(Section("Genes", text, tables))
    return sections


def text_table(table: Table) -> str:
    """A table for the terminal, in aligned columns, and its note."""
    cells = [list(table.columns), *([number(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i < table.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "-" * int(np.max([len(line) for line in lines])))
    return "\n".join([*lines, *([table.note] if table.note else [])])
