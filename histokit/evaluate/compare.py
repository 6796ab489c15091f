"""Runs side by side: one more folder with tables, pictures and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.data.views import LABELS, LIBRARY_SIZE
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.folders import versions, whole_folder
from histokit.evaluate.intervals import mean_interval, units_of
from histokit.evaluate.options import Options
from histokit.evaluate.summary import METRICS, MIN_SPOTS, averaged, one_row_a_slide, pick
from histokit.evaluate.tables import SEEN_GROUPS, figure_cells, headings
from histokit.evaluate.topics.ablation import ablation_comparison
from histokit.evaluate.topics.clusters import cluster_comparison
from histokit.evaluate.topics.duels import duel_sections
from histokit.evaluate.topics.pathways import Collection, PathwayGenes
from histokit.evaluate.topics.protocol import protocol_comparison
from histokit.evaluate.verdict import GLOSSARY, interval_note, over_units, with_interval
from histokit.report import plots
from histokit.report.page import Page, Picture, Section, Table, plural, render


def without_repeats(results: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Drop library-size controls that repeat another: they depend on targets and folds alone."""
    kept, seen = {}, []
    for name, result in results.items():
        key = [result.target, result.training, result.panel, result.hvg_sets]
        if result.job.control == LABELS[LIBRARY_SIZE]:
            if key in seen:
                continue
            seen.append(key)
        kept[name] = result
    return kept


def compare_runs(
    results: Mapping[str, Evaluation],
    genes: Mapping[str, PathwayGenes],
    collections: Sequence[Collection],
    out: Path,
    cfg: Options,
) -> list[Table]:
    """Write the folder that sets runs side by side; returns its tables.

    Args:
        results: the results of the runs, by name.
        genes: what a comparison of pathways needs of each run.
        collections: gene sets to compare runs by.
        out: the folder.
        cfg: the options.
    """
    table = compare(results)
    num_hvg = max(int(result.slides["hvgs"].max()) for result in results.values())
    notes = comparison_notes(results)
    tables, said, pictures = [], [], []
    with whole_folder(out) as folder:
        for (transform, by, group), rows in table.groupby(["transform", "by", "group"], sort=False):
            count = plural(int(rows["slides"].iloc[0]), "test slide")
            which = "" if by == "all" else f" of {SEEN_GROUPS[group]}"
            tables.append(comparison_rows(rows, num_hvg, f"{count}{which}, target {transform}"))
            if by == "all":
                said.append(comparison_verdict(rows, transform))
                path = folder / f"runs_{transform}.png"
                label = f"PCC, mean over {num_hvg} highly variable genes ({transform})"
                plots.save(plots.run_dots(rows, label), path)
                caption = f"Target {transform}: mean of each run and its 95 % interval."
                pictures.append(Picture(path, caption, width=75))
        caveats = {name: " ".join(result.caveats) for name, result in results.items()}
        table = table.assign(caveats=table["run"].map(caveats))
        table.to_csv(folder / "comparison.csv", index=False)
        order = table[table["by"] == "all"].groupby("transform", sort=False)["run"].agg(list)
        duels = duel_sections(collections, genes, order, folder)
        more = ablation_comparison(results, folder, num_hvg)
        more += protocol_comparison(results, cfg.protocol, folder)
        more += cluster_comparison(results, folder) if cfg.clusters else []
        page = Page(
            "Runs side by side",
            f"{plural(len(results), 'run')} on the same test slides",
            [*said, *notes],
            [Section("Results", COMPARISON_TEXT, tables, pictures), *duels, *more],
            {"evaluation": dataclasses.asdict(cfg), "versions": versions()},
            GLOSSARY,
        )
        render(folder / "report.html", page)
    print("\n".join(notes))
    return tables + [table for section in more for table in section.tables]


def compare(runs: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Runs on the same slides, those of one target together: figures of others say nothing here.

    Args:
        runs: by name.

    Returns:
        Blocks by transform and group of slides (all; by whether the patient was seen, where all
        runs agree on that), one row a run, best PCC first; ``difference`` is to the first row of
        the block, paired by slide.
    """
    groups = [("all", "all")]
    seen = [_by_slide(run.slides, "patient_seen").sort_index() for run in runs.values()]
    if all(other.equals(seen[0]) for other in seen) and seen[0].nunique() > 1:
        groups += [("patient_seen", name) for name in seen[0].unique()]
    rows = []
    for transform in dict.fromkeys(run.target for run in runs.values()):
        alike = {name: run for name, run in runs.items() if run.target == transform}
        for by, group in groups:
            members = seen[0].index if by == "all" else seen[0].index[seen[0] == group]
            rows += _block(alike, by, group, members)
    columns = ["difference", "difference_low", "difference_high"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*rows[0], *columns])))


def _block(runs: Mapping[str, Evaluation], by: str, group: str, slides: pd.Index) -> list[dict]:
    block = [_compared(name, run, by, group) for name, run in runs.items()]
    # Controls come last: nobody chooses one, however high it scores.
    block.sort(
        key=lambda row: (
            bool(runs[row["run"]].job.control),
            -np.nan_to_num(row["pcc_hvg"], nan=-2),
        )
    )
    values = {name: _by_slide(run.slides, "pcc_hvg")[slides] for name, run in runs.items()}
    units = units_of(_by_slide(next(iter(runs.values())).slides, "patient")[slides])
    for row in block[1:]:
        paired = (values[row["run"]] - values[block[0]["run"]]).to_numpy()
        found = mean_interval(paired, units)
        row["difference"] = found.value
        row["difference_low"], row["difference_high"] = found.low, found.high
    return block


def _by_slide(slides: pd.DataFrame, column: str) -> pd.Series:
    return one_row_a_slide(averaged(slides)).set_index("slide_id")[column]


def _compared(name: str, run: Evaluation, by: str, group: str) -> dict:
    row = {"by": by, "group": group, "run": name, "unit": "", "units": 0}
    row |= {"model": run.model, "encoder": run.encoder, "transform": run.target}
    for metric in METRICS:
        result = pick(run.summary, metric, by, group)
        row |= {key: result[key] for key in ("slides", "patients", "slides_below_floor")}
        row |= {metric: result["value"], f"{metric}_low": result["low"]}
        row[f"{metric}_high"] = result["high"]
        row |= {"unit": result["unit"], "units": max(row["units"], result["units"])}
    return row


COMPARISON_TEXT = (
    "Each figure is a mean over the slides of a patient, then over patients (over slides where "
    "none is known, or all are of one patient), with its 95 % interval. “To best” is the "
    "difference in the PCC of the highly variable genes to the first row, paired by slide, with an "
    "interval over the same patients: where it holds 0, these slides do not tell the two apart."
)


def comparison_rows(table: pd.DataFrame, num_hvg: int, title: str) -> Table:
    """Runs of one group of slides, best first."""
    columns = ["run", "model", "encoder", *headings(num_hvg), "to best"]
    rows = []
    for row in table.to_dict("records"):
        gap = with_interval(*(row[f"difference{end}"] for end in ("", "_low", "_high")))
        rows.append([row["run"], row["model"], row["encoder"], *figure_cells(row), gap])
    first = table.sort_values("units", kind="stable").iloc[-1]
    given = table[[f"{metric}_low" for metric in METRICS]].notna().any(axis=None)
    note = interval_note(first["unit"], int(first["units"]), given)
    left = int(first["slides_below_floor"])
    if left:
        note += f" {plural(left, 'slide')} of fewer than {MIN_SPOTS} spots left out."
    return Table(title, columns, rows, note, text_columns=3)


def comparison_verdict(rows: pd.DataFrame, transform: str) -> str:
    """Who is best, and by how much; rows: one block of ``histokit.evaluate.compare.compare``."""
    best = rows.iloc[0]
    if np.isnan(best["pcc_hvg"]):
        return f"No run on {transform} has a PCC: its predictions are the same in every spot."
    figure = with_interval(*best[["pcc_hvg", "pcc_hvg_low", "pcc_hvg_high"]])
    over = over_units(best["unit"], int(best["units"]))
    figure += f" (no interval: {over})" if np.isnan(best["pcc_hvg_low"]) else f" (over {over})"
    said = f"On {transform}, {best['run']} reaches the highest mean PCC, {figure}"
    following = rows.iloc[1:].dropna(subset="difference")
    if following.empty:
        return f"{said}."
    second = following.iloc[0]
    gap = with_interval(
        *(-second[name] for name in ("difference", "difference_high", "difference_low"))
    )
    said += f", and leads {second['run']} by {gap}"
    if np.isnan(second["difference_low"]):
        return f"{said}: {over} cannot tell the two apart."
    if second["difference_high"] >= 0:
        return f"{said}: these slides do not tell the two apart."
    return f"{said}."


def comparison_notes(runs: Mapping[str, Evaluation]) -> list[str]:
    """What keeps rows of a comparison from being compared, in sentences."""
    notes = []
    if len({run.target for run in runs.values()}) > 1:
        notes.append(
            "The runs have different targets and are ranked apart. MSE must not be compared across "
            "them; PCC on raw counts is higher for every model, because it holds the number of "
            "molecules caught."
        )
    scored = [tuple(run.slides.sort_values("slide_id")["hvgs_scored"]) for run in runs.values()]
    if len({counts for counts in scored if any(counts)}) > 1:
        notes.append(
            "Not every run could be scored on the same genes: a gene that a model predicts the "
            "same everywhere is left out of its mean, which flatters it; see slides.csv of each."
        )
    notes += _caveats(runs)
    spots = [_spots(run.slides) for run in runs.values()]
    if any(other != spots[0] for other in spots):
        notes.append("The runs score different spots of the same slides, so read them with care.")
    first = next(iter(runs.values()))
    for key, sentence in (
        (
            "hvg_sets",
            "The runs score different highly variable genes, so read their PCC with care.",
        ),
        ("panel", "The runs predict different genes, so PCC of all genes and MSE differ by that."),
        (
            "gene_ids",
            "The runs map symbols to ids differently (--gene-map), so a gene of one name may be "
            "measured differently.",
        ),
        (
            "same_id",
            "The runs make different counts of genes that share an id (--same-id), so what is "
            "predicted of them differs.",
        ),
        (
            "training",
            "The runs were trained on different slides for the same test slides, so not only the "
            "models differ.",
        ),
    ):
        if any(getattr(run, key) != getattr(first, key) for run in runs.values()):
            notes.append(sentence)
    return notes


def _spots(slides: pd.DataFrame) -> dict[str, int]:
    """How many spots of each slide were scored."""
    return slides.groupby("slide_id")["spots"].max().to_dict()


def _caveats(runs: Mapping[str, Evaluation]) -> list[str]:
    """What the report of each run warns of, once where several runs share it."""
    said: dict[str, list[str]] = {}
    for name, run in runs.items():
        for sentence in run.caveats:
            said.setdefault(sentence, []).append(name)
    return [
        sentence if len(names) == len(runs) else f"{', '.join(names)}: {sentence}"
        for sentence, names in said.items()
    ]
