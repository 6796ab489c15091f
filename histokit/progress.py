"""Progress bars: after two seconds, on a terminal, gone at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, **options) -> tqdm:
    """A tqdm bar; a log file gets none, for its lines would be the bar's redraws.

    Of the ranks that torchrun starts the first has one.
    """
    disable = None if os.environ.get("RANK", "0") == "0" else True
    return tqdm(items, leave=False, delay=2, disable=disable, **options)
