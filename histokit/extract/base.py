"""What every encoder is: patches in, features out."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import numpy as np


class Encoder:
    """Patches to embeddings.

    Attributes:
        name: as on the command line; ``dim`` of an embedding; ``size`` of its input in pixels.
    """

    name: str
    dim: int
    size: int

    def encode(self, patches: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Patches uint8 (B, size, size, 3) -> embeddings float32 (B, dim).

        An embedding depends on its own patch alone, to float32 rounding.
        """
        raise NotImplementedError

    def provenance(self) -> dict:
        """What has to agree for two features to be comparable, and the versions that made them."""
        raise NotImplementedError


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package name."""
    return {package: importlib.metadata.version(package) for package in packages}
