"""One finding for what many slides of a cohort share."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

Finding = tuple[str, str, str]  # severity, slide or ``cohort``, sentence
_NAMED = 3  # slides named in a sentence


def on_codes(table: pd.DataFrame) -> list[Finding]:
    """A finding for each cancer code that is not known; none at all is worth a note only."""
    found = []
    for code, slides in table[~table["cancer_known"].astype(bool)].groupby("cancer").groups.items():
        severity, shown = ("warning", code) if code else ("note", "empty, as of healthy tissue")
        where, what = slides[0], "the cancer code is"
        if len(slides) > 1:
            where, what = "cohort", f"the cancer code of {_slides(slides)} is"
        found.append((severity, where, f"{what} {shown}, not an OncoTree code that is known"))
    return found


def _slides(slides: Sequence[str]) -> str:
    """``5 slides (A, B and 3 more)``."""
    more = f" and {len(slides) - _NAMED} more" if len(slides) > _NAMED else ""
    return f"{len(slides):,} slides ({', '.join(slides[:_NAMED])}{more})"


def gathered(found: list[Finding], slides: int) -> list[Finding]:
    """Findings of slides, one in place of those of a kind that most slides have; errors as are."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        severity, where, text = finding
        kind = where if severity == "error" else re.sub(r"\d[\d.,]*", "#", text)
        kinds.setdefault((severity, kind), []).append(finding)
    rows = []
    for (severity, _), own in kinds.items():
        if severity != "error" and len(own) > max(_NAMED, slides / 2):
            _, first, text = own[0]
            said = f"{len(own):,} of {slides:,} slides, such as {first}: {text}"
            own = [(severity, "cohort", said)]
        rows += own
    return rows
