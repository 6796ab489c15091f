"""HistoPrism's ablation: what its cross-attention, positions and encoder are worth over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.summary import METRICS, pick
from histokit.evaluate.tables import headings
from histokit.report.page import Section, Table, number, plural

FACTORS = {"conditioning": "cross-attention", "positions": "positions", "encoder": "encoder"}
# Options that say where and how a training ran, not what was trained.
APART = (
    "run allow_leakage allow_missing controls cache_gb workers on_error device kernels "
    "checkpoint_seconds tensorboard"
).split()
TITLE = "Ablation"


def ablation_comparison(
    results: Mapping[str, Evaluation], folder: Path, num_hvg: int
) -> list[Section]:
    """Runs that differ in the factors of HistoPrism's ablation, averaged over their seeds.

    Args:
        results: the runs of a comparison, by name; those of other models and controls are left out.
        folder: gets ablation.csv.
        num_hvg: genes of the headline PCC.

    Returns:
        A section; none where no factor varies. Runs that differ in another option as well, or
        repeat a seed, get a section that says so and no table, for a mean over them would not be
        one over seeds.
    """
    runs = {
        name: result
        for name, result in results.items()
        if set(FACTORS) <= set(_options(result)) and not result.job.control
        if _options(result)["conditioning"] is not None
    }
    table = pd.DataFrame([_row(result) for result in runs.values()], index=list(runs))
    if table.empty or (table[list(FACTORS)].nunique() < 2).all():
        return []
    if fault := _fault(runs, table):
        return [Section(TITLE, f"The runs are not averaged over seeds: {fault}.")]
    cells = table.groupby(list(FACTORS), sort=False)
    found = cells.size().rename("seeds").to_frame()
    for metric in METRICS:
        values = table.set_index(list(FACTORS))[metric].groupby(level=list(FACTORS), sort=False)
        found[metric] = values.agg(lambda seeds: seeds.mean(skipna=False))
        found[f"{metric}_sd"] = values.agg(lambda seeds: seeds.std(skipna=False))
    found = found.reset_index()
    found.to_csv(folder / "ablation.csv", index=False)
    return [Section(TITLE, TEXT, [_shown(found, num_hvg, _note(runs, found))])]


def _options(result: Evaluation) -> dict:
    return result.job.run.config["options"]


def _row(result: Evaluation) -> dict:
    options = _options(result)
    row = {name: options[name] for name in (*FACTORS, "seed")}
    return row | {metric: pick(result.summary, metric, "all", "all")["value"] for metric in METRICS}


def _fault(runs: Mapping[str, Evaluation], table: pd.DataFrame) -> str:
    """Why the rows of one cell are not the same training under other seeds; empty if they are."""
    own = {*FACTORS, "seed", *APART}
    options = [_options(result) for result in runs.values()]
    names = sorted(set().union(*options) - own)
    other = [name for name in names if len({str(each.get(name)) for each in options}) > 1]
    if other:
        return f"they also differ in --{', --'.join(other).replace('_', '-')}"
    if table.duplicated([*FACTORS, "seed"]).any():
        return "two have the same cross-attention, positions, encoder and seed"
    return ""


TEXT = (
    "Parts of HistoPrism, as its paper's Tables 3 and 4 take them apart: mean ± standard deviation "
    "over seeds of each run's mean, averaged as above. The deviation is that of weights, dropout, "
    "order and the choice of validation patients; how the figures would vary with other patients "
    "is in the intervals of the table of runs."
)


def _note(runs: Mapping[str, Evaluation], found: pd.DataFrame) -> str:
    said = []
    if found["seeds"].nunique() > 1:
        said.append("Not every row has the same number of seeds.")
    if found["seeds"].min() == 1:
        said.append("One seed has no deviation: differences of rows may be those of the seed.")
    if found["conditioning"].nunique() > 1:
        said.append(_empty_factor(runs))
    return " ".join(filter(None, said))


def _empty_factor(runs: Mapping[str, Evaluation]) -> str:
    """A warning where all training slides have one code, which tells a model nothing of a slide.

    A slide without a code is told none, so beside slides of one code it is another kind of slide.
    """
    told = {}
    for result in runs.values():
        for fold in result.job.run.folds:
            split = fold.split
            told[fold.name] = {*split.loc[split["split"] != "test", "cancer"]}
    lone = [name for name, cancers in told.items() if len(cancers) < 2]
    if not lone:
        return ""
    where = "" if len(lone) == len(told) else f" in {plural(len(lone), 'fold')} of {len(told)}"
    codes = sorted(set().union(*(told[name] for name in lone)))
    which = f" ({', '.join(code or 'none' for code in codes)})"
    return (
        f"The factor cross-attention is empty{where}: all training slides have one cancer code"
        f"{which}, so it adds one vector to every patch of every slide, or none, and its rows "
        "compare a model of more parameters to one of fewer, not one that knows the cancer to one "
        "that does not."
    )


def _shown(found: pd.DataFrame, num_hvg: int, note: str) -> Table:
    rows = []
    for row in found.to_dict("records"):
        cells = [row[name] for name in FACTORS]
        figures = [
            f"{number(row[metric], 4)} ± {number(row[f'{metric}_sd'], 4)}" for metric in METRICS
        ]
        rows.append([*cells, str(row["seeds"]), *figures])
    columns = [*FACTORS.values(), "seeds", *headings(num_hvg)]
    return Table(TITLE, columns, rows, note, text_columns=len(FACTORS))
