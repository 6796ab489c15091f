"""Moments of predictions and targets: how two sets join, and when a series does not vary."""

from __future__ import annotations

import torch
from torch import Tensor

STATE_ROWS = 6  # n, mean_p, mean_t, m2_p, m2_t, c_pt


def merge_moments(a: Tensor, b: Tensor) -> Tensor:
    """The moments of two sets of rows as one: (6, ...) and (6, ...) -> (6, ...)."""
    count = a[0] + b[0]
    share = b[0] / count.clamp(min=1)
    d_p, d_t = b[1] - a[1], b[2] - a[2]
    cross = a[0] * share
    return torch.stack(
        [
            count,
            a[1] + d_p * share,
            a[2] + d_t * share,
            a[3] + b[3] + d_p * d_p * cross,
            a[4] + b[4] + d_t * d_t * cross,
            a[5] + b[5] + d_p * d_t * cross,
        ]
    )


def is_constant(squares: Tensor, mean: Tensor, count: int | Tensor, eps: float | Tensor) -> Tensor:
    """Whether a series varies by rounding alone: deviation at most one unit of its mean.

    Args:
        squares: summed squared deviations, of any shape.
        mean: the mean of the series, of the same shape.
        count: entries behind them.
        eps: the unit, ``torch.finfo(dtype).eps`` of the dtype that the series came in.
    """
    return squares <= count * (eps * mean).square()
