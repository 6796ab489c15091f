"""Seconds of calls on a GPU: the device's own, and the host's for issuing them.

A call of 30 microseconds on the device takes the host 100 to issue. Events around many calls, all
of them issued before the first is done, would tell the larger of the two; a CUDA graph of them
tells the device's alone. What cannot be recorded as a graph is timed by events. Calls take turns at
copies of their inputs that together are larger than the second-level cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

CALLS = 20  # of a round, between two events
MOST_COPIES = 16
Call = Callable[[], object]


def copies_past_cache(inputs: int, cache: int) -> int:
    """How many copies of inputs of this size hold twice what the cache does, at most 16.

    Args:
        inputs: bytes of one copy; 0 for more than the cache holds.
        cache: bytes of the second-level cache.
    """
    if inputs == 0:
        return 1
    return min(MOST_COPIES, max(1, -(-2 * cache // inputs)))


def in_turn(calls: Sequence[Call], count: int) -> None:
    """Make ``count`` calls, of each copy in turn."""
    for i in range(count):
        calls[i % len(calls)]()


def host_seconds(calls: Sequence[Call], repeat: int) -> float:
    """Median seconds that the host takes to issue a call; nothing waits for the device inside."""
    found = []
    for i in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        calls[i % len(calls)]()
        found.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return sorted(found)[repeat // 2]


def recorded(calls: Sequence[Call], count: int) -> Call | None:
    """A replay of ``count`` calls as one CUDA graph; None where a call cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        in_turn(calls, len(calls))
    torch.cuda.current_stream().wait_stream(side)
    try:
        with torch.cuda.graph(graph):
            in_turn(calls, count)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def device_seconds(calls: Sequence[Call], repeat: int, graph: bool = True) -> tuple[list, str]:
    """Seconds of a call, ascending, one for each of ``repeat`` rounds; and how they were found.

    Args:
        calls: the same call on each copy of its inputs; they have run before.
        repeat: rounds, each of 20 calls.
        graph: whether to try a CUDA graph.
    """
    replay = recorded(calls, CALLS) if graph else None
    if replay:
        replay()
    found = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay() if replay else in_turn(calls, CALLS)
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / CALLS)
    return sorted(found), "graph" if replay else "events"
