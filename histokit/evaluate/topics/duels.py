"""Two runs compared pathway by pathway."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.files import file_id
from histokit.evaluate.coherence import (
    WinRate,
    coherence,
    paired,
    pathway_by_slide,
    scores_by_level,
    slide_intervals,
    slide_means,
    win_rate,
)
from histokit.evaluate.intervals import ANYWHERE, units_of
from histokit.evaluate.topics.pathway_plots import by_level, pathway_scatter
from histokit.evaluate.topics.pathways import Collection, PathwayGenes
from histokit.evaluate.verdict import interval_note, with_interval
from histokit.report import plots
from histokit.report.page import Picture, Section, Table

LEVELS = ["gene sets", "target", "run", "against", "level", "pathways", "gain"]
_DRAWN = 3  # pairs of runs with pictures
DUEL_TEXT = (
    "Both runs are scored on the genes and slides that both allow, pathway by pathway. The win "
    "rate is the share of pathways that the first run scores higher; its interval reaches from the "
    "share whose own gain is above zero with 95 % confidence to the share whose gain is not below "
    "it. Pathways share genes, so they are no independent witnesses: a win rate "
    "near 100 % can come from one small advantage on every gene, and the p value (Wilcoxon's "
    "signed ranks over pathways) is too small. Read the gain and its interval first."
)


@dataclasses.dataclass(frozen=True)
class Duel:
    """Two runs on one collection, over genes and slides that both could be scored on.

    Attributes:
        table: by pathway, score, other, gain with gain_low and gain_high, genes, variance_level.
        levels: gain by variance level.
    """

    collection: str
    transform: str
    run: str
    other: str
    wins: WinRate
    table: pd.DataFrame
    levels: pd.DataFrame


def compare_pathways(
    collection: Collection,
    names: tuple[str, str],
    runs: tuple[PathwayGenes, PathwayGenes],
    transform: str,
) -> Duel | None:
    """Compare two runs pathway by pathway; None where no pathway is scored in both."""
    pcc, pcc_other = paired(runs[0].pcc, runs[1].pcc)
    panel = runs[0].panel[runs[0].panel["gene"].isin(pcc.index)]
    kept, _, _ = collection.within(panel)
    by_slide, other = pathway_by_slide(kept, pcc)[0], pathway_by_slide(kept, pcc_other)[0]
    gains = by_slide - other
    if gains.isna().all(axis=None):
        return None
    patients = runs[0].patients
    table = coherence(kept, pcc, runs[0].variance, patients)
    table = table[["score", "genes", "slides", "variance", "variance_level"]]
    low, high = slide_intervals(gains, patients)
    table = table.assign(
        other=slide_means(other, patients),
        gain=slide_means(gains, patients),
        gain_low=low,
        gain_high=high,
    )
    levels = scores_by_level(table, gains, patients, ANYWHERE)
    wins = win_rate(gains, patients)
    return Duel(collection.name, transform, *names, wins, table, levels)


def duel_sections(
    collections: Sequence[Collection],
    runs: Mapping[str, PathwayGenes],
    order: Mapping[str, Sequence[str]],
    folder: Path,
) -> list[Section]:
    """The best run against each other one, collection by collection; empty without a pair.

    Args:
        collections: the gene sets.
        runs: by name.
        order: names of the runs on each target, best first.
        folder: the folder of the comparison; gets pathways.csv, pathway_levels.csv (gain of each
            variance level, with its interval) and pictures.
    """
    duels = [
        duel
        for transform, names in order.items()
        for collection in collections
        for duel in _duels(collection, names, runs, transform)
    ]
    if not duels:
        return []
    whole = [
        duel.table.reset_index().assign(
            collection=duel.collection, target=duel.transform, run=duel.run, other_run=duel.other
        )
        for duel in duels
    ]
    pd.concat(whole).to_csv(folder / "pathways.csv", index=False, float_format="%.6g")
    rows = [_duel_row(duel) for duel in duels]
    columns = ["gene sets", "target", "run", "against", "higher on", "win rate", "gain", "p"]
    units = units_of(next(iter(runs.values())).patients)
    given = any(not np.isnan(duel.wins.gain_low) for duel in duels)
    note = interval_note(units.name, len(set(units.labels)), given)
    levels = [row for duel in duels for row in _level_rows(duel)]
    tables = [
        Table("", columns, rows, note, text_columns=4),
        Table("Gain by variance level of a pathway's genes", LEVELS, levels, note, text_columns=4),
    ]
    strata = [
        duel.levels.reset_index().assign(
            collection=duel.collection, target=duel.transform, run=duel.run, other_run=duel.other
        )
        for duel in duels
    ]
    pd.concat(strata).to_csv(folder / "pathway_levels.csv", index=False, float_format="%.6g")
    pictures = [picture for duel in duels[: _DRAWN * len(collections)]
                for picture in _duel_pictures(duel, folder)]  # fmt: skip
    return [Section("Pathway by pathway", DUEL_TEXT, tables, pictures)]


def _duels(collection: Collection, names, runs, transform) -> list[Duel]:
    able = [name for name in names if runs[name].pcc.notna().any(axis=None)]
    pairs = [
        compare_pathways(collection, (able[0], other), (runs[able[0]], runs[other]), transform)
        for other in able[1:]
    ]
    return [duel for duel in pairs if duel is not None]


def _duel_row(duel: Duel) -> list:
    wins = duel.wins
    ends = [] if np.isnan(wins.low) else [f" [{wins.low:.0%}, {wins.high:.0%}]"]
    return [
        duel.collection,
        duel.transform,
        duel.run,
        duel.other,
        f"{wins.wins} of {wins.pathways}",
        "".join([f"{wins.rate:.0%}", *ends]),
        with_interval(wins.gain, wins.gain_low, wins.gain_high, 3),
        f"{wins.p_value:.1g}",
    ]


def _level_rows(duel: Duel) -> list[list]:
    named = [duel.collection, duel.transform, duel.run, duel.other]
    return [
        [*named, int(level), int(row["pathways"]), with_interval(*row[["value", "low", "high"]], 3)]
        for level, row in duel.levels.iterrows()
    ]


def _duel_pictures(duel: Duel, folder: Path) -> list[Picture]:
    stem = file_id(f"{duel.collection}_{duel.transform}_{duel.run}_{duel.other}")
    scatter, gains = folder / f"scatter_{stem}.png", folder / f"gain_{stem}.png"
    table, names = duel.table, (duel.other, duel.run)
    figure = pathway_scatter(table["other"], table["score"], table["variance_level"], names)
    plots.save(figure, scatter)
    label = f"gain of {duel.run}\nover {duel.other}"
    plots.save(by_level(table["gain"], table["variance_level"], duel.levels, label), gains)
    return [
        Picture(
            scatter,
            f"{duel.collection}: each point is a pathway; above the diagonal {duel.run} predicts "
            "it better. Color is the variance level of its genes.",
            60,
        ),
        Picture(
            gains,
            f"{duel.collection}: gain in coherence by variance level; diamonds are the mean of a "
            "level and its 95 % interval, where there is one.",
            65,
        ),
    ]
