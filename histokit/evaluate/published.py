"""Figures that papers print, as data, and whether a run's figures may stand beside them.

``published.csv``: task, model, encoder, metric, value, spread (standard deviation over folds,
where printed), protocol (of ``histokit.evaluate.protocols``), source, note. Only ``unverified``
notes mark figures that were not read in the authors' own table.
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
        figures: as ``histokit.evaluate.protocols.score_protocol`` returns them; may be empty.
        listed: whether the run was scored on a given gene list and not on one chosen here.

    Returns:
        The published rows with columns ``run`` (the run's figure of the same metric and protocol,
        NaN where there is none), ``comparable`` (bool) and ``reason`` (empty where comparable).
    """
    rows = read_published(task)
    own = figures[figures["group"] == "all"].set_index("figure")["value"] if len(figures) else {}
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
    elif row.protocol == "histoprism":
        reasons.append("theirs was trained on HEST-1k's published splits")
    elif row.protocol == "stpath":
        reasons.append("theirs was pretrained on other slides")
    if "unstated" in row.note:
        reasons.append(row.note)
    return reasons


def _differences(run: Run, task: str, protocol: str, listed: bool) -> list[str]:
    """What sets the run apart from the published figures of a task and a protocol."""
    if task not in TASKS:
        return ["the test slides behind it are not those of one task"]
    slides, folds = TASKS[task]
    if protocol == "stem-topk":  # one slide held out at a time
        folds = len(slides)
    tested = {s for f in run.folds for s in f.split.loc[f.split["split"] == "test", "slide_id"]}
    reasons = []
    if tested != slides:
        shown = ", ".join(sorted(tested)[:3])
        reasons.append(f"other test slides ({shown}{', ...' if len(tested) > 3 else ''})")
    if len(run.folds) != folds:
        reasons.append(f"{len(run.folds)} folds instead of {folds}")
    if not listed:
        reasons.append("genes chosen anew, not the published list (--hvg-file)")
    return reasons
