"""What the audit of the training found, in the report."""

from __future__ import annotations

import math

import pandas as pd

from histokit.core.tables import read_table
from histokit.evaluate.evaluation import Evaluation
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.base import Part, Topic
from histokit.report.page import NONE, Section, Table, number, plural

_FINDINGS = 30


class AuditTopic(Topic):
    """Findings of the audit that the training wrote."""

    def finish(self, evaluation: Evaluation) -> Part:
        """A sentence on errors, and the findings."""
        return Part(*audit_parts(evaluation.job.run))


def audit_parts(run: Run) -> tuple[list[str], list[Section]]:
    """A sentence on errors of the audit that training wrote, and the section of its findings."""
    folder = run.folder / "audit"
    if not (folder / "audit.json").is_file():
        return [], []
    columns = ("severity", "where", "finding")
    findings = read_table(folder / "findings.csv", columns, "table of the audit")
    slides = read_table(folder / "slides.csv", ("slide_id",), "table of the audit")
    figures = slides.columns.drop("slide_id")
    slides[figures] = slides[figures].apply(pd.to_numeric, errors="coerce")
    errors = findings[findings["severity"] == "error"]
    said = []
    if len(errors):
        first = errors.iloc[0]
        found = f"{plural(len(errors), 'error')}{', such as' if len(errors) > 1 else ''}"
        said = [f"The audit found {found}: in {first['where']}, {first['finding']}."]
    order = findings["severity"].map({"error": 0, "warning": 1, "note": 2})
    rows = findings.loc[order.sort_values(kind="stable").index, ["severity", "where", "finding"]]
    note = f"The gravest {_FINDINGS} of {len(rows)}; audit/findings.csv has all."
    tables = [
        Table(
            "",
            ["", "where", "finding"],
            rows.head(_FINDINGS).to_numpy().tolist(),
            note if len(rows) > _FINDINGS else "",
            3,
        ),
        _audited(slides),
    ]
    text = (
        "Errors make scores untrue; warnings may; notes are worth knowing. Library size is the "
        "number of molecules caught at a spot; zeros are those among measured targets; a cosine "
        "near 1 means that all patches of a slide look the same to the encoder."
    )
    return said, [Section("What to distrust", text, tables if len(rows) else tables[1:])]


def _audited(slides: pd.DataFrame) -> Table:
    columns = ["slide", "spots", "dropped", "panel measured", "zeros", "constant genes"]
    columns += ["library: least, median, most", "um per px", "pitch, um", "cosine", "repeated"]
    rows = []
    for s in slides.head(_FINDINGS).itertuples():
        dropped = NONE if math.isnan(s.spots_dropped) else int(s.spots_dropped)
        row = [s.slide_id, int(s.spots), dropped]
        if s.features_bad:
            rows.append(row + [NONE] * (len(columns) - len(row)))
            continue
        library = f"{s.library_min:,.0f}, {s.library_median:,.0f}, {s.library_max:,.0f}"
        row += [f"{s.panel_measured:,.0f} of {s.panel:,}", f"{s.zeros:.0%}", int(s.genes_constant)]
        row += [library, number(float(s.mpp), 3), number(float(s.pitch_um), 0)]
        rows.append([*row, float(s.features_cosine), f"{s.features_duplicated:.0%}"])
    more = len(slides) - len(rows)
    note = f"{plural(more, 'more slide')} in audit/slides.csv." if more else ""
    return Table("Slides", columns, rows, note)
