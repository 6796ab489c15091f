"""HistoPrism's tables from evaluated runs, beside what is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.encoder_names import split_maker
from histokit.core.errors import InputError
from histokit.core.tables import read_table
from histokit.evaluate.figures import figure_name
from histokit.evaluate.published import beside_published
from histokit.evaluate.runs import Run
from histokit.report.page import NONE, Table, number

PROTOCOL = "histoprism"
PRINTED_AS = {"histoprism": "HistoPrism", "stpath": "STPath", "mlp": "MLP"}
AVERAGES = ("pcc-top50-macro", "pcc-top50-micro", "pcc-all-macro", "pcc-all-micro")
AGREEMENT = ("ami", "ari")
OF_CANCER = "pcc-top50-cancer"
LEVEL = ("slide", "k-means")  # of clusters.csv: the rest of it stays there


def table_of(run: Run, folder: Path) -> pd.DataFrame:
    """The figures of a run beside the published ones of its model.

    Args:
        run: an evaluated run.
        folder: what ``run_eval.py --protocol histoprism --clusters`` wrote for it.

    Returns:
        figure, task (``average`` or a cancer), value, published, source, comparable, reason.

    Raises:
        InputError: the folder holds no figures under the protocol.
    """
    path = folder / "protocol.csv"
    if not path.is_file():
        raise InputError(f"{folder} holds no protocol.csv; evaluate with --protocol {PROTOCOL}")
    found = read_table(path, ("figure", "group", "value", "gene_rule"))
    found["value"] = pd.to_numeric(found["value"].replace("", "nan"))
    listed = found["gene_rule"].iloc[0].startswith("a list of")
    agreed = _agreement(folder)
    cancers = found.loc[found["figure"] == OF_CANCER, "group"]
    parts = []
    for task in ("average", *cancers):
        if task == "average":
            own = found[(found["group"] == "all") & found["figure"].isin(AVERAGES)]
            own = pd.concat([own, agreed])
        else:
            own = found[(found["group"] == task) & found["figure"].str.contains("-cancer")]
        parts.append(_beside(run, task, own, listed))
    return pd.concat(parts, ignore_index=True)


def _agreement(folder: Path) -> pd.DataFrame:
    """AMI and ARI of the clustered slides, as figures; empty where nothing was clustered."""
    if not (folder / "clusters.csv").is_file():
        return pd.DataFrame({"figure": [], "group": [], "value": []})
    clusters = pd.read_csv(folder / "clusters.csv").set_index(["level", "method"]).loc[LEVEL]
    return pd.DataFrame(
        {"figure": list(AGREEMENT), "group": "all", "value": [clusters[k] for k in AGREEMENT]}
    )


def _beside(run: Run, task: str, figures: pd.DataFrame, listed: bool) -> pd.DataFrame:
    options = run.config["options"]
    table = figures[["figure", "value"]].assign(task=task)
    try:
        rows = beside_published(run, task, PROTOCOL, figures, listed)
    except InputError:  # nothing is published of this cancer
        return table.assign(published=np.nan, source="", comparable=False, reason="")
    same = rows["model"] == PRINTED_AS.get(options["model"], options["model"])
    same &= rows["encoder"] == split_maker(options["encoder"])[0]
    own = rows[same & (rows["protocol"] == PROTOCOL)].drop_duplicates("metric").set_index("metric")
    found = own.reindex(table["figure"])
    return table.assign(
        published=found["value"].to_numpy(),
        source=found["source"].fillna("").to_numpy(),
        comparable=found["comparable"].eq(True).to_numpy(),
        reason=found["reason"].fillna("").to_numpy(),
    )


def as_table(tables: Mapping[str, pd.DataFrame], title: str) -> Table:
    """For reading: a row a figure, for each run its value and, where printed, the published one."""
    names = list(tables)
    keyed = {name: t.set_index(["task", "figure"]) for name, t in tables.items()}
    keys = list(dict.fromkeys(key for t in keyed.values() for key in t.index))
    keys = [k for k in keys if k[1] in (*AVERAGES, *AGREEMENT, OF_CANCER)]
    rows = []
    for task, figure in keys:
        label = figure_name(figure) if task == "average" else f"{figure_name(figure)}, {task}"
        cells = [_cell(keyed[name], (task, figure)) for name in names]
        rows.append([label, *cells])
    note = (
        "In brackets what is published for the model; see histoprism.csv for its source and "
        "whether it is comparable. Correlations are within a slide, on log1p of raw counts, so "
        "sequencing depth counts. Top genes: HistoPrism's 50. Of a cancer: mean over the slides of "
        "a split, then over splits."
    )
    return Table(title, ["figure", *names], rows, note)


def _cell(table: pd.DataFrame, key: tuple[str, str]) -> str:
    if key not in table.index:
        return NONE
    row = table.loc[key]
    printed = "" if np.isnan(row["published"]) else f" ({row['published']:.3f})"
    return number(row["value"], 3) + printed


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The tables of several runs, with the column ``run`` in front."""
    return pd.concat(tables, names=["run"]).reset_index(level=0).reset_index(drop=True)
