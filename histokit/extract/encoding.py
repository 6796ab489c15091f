"""A slide's patches through an encoder: batches that fit the memory, features that are checked."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import numpy as np
import torch

from histokit.core.errors import InputError
from histokit.core.memory import is_out_of_memory
from histokit.extract.base import Encoder
from histokit.extract.pixels import GLASS

CPU_BATCH, GPU_BATCH = 16, 256
COLLAPSED = 1e-4  # of the features' size: the spread over patches below which they are one
BLANK = 0.9  # share of patches that may look like empty glass


class Encoding:
    """Encodes batches, fewer patches at a time where memory runs out.

    Args:
        encoder: the encoder.
        batch_size: patches at a time, or ``auto``.
        device: where the encoder is.

    Attributes:
        batch_size: patches to read at a time.
        waited, worked: seconds spent waiting for patches, and encoding them.
    """

    def __init__(self, encoder: Encoder, batch_size: str = "auto", device: str = "cpu"):
        usual = CPU_BATCH if device == "cpu" else GPU_BATCH
        self.encoder = encoder
        self.batch_size = self._limit = usual if batch_size == "auto" else int(batch_size)
        self.waited = self.worked = 0.0

    def scales(self, batches: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches uint8 (S, B, size, size, 3), each with its features float32 (B, S * dim)."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            now = time.perf_counter()
            self.waited += now - start
            if batch is None:
                return
            features = np.concatenate([self.encode(patches) for patches in batch], axis=1)
            self.worked += time.perf_counter() - now
            yield batch, features

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """Patches uint8 (B, size, size, 3) -> (B, dim).

        Raises:
            InputError: not even one patch fits the memory.
        """
        while True:
            try:
                starts = range(0, len(patches), self._limit)
                parts = [self.encoder.encode(patches[i : i + self._limit]) for i in starts]
                return np.concatenate(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._limit == 1:
                    raise InputError(
                        f"{self.encoder.name} does not fit the memory with a single patch; use "
                        "--precision bfloat16, another --device or a smaller encoder"
                    ) from error
            self._limit = max(1, self._limit // 2)
            print(f"memory ran out: {self._limit} patches at a time from here on")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @functools.cached_property
    def seconds_per_patch(self) -> float:
        """Of the encoder, measured on a batch of empty glass after a first one."""
        size = self.encoder.size
        glass = np.full((self._limit, size, size, 3), GLASS, dtype=np.uint8)
        self.encode(glass[:1])
        start = time.perf_counter()
        self.encode(glass)
        return (time.perf_counter() - start) / len(glass)

    @functools.cached_property
    def blank(self) -> np.ndarray:
        """Features (dim,) of empty glass."""
        size = self.encoder.size
        return self.encode(np.full((1, size, size, 3), GLASS, dtype=np.uint8))[0]

    def faults(self, features: np.ndarray, scales: int) -> list[str]:
        """Why features (N, S * dim) cannot be those of tissue, in words; empty where they can."""
        if len(features) < 2:
            return []
        spread, size = features.std(axis=0).mean(), np.abs(features).mean()
        if spread <= COLLAPSED * size:
            return [f"{self.encoder.name} gave the same features for all patches"]
        away = np.abs(features - np.tile(self.blank, scales)).mean(axis=1)
        blank = float((away <= COLLAPSED * size).mean())
        if blank > BLANK:
            name = self.encoder.name
            return [f"{name} gave the features of empty glass for {blank:.0%} of the patches"]
        return []


def duration(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
