"""The nearest spots of each spot, as a network sees them whatever way the slide was laid down."""

from __future__ import annotations

import dataclasses

import torch

from histokit.core.errors import InputError
from histokit.models.places import nearest_spots

UNITS = ("pixels", "pitch")
SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))
ALIKE = 1e-3  # difference of two spreads, as a share of their sum, that tells no direction


@dataclasses.dataclass(frozen=True)
class Neighborhoods:
    """The k nearest spots of each spot of one slide, in frames of their own (frame averaging).

    A function of these, averaged over the frames, is the same after any rotation, reflection or
    translation of the slide (Puny et al. 2022, Frame Averaging for Invariant and Equivariant
    Network Design).

    Attributes:
        index: (N, k) int64, nearest first; k is N - 1 on slides of fewer spots.
        frames: (N, 4, k, 3): for each sign of the two axes along which the neighbors spread, a
            neighbor's place on them from the neighbors' middle, and its distance from the spot.
    """

    index: torch.Tensor
    frames: torch.Tensor

    @classmethod
    def of(cls, coords: torch.Tensor, k: int, unit: str = "pixels") -> Neighborhoods:
        """The neighborhoods of a slide.

        Where neighbors spread alike in all directions, as within a square grid or at one place,
        they have no axes, and rounding would choose some: there a neighbor's place is told by its
        distance from the middle alone.

        Args:
            coords: (N, 2) spot centers in pixels.
            k: neighbors.
            unit: ``pixels``, or ``pitch``: the median distance of spots to their nearest.

        Returns:
            Neighborhoods with float64 ``frames``.

        Raises:
            InputError: another unit.
        """
        if unit not in UNITS:
            raise InputError(f"--stflow-unit {unit}: distances are in {' or '.join(UNITS)}")
        coords = coords.double()
        index = nearest_spots(coords, k)
        relative = coords[index] - coords[:, None]  # (N, k, 2)
        distance = torch.linalg.vector_norm(relative, dim=2)
        if unit == "pitch" and index.shape[1] and (pitch := distance[:, 0].median()) > 0:
            relative, distance = relative / pitch, distance / pitch
        centered = relative - relative.mean(1, keepdim=True)
        spread, axes = torch.linalg.eigh(centered.mT @ centered)
        radius = torch.linalg.vector_norm(centered, dim=2)
        alike = spread[:, 1] - spread[:, 0] <= ALIKE * spread.sum(1)
        local = torch.where(
            alike[:, None, None],
            torch.stack([radius, torch.zeros_like(radius)], dim=2),
            centered @ axes,
        )
        turned = local[:, None] * local.new_tensor(SIGNS)[None, :, None]
        away = distance[:, None, :, None].expand(*turned.shape[:3], 1)
        return cls(index, torch.cat([turned, away], dim=3))

    def to(self, like: torch.Tensor) -> Neighborhoods:
        """With ``frames`` of the type of a tensor, both on its device."""
        return Neighborhoods(self.index.to(like.device), self.frames.to(like))
