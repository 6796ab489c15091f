"""An image of a SpatialData or OME-Zarr store as a slide, read chunk by chunk."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image

from histokit.core.errors import InputError
from histokit.extract.pixels import brightness_scale, to_rgb

_CACHE = 256 << 20  # bytes of decoded chunks that are kept
_SAMPLED = 64  # chunks whose values tell the depth of an image that has more than 8 bits


class ZarrImage:
    """A multiscale image (c, y, x) of Zarr version 2 or 3; level 0 and smaller ones.

    Attributes:
        width, height: in pixels of level 0.
        orientation: 1, for these images are always upright.
    """

    orientation = 1

    def __init__(self, path: Path):
        """Open the group of an image, such as ``S.zarr/images/NAME``; raises InputError."""
        import zarr

        self.path = path
        group = zarr.open_group(str(path), mode="r")
        attributes = dict(group.attrs)
        scales = attributes.get("ome", attributes).get("multiscales")
        if not scales:
            raise InputError(
                f"{path} is no image of a Zarr store (it has no multiscales); give the folder of "
                "an image, such as S.zarr/images/NAME"
            )
        axes = [axis["name"] if isinstance(axis, dict) else axis for axis in scales[0]["axes"]]
        if axes != ["c", "y", "x"]:
            raise InputError(
                f"{path} has the axes {', '.join(axes)}; an image of stained tissue with c, y, x "
                "was expected"
            )
        self._levels = [group[level["path"]] for level in scales[0]["datasets"]]
        bands, self.height, self.width = self._levels[0].shape
        if bands > 4:
            raise InputError(
                f"{path} has {bands} channels; an RGB image of stained tissue was expected"
            )
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._kept = 0
        self._scale, self._alpha = self._depth()

    def _depth(self) -> tuple[float, bool]:
        """Scale of the pixels, and whether their alpha hides something, from some chunks."""
        array = self._levels[0]
        bands = array.shape[0]
        if array.dtype == np.uint8 and bands in (1, 3):
            return 1.0, False
        high, wide = array.chunks[1:]
        places = [(y, x) for y in range(0, self.height, high) for x in range(0, self.width, wide)]
        low, top, opaque = np.inf, -np.inf, 0
        for y, x in places[:: max(1, len(places) // _SAMPLED)]:
            chunk = array[:, y : y + high, x : x + wide]
            color = chunk[:-1] if bands in (2, 4) else chunk
            # not min and max, which drop NaN
            low, top = np.minimum(low, color.min()), np.maximum(top, color.max())
            opaque = max(opaque, chunk[-1].max())
        return brightness_scale(array.dtype, float(low), float(top), self.path), bool(opaque > 0)

    def _rgb(self, stored: np.ndarray) -> np.ndarray:
        return to_rgb(np.moveaxis(stored, 0, -1), self._scale, self._alpha, self.path)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Uint8 (height, width, 3) of a window inside the image."""
        window = np.empty((height, width, 3), np.uint8)
        high, wide = self._levels[0].chunks[1:]
        for row in range(y // high, (y + height - 1) // high + 1):
            for column in range(x // wide, (x + width - 1) // wide + 1):
                chunk = self._chunk(row, column)
                top, left = row * high, column * wide
                y0, y1 = max(y, top), min(y + height, top + high)
                x0, x1 = max(x, left), min(x + width, left + wide)
                part = chunk[y0 - top : y1 - top, x0 - left : x1 - left]
                window[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return window

    def _chunk(self, row: int, column: int) -> np.ndarray:
        """A chunk of level 0 as RGB; those used last are kept."""
        key = (row, column)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        high, wide = self._levels[0].chunks[1:]
        y, x = row * high, column * wide
        stored = self._levels[0][:, y : y + high, x : x + wide]
        if self._is_lost(stored):
            raise InputError(
                f"{self.path}: the pixels from {x}, {y} to {x + stored.shape[2]}, "
                f"{y + stored.shape[1]} are all 0, in one color at least: a chunk was lost in "
                "copying, or the image was padded with black; copy the store again, or write "
                "it with white there"
            )
        chunk = self._rgb(stored)
        self._cache[key] = chunk
        self._kept += chunk.nbytes
        while self._kept > _CACHE and len(self._cache) > 1:
            self._kept -= self._cache.popitem(last=False)[1].nbytes
        return chunk

    def _is_lost(self, stored: np.ndarray) -> bool:
        """Whether a color of a chunk (c, y, x) is 0 throughout, and alpha does not hide that.

        Zarr reads what is lost as its fill value and leaves out what is all fill value, so that the
        two cannot be told apart; colors may have chunks of their own.
        """
        if self._alpha and not stored[-1].any():
            return False
        color = stored[:-1] if len(stored) in (2, 4) else stored
        return not color.any(axis=(1, 2)).all()

    def thumbnail(self, longest: int) -> Image.Image:
        """A picture of at most ``longest`` pixels a side, from the smallest level that has them."""
        level = self._levels[0]
        for other in self._levels:
            if max(other.shape[1:]) >= longest:
                level = other
        _, height, width = level.shape
        factor = max(1, max(height, width) // longest)
        rows = factor * max(1, level.chunks[1] // factor)
        parts = []
        for y in range(0, height, rows):
            strip = Image.fromarray(self._rgb(level[:, y : y + rows]))
            parts.append(np.asarray(strip.reduce(factor)))
        small = Image.fromarray(np.concatenate(parts))
        small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
        return small
