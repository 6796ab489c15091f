"""A benchmark's table: an encoder on every task, beside what is published and what is sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.encoder_names import split_maker
from histokit.core.errors import InputError
from histokit.core.tables import read_table
from histokit.evaluate.published import TASKS, read_published
from histokit.evaluate.summary import pick
from histokit.evaluate.verdict import with_interval
from histokit.report.page import NONE, Table, number

LEADERBOARD = tuple(TASKS)  # the nine tasks of HEST-Bench's average, which leaves HCC out
AVERAGE = "average"
PRINTED_AS = {  # a model of the registry: what published.csv calls it
    "ridge-hest": "ridge-hest",
    "ridge-hest-no-pca": "ridge without PCA",
    "ridge": "ridge, alpha by CV",
    "bpbooster": "BP-Booster-random",
}
_FIGURE = "pcc"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model on one task.

    Attributes:
        task: the task's folder name.
        model: as ``run_train.py --model`` names it.
        target: the scale of its targets.
        pooled, deviation: mean over folds of the PCC over a fold's spots, and its deviation
            (ddof 0), NaN where the target is not the benchmark's.
        slide, low, high: mean PCC within slides, and its 95 % interval (NaN where too few units).
        published: the printed figure of this encoder and model, NaN without one.
        spread: its printed deviation.
    """

    task: str
    model: str
    target: str
    pooled: float
    deviation: float
    slide: float
    low: float
    high: float
    published: float = float("nan")
    spread: float = float("nan")


def read_entry(task: str, model: str, target: str, encoder: str, folder: Path) -> Entry:
    """The figures in a folder that ``run_eval.py`` wrote.

    Raises:
        InputError: the folder is no evaluation.
    """
    summary = pd.read_csv(_file(folder, "summary.csv"))
    row = pick(summary, "pcc_hvg")
    pooled = deviation = float("nan")
    if (folder / "protocol.csv").is_file():
        table = read_table(folder / "protocol.csv", ("figure", "group", "value", "deviation"))
        (own,) = table[(table["figure"] == _FIGURE) & (table["group"] == "all")].to_dict("records")
        pooled, deviation = float(own["value"] or "nan"), float(own["deviation"] or "nan")
    published, spread = printed(task, model, encoder)
    figures = (float(row[name]) for name in ("value", "low", "high"))
    return Entry(task, model, target, pooled, deviation, *figures, published, spread)


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(f"{folder} is no evaluation: it holds no {name}; remove it and run again")
    return folder / name


def printed(task: str, model: str, encoder: str) -> tuple[float, float]:
    """The published figure and its deviation of a model on features of an encoder, else NaN."""
    rows = read_published()
    same = (rows["task"] == task) & (rows["model"] == PRINTED_AS.get(model, model))
    same &= rows["encoder"] == split_maker(encoder)[0]
    same &= (rows["protocol"] == "hest-bench") & (rows["metric"] == _FIGURE)
    found = rows[same & rows["value"].notna()]
    if found.empty:
        return float("nan"), float("nan")
    return float(found["value"].iloc[0]), float(found["spread"].iloc[0])


def averaged(entries: Sequence[Entry], encoder: str) -> list[Entry]:
    """For each model and target the plain mean over the leaderboard's tasks that are there.

    The published average stands beside it only where all nine are.
    """
    found = []
    for model, target in dict.fromkeys((e.model, e.target) for e in entries):
        own = [e for e in entries if (e.model, e.target) == (model, target)]
        own = [e for e in own if e.task in LEADERBOARD] or own
        pooled, slide = (np.mean([getattr(e, k) for e in own]) for k in ("pooled", "slide"))
        nothing = float("nan")
        whole = {e.task for e in own} == set(LEADERBOARD)
        published = printed(AVERAGE, model, encoder)[0] if whole else nothing
        found.append(
            Entry(AVERAGE, model, target, pooled, nothing, slide, nothing, nothing, published)
        )
    return found


def as_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row an entry, with the difference to what is published."""
    table = pd.DataFrame([dataclasses.asdict(e) for e in entries])
    table.insert(
        table.columns.get_loc("spread"), "difference", table["pooled"] - table["published"]
    )
    return table


def as_table(entries: Sequence[Entry], title: str) -> Table:
    """The same for reading: tasks below each other, a row a model."""
    rows = []
    for e in entries:
        pooled = number(e.pooled, 4)
        if not np.isnan(e.deviation):
            pooled += f" ± {e.deviation:.4f}"
        apart = NONE if np.isnan(e.pooled - e.published) else f"{e.pooled - e.published:+z.4f}"
        within = with_interval(e.slide, e.low, e.high)
        rows.append([e.task, e.model, e.target, pooled, number(e.published, 4), apart, within])
    columns = ["task", "model", "target", "PCC, spots of a fold pooled", "published", "difference"]
    note = (
        "Pooled: as HEST-Bench, mean over 50 given genes, then over folds (± their deviation), on "
        "log1p of raw counts; differences between slides and in sequencing depth count there. "
        "Within slides: the same genes, mean over the slides of a patient, then over patients; "
        "brackets: 95 % interval over them."
    )
    return Table(title, [*columns, "PCC within slides"], rows, note, text_columns=3)
