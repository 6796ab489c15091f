"""Exact arrays of spots, as places that are all tied."""

import math

import torch

KINDS = ("square", "hexagonal")


def array(rows: int, columns: int, kind: str, pitch: float = 100.0) -> torch.Tensor:
    """(rows * columns, 2) float64 centers, row by row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    x, y = column.double(), row.double()
    if kind == "hexagonal":
        x, y = x + 0.5 * (row % 2), y * math.sqrt(0.75)
    return pitch * torch.stack([x, y], -1).view(-1, 2)


def turned(coords: torch.Tensor, angle: float = 0.7) -> torch.Tensor:
    """Turned by an angle in radians, mirrored, and moved."""
    cos, sin = math.cos(angle), math.sin(angle)
    return coords @ coords.new_tensor([[cos, sin], [sin, -cos]]) + 1234.5
