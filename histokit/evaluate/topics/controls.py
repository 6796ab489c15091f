"""A run beside its controls: how much of a PCC is chance, and how much library size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from histokit.data.views import LABELS, SHUFFLED, draw_of
from histokit.evaluate.compare import compare, comparison_rows
from histokit.evaluate.controls import MEANING, outdated
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.summary import pick, summarize
from histokit.evaluate.topics.base import Part, Topic
from histokit.evaluate.verdict import no_interval, with_interval
from histokit.report.page import NONE, Section, Table, number


class ControlTopic(Topic):
    """The run beside its controls, and a word on one of an older kind."""

    def __init__(self, controls: Mapping[str, Evaluation]):
        self.controls = controls

    def finish(self, evaluation: Evaluation) -> Part:
        """A sentence a control, and their table."""
        job, sentences, sections = evaluation.job, [], []
        if self.controls:
            sentences, table = control_parts(job.name, evaluation, self.controls)
            evaluation.beside_controls = table
            sections = [Section("Against controls", MEANING, [table])]
        if old := outdated(job.run):
            sentences.append(old)
        return Part(sentences, sections)


def control_parts(
    name: str, result: Evaluation, controls: Mapping[str, Evaluation]
) -> tuple[list[str], Table]:
    """Sentences on what a run's controls say, and the table that holds them beside it.

    Args:
        name: the name of the run.
        result: the run.
        controls: its controls, by name; not empty.
    """
    table = compare({name: result, **controls})
    rows = table[table["by"] == "all"].reset_index(drop=True)
    full = comparison_rows(rows, int(result.slides["hvgs"].max()), "")
    names = ["this run", *(controls[name].job.control for name in rows["run"].iloc[1:])]
    draws = [NONE, *(_draws(controls[name].slides) for name in rows["run"].iloc[1:])]
    cells = [[first, *row[3:], drawn]
             for first, row, drawn in zip(names, full.rows, draws, strict=True)]  # fmt: skip
    columns = ["", *full.columns[3:-1], "to this run", "PCC of the draws"]
    shown = Table("", columns, cells, full.note)
    own = rows["pcc_hvg"].iloc[0]
    sentences = []
    for row in rows.iloc[1:].to_dict("records"):
        if math.isnan(row["pcc_hvg"]) or math.isnan(own):
            continue
        figure = with_interval(row["pcc_hvg"], row["pcc_hvg_low"], row["pcc_hvg_high"])
        if controls[row["run"]].job.control == LABELS[SHUFFLED]:
            drawn = _draws(controls[row["run"]].slides)
            said = f"Trained on shuffled spots, the same model has a mean PCC of {figure}"
            said += "" if drawn == NONE else f" ({drawn})"
            end = ": that is chance, and the run is above it."
            unclear = ": these slides do not tell the run from chance."
        else:
            said = f"A line on each spot's library size, without any image, has {figure}"
            end = ", less than the run."
            unclear = ": so much of the PCC may be how many molecules were caught."
        if math.isnan(row["difference_low"]):
            end = unclear = (
                f"; no interval of the difference: {no_interval(row['unit'], row['units'])}."
            )
        sentences.append(said + (end if row["difference_high"] < 0 else unclear))
    return sentences, shown


def _draws(slides: pd.DataFrame) -> str:
    """Range over a control's draws of the mean PCC, averaged as the headline; a dash with one."""
    draws = slides.groupby(slides["fold"].map(draw_of))
    means = [pick(summarize(rows), "pcc_hvg")["value"] for _, rows in draws]
    if len(means) < 2 or np.isnan(means).all():
        return NONE
    low, high = number(np.nanmin(means)), number(np.nanmax(means))
    return f"{len(means)} draws from {low} to {high}"
