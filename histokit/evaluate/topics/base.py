"""What a report asks of a run: a topic sees each test slide once, then answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from histokit.core.distributed import Team
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.scores import SlideScore
from histokit.evaluate.views import SlideView
from histokit.report.page import Section


@dataclasses.dataclass(frozen=True)
class Part:
    """What a topic adds to a report: sentences for the verdict, and sections."""

    sentences: Sequence[str] = ()
    sections: Sequence[Section] = ()


class Topic:
    """One question. A subclass overrides what it needs; all but ``add`` has a default.

    ``add`` runs on the rank that holds the slide, ``gather`` on all, the others on rank 0.
    """

    def add(self, view: SlideView) -> None:
        """See a slide while its prediction is in memory."""

    def gather(self, team: Team, scores: Sequence[SlideScore]) -> None:
        """Take over what other ranks have seen, in the order of the scores."""

    def show(self, view: SlideView, evaluation: Evaluation) -> None:
        """Draw a slide that was chosen after scoring, into ``evaluation.folder``."""

    def finish(self, evaluation: Evaluation) -> Part:
        """Write tables into ``evaluation.folder`` and answer."""
        return Part()


def gather_rows(team: Team, rows: list[dict], scores: Sequence[SlideScore]) -> list[dict]:
    """Rows of all ranks, each with its ``fold`` and ``slide_id``, in the order of the scores."""
    order = {(score.fold, score.slide_id): i for i, score in enumerate(scores)}
    found = [row for part in team.gather(rows) for row in part]
    return sorted(found, key=lambda row: order[row["fold"], row["slide_id"]])
