"""Progress bars: after two seconds, on a terminal, gone at the end."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, **options) -> tqdm:
    """A tqdm bar; a log file gets none, for its lines would be the bar's redraws."""
    return tqdm(items, leave=False, delay=2, disable=None, **options)
