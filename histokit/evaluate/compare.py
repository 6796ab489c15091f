"""Runs side by side: one more folder with tables, pictures and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from histokit.data.views import LABELS, LIBRARY_SIZE
from histokit.evaluate.folders import versions, whole_folder
from histokit.evaluate.summary import compare
from histokit.evaluate.tables import (
    COMPARISON_TEXT,
    SEEN_GROUPS,
    comparison_notes,
    comparison_rows,
    comparison_verdict,
)
from histokit.evaluate.topics.biology import read_biology
from histokit.evaluate.topics.duels import duel_sections
from histokit.evaluate.topics.trust import protocol_comparison
from histokit.evaluate.verdict import GLOSSARY
from histokit.report import plots
from histokit.report.page import Picture, Section, Table, plural, render


def without_repeats(results: Mapping[str, dict]) -> dict[str, dict]:
    """Drop library-size controls that repeat another: they depend on targets and folds alone."""
    kept, seen = {}, []
    for name, result in results.items():
        key = [result[k] for k in ("transform", "training", "panel", "hvg_sets")]
        if result["control"] == LABELS[LIBRARY_SIZE]:
            if key in seen:
                continue
            seen.append(key)
        kept[name] = result
    return kept


def compare_runs(results: Mapping[str, dict], out: Path, cfg) -> list[Table]:
    """Write the folder that sets runs side by side; returns its tables."""
    table = compare(results)
    num_hvg = max(int(result["slides"]["hvgs"].max()) for result in results.values())
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
                caption = f"Target {transform}: mean over test slides and its 95 % interval."
                pictures.append(Picture(path, caption, width=75))
        table.to_csv(folder / "comparison.csv", index=False)
        genes = {name: result["genes"] for name, result in results.items()}
        order = table[table["by"] == "all"].groupby("transform", sort=False)["run"].agg(list)
        duels = duel_sections(read_biology(cfg), genes, order, folder)
        more = protocol_comparison(results, cfg.protocol, folder)
        render(
            folder / "report.html",
            "Runs side by side",
            f"{plural(len(results), 'run')} on the same test slides",
            [*said, *comparison_notes(results)],
            [Section("Results", COMPARISON_TEXT, tables, pictures), *duels, *more],
            {"evaluation": dataclasses.asdict(cfg), "versions": versions()},
            GLOSSARY,
        )
    return tables + [table for section in more for table in section.tables]
