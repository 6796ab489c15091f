"""Where spots lie to each other, for models that look around a patch; slides one by one."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree


def nearest_spots(coords: torch.Tensor, k: int) -> torch.Tensor:
    """The k nearest other spots of each spot; of equally near ones those that come first.

    Args:
        coords: (N, 2) centers in one unit.
        k: how many; a slide of fewer spots has N - 1 neighbors each.

    Returns:
        (N, min(k, N - 1)) int64, nearest first, on the device of ``coords``.
    """
    points = coords.detach().double().cpu().numpy()
    count = len(points)
    most = min(k, count - 1)
    if most < 1:
        return torch.empty((count, 0), dtype=torch.int64, device=coords.device)
    # a few more than asked for, so that ties at the end are all there to be ordered
    reach = min(count, most + 9)
    distance, index = cKDTree(points).query(points, k=reach)
    distance = np.where(index == np.arange(count)[:, None], np.inf, np.round(distance, 6))
    order = np.lexsort((index, distance), axis=1)[:, :most]
    return torch.from_numpy(np.take_along_axis(index, order, 1)).to(coords.device)


def array_positions(coords: torch.Tensor) -> torch.Tensor:
    """Column and row of each spot on the array that its slide was printed on.

    The array is turned upright first, from up to 15 degrees. Then each axis by itself: centers that
    lie less than a quarter of the usual distance to the nearest spot apart share a column, or a
    row; gaps without a spot do not count.

    Args:
        coords: (N, 2) centers x, y in one unit.

    Returns:
        (N, 2) int64 from 0, on the device of ``coords``.
    """
    points = coords.detach().double().cpu().numpy()
    if len(points) < 2:
        return torch.zeros((len(points), 2), dtype=torch.int64, device=coords.device)
    pitch = np.median(cKDTree(points).query(points, k=2)[0][:, 1])
    points = _upright(points)
    found = np.empty(points.shape, dtype=np.int64)
    for axis in (0, 1):
        order = np.argsort(points[:, axis], kind="stable")
        steps = np.diff(points[order, axis], prepend=points[order[0], axis])
        # on a hexagonal array columns are half a pitch apart
        found[order, axis] = np.cumsum(steps > 0.25 * pitch)
    return torch.from_numpy(found).to(coords.device)


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
