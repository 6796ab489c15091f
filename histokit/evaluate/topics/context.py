"""Which spots were shown to the model, in a table and a warning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from histokit.core.distributed import Team
from histokit.evaluate.context import FILE, Context
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.topics.base import Part, Topic, gather_rows
from histokit.evaluate.views import SlideView
from histokit.report.page import Section, Table


class ContextTopic(Topic):
    """The spots of each test slide whose expression the model saw."""

    def __init__(self, context: Context):
        self.context = context
        self._rows: list[dict] = []

    def add(self, view: SlideView) -> None:
        """Note the spots of a slide."""
        found = {"fold": view.fold.name, "slide_id": view.slide.slide_id}
        self._rows.append(found | {"shown": view.context, "scored": view.score.num_spots})

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Join those of all ranks."""
        self._rows = gather_rows(team, self._rows, scores)

    def finish(self, evaluation: Evaluation) -> Part:
        """context_spots.csv, and how many spots of each slide they are."""
        slides = {row["slide_id"]: row for row in self._rows}  # the same in every fold
        rows = [(name, barcode) for name, row in slides.items() for barcode in row["shown"]]
        table = pd.DataFrame(rows, columns=["slide_id", "barcode"])
        table.to_csv(evaluation.folder / FILE, index=False)
        cells = [[name, len(row["shown"]), row["scored"]] for name, row in slides.items()]
        shown = Table("", ["slide", "spots shown", "spots scored"], cells)
        return Part(sections=[Section("Shown to the model", self.context.warning, [shown])])
