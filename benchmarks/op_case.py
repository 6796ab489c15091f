"""What a case of bench_ops.py is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Case:
    """One op at one size: callables without arguments, ``ours`` first.

    ``others`` are the forms that people write or publish, ``careful`` those of an engineer who
    looks for the fastest that stock torch gives.
    """

    size: str
    ours: Callable
    others: dict[str, Callable]
    careful: dict[str, Callable]
    at_least: dict[str, float]  # time of the other over ours
    limit: str  # the machine's rate that bounds ours: copy, read or matrix
    work: float  # bytes moved, or operations for matrix
    memory_at_least: dict[str, float] = field(default_factory=dict)
    tolerance: float = 1e-4  # of our result from the reference's, and of the others from ours
    loose: dict[str, float] = field(default_factory=dict)  # for others that are less exact
    once: tuple[str, ...] = ()  # so slow that they are timed once
    fraction: float | None = None  # of the limit
    graph: bool = True  # whether a CUDA graph of it does what a call does
    inputs: int = 0  # bytes; where the second-level cache holds them, calls take turns at copies


def compiled(function: Callable, *arguments) -> Callable:
    """A call of the function, compiled for these arguments."""
    fast = torch.compile(function, dynamic=False)
    return lambda: fast(*arguments)
