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
        index, there: (N, K), the neighbors and which of them there are, as ``nearest_spots`` gives
            them: of neighbors as near as the k-th all count.
        frames: (N, 4, K, 3): for each sign of the two axes along which the neighbors spread, a
            neighbor's place on them from the neighbors' middle, and its distance from the spot.
    """

    index: torch.Tensor
    there: torch.Tensor
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
        index, there = nearest_spots(coords, k)
        relative = coords[index] - coords[:, None]  # (N, K, 2), zero of one that is not there
        distance = torch.linalg.vector_norm(relative, dim=2)
        if unit == "pitch" and index.shape[1] and (pitch := distance[:, 0].median()) > 0:
            relative, distance = relative / pitch, distance / pitch
        middle = relative.sum(1, keepdim=True) / there.sum(1).clamp(min=1)[:, None, None]
        centered = (relative - middle) * there[:, :, None]
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
        return cls(index, there, torch.cat([turned, away], dim=3))

    def to(self, like: torch.Tensor) -> Neighborhoods:
        """With ``frames`` of the type of a tensor, both on its device."""
        index, there = self.index.to(like.device), self.there.to(like.device)
        return Neighborhoods(index, there, self.frames.to(like))
