"""Progress with rate and time left: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LOG_SECONDS = 60.0
_PARTS: list[str] = []  # of the work that is being done, from the whole to the smallest


class _Log:
    """Where a bar is written that nobody watches: its redraws become lines of stderr."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def within(part: str) -> Iterator[None]:
    """Name a part of the work, such as ``fold 2 of 4``: every bar inside begins with it."""
    _PARTS.append(part)
    try:
        yield
    finally:
        _PARTS.pop()


def placed(text: str) -> str:
    """A bar's text behind the parts that it is within."""
    return ": ".join([*_PARTS, text] if text else _PARTS)


def progress_bar(items: Iterable | None = None, **options) -> tqdm:
    """A tqdm bar, shown on rank 0 only and cleared at the end.

    On a terminal it appears after two seconds. In a log it is a line each ``LOG_SECONDS``, so that
    what is done sooner says nothing. A bar without ``total`` claims no share of what it counts:
    give none where the end is not known.
    """
    options["desc"] = placed(options.get("desc", ""))
    options |= {"leave": False, "disable": os.environ.get("RANK", "0") != "0"}
    if sys.stderr.isatty():
        return tqdm(items, delay=2, **options)
    pace = {"delay": LOG_SECONDS, "mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
    return tqdm(items, file=_Log(), ascii=True, ncols=100, **pace, **options)
