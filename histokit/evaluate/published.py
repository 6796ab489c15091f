"""Figures that papers print, as data, and whether a run's figures may stand beside them.

``published.csv``: task, model, encoder, metric, value, spread (standard deviation over folds,
where printed), protocol (of ``histokit.evaluate.protocols``, else in words), source, note. Notes
that begin ``unverified`` or ``read by a third party`` mark figures that were not read in the
authors' own table.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.evaluate.runs import Run


def _numbered(prefix: str, *numbers: int) -> frozenset[str]:
    return frozenset(f"{prefix}{number}" for number in numbers)


# Test slides and folds of HEST-Bench's tasks, by its folders' names.
TASKS = {
    "IDC": (_numbered("TENX", 95, 99) | _numbered("NCBI", 783, 785), 4),
    "PRAD": (_numbered("MEND", *range(139, 155), *range(156, 163)), 2),
    "PAAD": (_numbered("TENX", 116, 126, 140), 3),
    "SKCM": (_numbered("TENX", 115, 117), 2),
    "COAD": (_numbered("TENX", 111, 147, 148, 149), 2),
    "READ": (_numbered("ZEN", 36, 40, 48, 49), 2),
    "CCRCC": (_numbered("INT", *range(1, 25)), 6),
    "LUNG": (_numbered("TENX", 118, 141), 2),
    "LYMPH_IDC": (_numbered("NCBI", 681, 682, 683, 684), 4),
}
# Test slides of HistoPrism's two splits: the first two folds of each task.
HISTOPRISM = {task: slides for task, (slides, _) in TASKS.items()} | {
    "CCRCC": _numbered("INT", *range(9, 16), 24),
    "HCC": _numbered("NCBI", 642, 643),
    "IDC": _numbered("TENX", 95, 99),
    "LYMPH_IDC": _numbered("NCBI", 683, 684),
    "PAAD": _numbered("TENX", 116, 140),
}


def read_published(task: str | None = None) -> pd.DataFrame:
    """All published figures, or those of one task; raises InputError for an unknown task."""
    with (files("histokit.evaluate") / "published.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file, keep_default_na=False, na_values={"value": [""], "spread": [""]})
    if task is None:
        return table
    rows = table[table["task"] == task]
    if rows.empty:
        known = ", ".join(dict.fromkeys(table["task"]))
        raise InputError(f"no published figure of the task {task!r}; choose from {known}")
    return rows.reset_index(drop=True)


def beside_published(
    run: Run, task: str, protocol: str, figures: pd.DataFrame, listed: bool
) -> pd.DataFrame:
    """Published figures of a task with the run's own, each marked comparable or not.

    Args:
        run: the run.
        task: the task of the published rows.
        protocol: name of the one the run was scored under.
        figures: as ``histokit.evaluate.protocol_scores.score_protocol`` returns them; may be empty.
        listed: whether the run was scored on a given gene list and not on one chosen here.

    Returns:
        The published rows with columns ``run`` (the run's figure of the same metric and protocol,
        NaN where there is none), ``comparable`` (bool) and ``reason`` (empty where comparable).
    """
    rows = read_published(task)
    own = {}
    if len(figures):
        whole = figures["group"] == "all"
        of_task = (figures["group"] == task) & figures["figure"].str.contains("-cancer")
        own = figures[whole | of_task].set_index("figure")["value"]
    rows["run"] = [
        own.get(metric, np.nan) if theirs == protocol else np.nan
        for metric, theirs in rows[["metric", "protocol"]].to_numpy()
    ]
    reasons = [
        "; ".join([*_of_row(row, protocol), *_differences(run, task, row.protocol, listed)])
        for row in rows.itertuples(index=False)
    ]
    return rows.assign(comparable=[not reason for reason in reasons], reason=reasons)


def _of_row(row, protocol: str) -> list[str]:
    reasons = []
    if row.protocol != protocol:
        reasons.append(f"theirs is scored as {row.protocol}, the run as {protocol}")
    elif row.protocol == "stpath":
        reasons.append("theirs was pretrained on other slides")
    if "unstated" in row.note or "unverified" in row.note:
        reasons.append(row.note)
    return reasons


def _differences(run: Run, task: str, protocol: str, listed: bool) -> list[str]:
    """What sets the run apart from the published figures of a task and a protocol."""
    tests = [fold.split[fold.split["split"] == "test"] for fold in run.folds]
    if protocol == "histoprism":
        return _histoprism(task, pd.concat(tests), len(tests), listed)
    if task not in TASKS:
        return ["the test slides behind it are not those of one task"]
    slides, folds = TASKS[task]
    if protocol == "stem-topk":  # one slide held out at a time
        folds = len(slides)
    tested = {s for test in tests for s in test["slide_id"]}
    reasons = []
    if tested != slides:
        shown = ", ".join(sorted(tested)[:3])
        reasons.append(f"other test slides ({shown}{', ...' if len(tested) > 3 else ''})")
    if len(run.folds) != folds:
        reasons.append(f"{len(run.folds)} folds instead of {folds}")
    if not listed:
        reasons.append("genes chosen anew, not the published list (--hvg-file)")
    return reasons


def _histoprism(task: str, tested: pd.DataFrame, folds: int, listed: bool) -> list[str]:
    """What sets a run apart from HistoPrism's splits, for one cancer or for all (``average``)."""
    if task != "average" and task not in HISTOPRISM:
        return ["the test slides behind it are not those of one cancer"]
    expected = frozenset().union(*HISTOPRISM.values())
    if task != "average":
        expected, tested = HISTOPRISM[task], tested[tested["cancer"] == task]
    found, reasons = set(tested["slide_id"]), []
    if found != expected:
        lacking, other = len(expected - found), len(found - expected)
        reasons.append(
            f"{lacking} of its {len(expected)} test slides are not among the run's, which has "
            f"{other} others"
        )
    if folds != 2:
        reasons.append(f"{folds} splits instead of 2")
    if not listed:
        reasons.append("genes chosen anew, not the published lists (--hvg-file)")
    return reasons
