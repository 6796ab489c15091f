"""SIGTERM and Ctrl-C in long work: noted at once, obeyed where everything can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):  # noqa: N818, nothing is wrong
    """Work that a signal ended after saving; the message says where it stands."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum


@contextmanager
def noted_signals() -> Iterator[Callable[[], int]]:
    """Record SIGTERM and SIGINT instead of raising; yields a function for the number, or 0.

    A second SIGINT ends the process as usual. In a thread other than the main one, which cannot
    take signals, nothing changes.
    """
    noted = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(signum, frame):
        if signum == signal.SIGINT and noted:
            raise KeyboardInterrupt
        noted.append(signum)

    previous = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: noted[0] if noted else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
