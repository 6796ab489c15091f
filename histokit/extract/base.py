"""What every encoder is: patches in, features out."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histokit.core.errors import InputError


@dataclass(frozen=True)
class How:
    """How a network encodes.

    Attributes:
        pool: ``last`` is the model's own pooling. ``stages`` sets the means of the maps at four
            depths side by side: the last four of a convolutional pyramid, the quarters of a
            transformer. The deepest ImageNet layers encode objects, which tissue does not contain.
        views: 8 averages the embeddings of a patch's turns and mirrors, for tissue has no upside.
        device: of torch.
        precision: ``float32``, ``bfloat16`` or ``float16``; ``auto`` is the encoder's own on CUDA
            and float32 elsewhere.
        compile: by torch.compile.
    """

    pool: str = "last"
    views: int = 1
    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False


DEFAULT = How()


def check_batch_size(given: str) -> None:
    """Raises InputError for what is neither ``auto`` nor a number of patches."""
    if given != "auto" and not (given.isdecimal() and int(given)):
        raise InputError(f"--batch-size must be auto or a number of patches, got {given}")


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
