"""A run under a published protocol, and beside published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histokit.core.distributed import Team
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.figures import figure_name
from histokit.evaluate.protocol_scores import ProtocolScores
from histokit.evaluate.protocols import PROTOCOLS, Protocol
from histokit.evaluate.published import beside_published
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.views import SlideView
from histokit.report.page import NONE, Section, Table, number

_POOLS = 12  # rows by pool in a report; protocol.csv has all


class ProtocolTopic(Topic):
    """The run under a published protocol.

    Args:
        scores: collects its correlations.
    """

    def __init__(self, scores: ProtocolScores):
        self.scores = scores

    def add(self, view: SlideView) -> None:
        """Add a slide to its pool of spots."""
        self.scores.add(view)

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Join the pools of all ranks."""
        self.scores.gather(team)

    def finish(self, evaluation: Evaluation) -> Part:
        """The protocol's figures, in protocol.csv and a section."""
        figures = evaluation.protocol = self.scores.table()
        figures.to_csv(evaluation.folder / "protocol.csv", index=False)
        return Part(sections=[_protocol_section(self.scores.protocol, figures)])


class PublishedTopic(Topic):
    """The run beside published figures of a task.

    Args:
        task: whose published rows.
        protocol: name of the protocol that the run is scored under.
        listed: whether it is scored on a given gene list.
    """

    def __init__(self, task: str, protocol: str, listed: bool):
        self.task, self.protocol, self.listed = task, protocol, listed

    def finish(self, evaluation: Evaluation) -> Part:
        """The published rows, in published.csv and a section."""
        rows = beside_published(
            evaluation.job.run, self.task, self.protocol, evaluation.protocol, self.listed
        )
        rows.to_csv(evaluation.folder / "published.csv", index=False)
        return Part(sections=[_published_section(self.task, rows, evaluation.protocol)])


def _protocol_section(protocol: Protocol, figures: pd.DataFrame) -> Section:
    columns = ["figure", "of", "value", "deviation", "genes", "undefined", "pools of spots"]
    keys = ["figure", "group", "value", "deviation", "genes", "genes_undefined", "pools"]
    whole = figures["group"] == "all"
    parts = figures[~whole]
    rows = pd.concat([figures[whole], parts if len(parts) <= _POOLS else parts.iloc[:0]])
    cells = [[figure_name(row[0]), row[1], *(number(float(v), 4) for v in row[2:4]), *row[4:]]
             for row in rows[keys].astype(object).to_numpy().tolist()]  # fmt: skip
    first = figures.iloc[0]
    knobs = [
        ["target", first["target"]],
        ["genes", first["gene_rule"]],
        ["spots behind one correlation", f"all of a {protocol.pooling}"],
        ["average", protocol.average],
        [
            "undefined correlations",
            "left out and counted" if protocol.nan == "skip" else "spoil the mean, as there",
        ],
        ["regression of the protocol", protocol.regressor],
        ["regression of this run", first["regressor"]],
        ["source", protocol.source],
    ]
    return Section(
        f"Under the protocol {protocol.name}",
        f"{protocol.meaning} {protocol.warning}",
        [
            Table("", columns, cells, text_columns=2),
            Table("Its choices", ["choice", "here"], knobs, "", 2),
        ],
    )


def _published_section(task: str, rows: pd.DataFrame, figures: pd.DataFrame) -> Section:
    rows = rows.sort_values(["comparable", "metric", "value"], ascending=[False, True, False])
    cells = [
        [r.model, r.encoder or NONE, r.source, r.note, figure_name(r.metric), number(r.value, 4),
         number(r.run, 4), "yes" if r.comparable else "no"]
        for r in rows.itertuples()
    ]  # fmt: skip
    reasons = "; ".join(dict.fromkeys(r for row in rows["reason"] if row for r in row.split("; ")))
    columns = ["model", "encoder", "source", "note", "figure"]
    table = Table(
        "",
        [*columns, "published", "this run", "comparable"],
        cells,
        _variance_note(rows, figures),
        5,
    )
    said = f"What sets them apart from this run: {reasons}; published.csv says which by row."
    text = f"Figures that papers print for {task}. {said if reasons else ''}".strip()
    return Section(f"Beside published figures: {task}", text, [table])


def _variance_note(rows: pd.DataFrame, figures: pd.DataFrame) -> str:
    """The variance by which to judge this run's MSE beside published ones; empty without any."""
    if rows.loc[rows["metric"] == "mse", "run"].isna().all():
        return ""
    whole = figures[figures["group"] == "all"].set_index("figure")["value"]
    return (
        "The targets behind this run's MSE have a variance of "
        f"{number(float(whole['target_variance']), 4)}: a constant that knew each gene's mean "
        "would have that MSE. The variance behind a published MSE is not known."
    )


def protocol_comparison(
    results: Mapping[str, Evaluation], name: str, folder: Path
) -> list[Section]:
    """The figures of several runs under one published protocol, in protocol.csv and a section."""
    protocol = PROTOCOLS[name]
    tables = {run: r.protocol for run, r in results.items() if len(r.protocol)}
    if not tables:
        return []
    whole = pd.concat(
        [t[t["group"] == "all"].assign(run=run) for run, t in tables.items()], ignore_index=True
    )
    whole.to_csv(folder / "protocol.csv", index=False)
    wide = whole.pivot(index="run", columns="figure", values="value").loc[list(tables)]
    wide = wide[list(dict.fromkeys(whole["figure"]))]
    rows = [[run, *(number(float(v), 4) for v in row)] for run, row in wide.iterrows()]
    title = f"Under the protocol {name}"
    text = f"{protocol.meaning} {protocol.warning}"
    return [Section(title, text, [Table(title, ["run", *map(figure_name, wide.columns)], rows)])]
