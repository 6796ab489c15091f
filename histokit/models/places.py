"""Where spots lie to each other, for models that look around a patch; slides one by one."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

TIE = 0.01  # of a distance: what the rounding of coordinates to pixels does to those of an array
MOST_TIES = 12  # spots of a hexagonal or square array at one distance, of the 36 nearest


def nearest_spots(coords: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest other spots of each spot, and all those about as near as the k-th.

    Of the spots of an array several are equally far from another, and which of them came first
    would depend on their order or on the rounding of a turned slide. On a hexagonal array eight
    neighbors are twelve: the two rings of six.

    Args:
        coords: (N, 2) centers in one unit.
        k: how many; a slide of fewer spots has N - 1 neighbors each.

    Returns:
        On the device of ``coords``, (N, K) int64, nearest first, and (N, K) bool, which of these
        there are: all of distances up to 1 % above the k-th's, of which at most 12 count as ties
        (more are spots at one place). K is the largest number; a spot with less is followed by
        itself.
    """
    points = coords.detach().double().cpu().numpy()
    count = len(points)
    most = min(k, count - 1)
    if most < 1:
        nothing = torch.empty((count, 0), dtype=torch.int64, device=coords.device)
        return nothing, nothing.bool()
    own = np.arange(count)[:, None]
    # one more, for a spot is its own nearest
    distance, index = cKDTree(points).query(points, k=min(count, most + MOST_TIES + 1))
    distance = np.where(index == own, np.inf, np.round(distance, 6))
    order = np.lexsort((index, distance), axis=1)[:, : most + MOST_TIES]
    distance, index = (np.take_along_axis(a, order, 1) for a in (distance, index))
    there = distance <= distance[:, most - 1 : most] * (1 + TIE)
    used = there.any(axis=0)
    index = np.where(there, index, own)[:, used]
    return torch.from_numpy(index).to(coords.device), torch.from_numpy(there[:, used]).to(
        coords.device
    )


def array_positions(coords: torch.Tensor) -> torch.Tensor:
    """Column and row of each spot on the array that its slide was printed on.

    The array is turned upright first, from up to 15 degrees. Then each axis by itself: centers that
    lie less than a quarter of the usual distance to the nearest spot apart share a column, or a
    row. Columns and rows without a spot count, so that pieces of tissue keep their distance.

    Args:
        coords: (N, 2) centers x, y in one unit.

    Returns:
        (N, 2) int64 from 0, on the device of ``coords``.
    """
    points = coords.detach().double().cpu().numpy()
    if len(points) < 2:
        return torch.zeros((len(points), 2), dtype=torch.int64, device=coords.device)
    pitch = np.median(cKDTree(points).query(points, k=2)[0][:, 1])
    columns_and_rows = [_lines(axis, pitch) for axis in _upright(points).T]
    return torch.from_numpy(np.stack(columns_and_rows, 1)).to(coords.device)


def _lines(values: np.ndarray, pitch: float) -> np.ndarray:
    """Places (N,) along one axis to the columns, or rows, of an array; int64 from 0."""
    order = np.argsort(values, kind="stable")
    line = np.empty(len(values), dtype=np.int64)
    # on a hexagonal array columns are half a pitch apart
    line[order] = np.cumsum(np.diff(values[order], prepend=values[order[0]]) > 0.25 * pitch)
    middles = np.bincount(line, values) / np.bincount(line)
    gaps = np.diff(middles)
    next_to = gaps[gaps < 1.5 * pitch]
    steps = np.ones(len(gaps), dtype=np.int64)
    if pitch > 0:  # of most spots at one place nothing tells how wide a gap is
        unit = np.median(next_to) if len(next_to) else pitch
        steps = np.maximum(np.round(gaps / unit), 1).astype(np.int64)
    return np.concatenate([[0], np.cumsum(steps)])[line]


def _upright(points: np.ndarray) -> np.ndarray:
    """Turned so that rows lie along an axis; both kinds of array look alike every 30 degrees."""
    distance, index = cKDTree(points).query(points, k=2)
    steps = (points[index[:, 1]] - points)[distance[:, 1] > 0] @ np.array([1, 1j])
    if not len(steps):
        return points
    wave = ((steps / np.abs(steps)) ** 12).mean()
    if np.abs(wave) < 0.5:  # no array to speak of
        return points
    cos, sin = np.cos(np.angle(wave) / 12), np.sin(np.angle(wave) / 12)
    return points @ np.array([[cos, -sin], [sin, cos]])


def sinusoids(coords: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of where the spots of one slide lie (Vaswani et al. 2017, section 3.5).

    Columns first, then rows; each axis by ``width / 4`` frequencies from 1 to 1 / 10,000 radians a
    spot pitch (nearly), from the first column and row that hold a spot. The pitch is the median
    distance to the nearest spot elsewhere.

    Args:
        coords: (N, 2) centers x, y in one unit, in float32 at least.
        width: a multiple of 4.

    Returns:
        (N, width), as ``coords``.
    """
    places = coords.double() - coords.double().amin(dim=0)
    distinct = places.unique(dim=0)
    if len(distinct) > 1:
        nearest = distinct[nearest_spots(distinct, 1)[0][:, 0]]
        places = places / torch.linalg.vector_norm(distinct - nearest, dim=1).median()
    steps = torch.arange(width // 4, dtype=places.dtype, device=places.device)
    angles = places[:, :, None] * 10_000.0 ** (-4 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1).to(coords)


def spread_groups(sizes: list[int], most: int, device) -> tuple[torch.Tensor, list[int]]:
    """Slides taken apart into groups that are each spread over the whole slide.

    Args:
        sizes: patches of each slide, which lie one behind the other.
        most: patches of a group at most.
        device: of the rows.

    Returns:
        (N,) int64 rows group by group, and the groups' sizes: every k-th patch of a slide, k the
        least that ``most`` allows.
    """
    parts, start = [], 0
    for size in sizes:
        rows, step = torch.arange(start, start + size, device=device), -(-size // most)
        parts += [rows[first::step] for first in range(step)]
        start += size
    return torch.cat(parts), [len(part) for part in parts]
