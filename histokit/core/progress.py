"""Progress with rate and time left: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

LOG_SECONDS = 60.0


class _Log:
    """Where a bar is written that nobody watches: its redraws become lines of stderr."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(items: Iterable | None = None, **options) -> tqdm:
    """A tqdm bar, shown on rank 0 only and cleared at the end.

    On a terminal it appears after two seconds. In a log it is a line each ``LOG_SECONDS``, so that
    what is done sooner says nothing.
    """
    options |= {"leave": False, "disable": os.environ.get("RANK", "0") != "0"}
    if sys.stderr.isatty():
        return tqdm(items, delay=2, **options)
    pace = {"delay": LOG_SECONDS, "mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
    return tqdm(items, file=_Log(), ascii=True, ncols=100, **pace, **options)
