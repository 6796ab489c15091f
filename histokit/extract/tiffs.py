"""TIFF files read tile by tile, every tile checked: a file that lacks one is never black there.

libtiff's readers return black for a tile that they cannot decode, that was cut off, or whose place
lies beyond the file. Here the directory is compared with the file before anything is read, and a
tile that does not decode is an error. A tile without bytes is one that was never written: glass.
Of several images in a file the largest is read, labels and macro pictures apart.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from histokit.core.errors import InputError
from histokit.extract.pixels import GLASS, brightness_scale, check_colors, to_rgb, true_values

_CACHE = 64 << 20  # bytes of decoded tiles that are kept
_SEGMENT = 1 << 30  # bytes of one tile or strip at most
_SAMPLED = 64  # tiles whose values tell the depth of an image that has more than 8 bits
_COMMON = (1, 5, 7, 8, 32773, 32946)  # compressions that every reader has
_ASSOCIATED = (1,)  # extra samples: colors that were multiplied by alpha already
_ASIDE = re.compile("label|macro|thumbnail|overview", re.IGNORECASE)  # pictures beside the slide
_FLUOROPHORE = re.compile(
    r"dapi|hoechst( ?\d+)?|fitc|tritc|[a-z]?gfp|[ery]fp|cfp|m?cherry|texas ?red|rhodamine"
    r"|cy ?-?[2357](\.5)?|(alexa( ?fluor)?|af|atto|opal|dylight|sytox|draq)[ -]?\d+.*",
    re.IGNORECASE,
)


class TiffPicture:
    """A TIFF image at level 0, and its smaller levels for thumbnails.

    Attributes:
        width, height: in pixels of level 0.
        orientation: the orientation tag, 1 for an upright image; it is not applied.
    """

    turned_from = 1

    def __init__(self, path: Path):
        self.path, self._file = path, tifffile.TiffFile(path, is_ndpi=False)
        self._check_stains()
        levels = self._levels()
        self._level = levels[0]
        self._smaller = levels
        self.height, self.width = self._level.height, self._level.width
        tag = self._level.pages[0].tags.get("Orientation")
        self.orientation = int(tag.value) if tag is not None else 1

    def _check_stains(self) -> None:
        names = ome_channels(self._file)
        if names and all(_FLUOROPHORE.fullmatch(name) for name in names):
            raise InputError(
                f"{self.path} holds the fluorescence channels {', '.join(names)}; give the "
                "brightfield (H&E) image of this slide"
            )

    def _levels(self) -> list[_Level]:
        series = main_series(self._file)
        axes, shape = series.axes, series.shape
        planes = 1
        if axes in ("CYX", "IYX", "QYX") and shape[0] == 3:
            planes = 3  # red, green and blue as pages, in this order
        elif axes not in ("YX", "YXS", "SYX") and not self._is_plain(axes, shape):
            raise InputError(
                f"{self.path} has the axes {axes} of {shape}; an image of three colors was "
                "expected, as pixels (YXS) or as three pages (CYX)"
            )
        found = []
        for level in getattr(series, "levels", [series]):
            if len(level.pages) < planes or any(p is None for p in level.pages[:planes]):
                raise InputError(f"{self.path} lacks some of its color pages; copy it again")
            pages = [page.aspage() for page in level.pages[:planes]]
            if any(page.parent.filehandle is not self._file.filehandle for page in pages):
                raise InputError(
                    f"{self.path} is one of several files that hold the colors of one image; save "
                    "it as one file"
                )
            found.append(_Level(self.path, pages, self._file.filehandle))
        return found

    @staticmethod
    def _is_plain(axes: str, shape: tuple[int, ...]) -> bool:
        """Whether all axes but rows, columns and samples have length one."""
        return all(size == 1 for axis, size in zip(axes, shape, strict=True) if axis not in "YXS")

    @property
    def is_plain(self) -> bool:
        """Whether other readers can be trusted with it: strips of eight-bit RGB or gray."""
        page = self._level.pages[0]
        plain = page.dtype == np.uint8 and page.samplesperpixel in (1, 3)
        plain &= page.compression in _COMMON
        plain &= page is self._file.pages.first  # other readers open the first image
        return plain and len(self._level.pages) == 1 and not page.is_tiled

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Uint8 (height, width, 3) of a window inside the image."""
        return self._level.read(x, y, width, height)

    def thumbnail(self, longest: int) -> Image.Image:
        """A picture of at most ``longest`` pixels a side, from the smallest level that has them."""
        level = self._level
        for other in self._smaller:
            if max(other.width, other.height) >= longest:
                level = other
        factor = max(1, max(level.width, level.height) // longest)
        rows = factor * max(1, level.tile_height // factor)
        parts = []
        for y in range(0, level.height, rows):
            strip = level.read(0, y, level.width, min(rows, level.height - y))
            parts.append(np.asarray(Image.fromarray(strip).reduce(factor)))
        small = Image.fromarray(np.concatenate(parts))
        small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
        return small


class _Level:
    """One resolution: its pages (one, or one a color) and their tiles or strips."""

    def __init__(self, path: Path, pages: list, handle):
        self.path, self.pages, self._handle = path, pages, handle
        page = pages[0]
        self.height, self.width = page.imagelength, page.imagewidth
        self.tile_height, self.tile_width = (
            (page.tilelength, page.tilewidth)
            if page.is_tiled
            else (min(page.rowsperstrip, self.height), self.width)
        )
        self._across = -(-self.width // self.tile_width)
        self._count = self._across * -(-self.height // self.tile_height)
        self._bands = page.samplesperpixel
        self._separate = page.planarconfig == 2 and self._bands > 1
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._kept = 0
        self._check()
        self._scale, self._alpha = self._depth()

    def _check(self) -> None:
        size = self._handle.size
        for page in self.pages:
            needed = self._count * (self._bands if self._separate else 1)
            offsets, counts = page.dataoffsets, page.databytecounts
            if len(offsets) < needed or len(counts) < needed:
                raise InputError(
                    f"{self.path} lists {len(offsets)} tiles where {needed} cover the image; the "
                    "file is damaged, copy it again"
                )
            beyond = [o for o, n in zip(offsets, counts, strict=False) if n and o + n > size]
            if beyond:
                raise InputError(
                    f"{self.path}: {len(beyond)} of {needed} tiles lie beyond the end of the file; "
                    "it was cut short, copy it again"
                )
            check_colors(page, self.path)
            if (page.imagelength, page.imagewidth) != (self.height, self.width):
                raise InputError(f"{self.path} has color pages of different sizes")
        tile = self.tile_height * self.tile_width * self._bands * self.pages[0].dtype.itemsize
        if tile > _SEGMENT:
            raise InputError(
                f"{self.path} is stored in pieces of {tile / 1e9:.1f} GB, more than is read at "
                "once; save it with tiles"
            )

    def _depth(self) -> tuple[float, bool]:
        """Scale of the pixels, and whether their alpha hides something, from some tiles."""
        page = self.pages[0]
        if page.dtype == np.uint8 and self._bands in (1, 3):
            return 1.0, False
        step = max(1, self._count // _SAMPLED)
        low, high, opaque = np.inf, -np.inf, 0
        for index in range(0, self._count, step):
            tile = self._stored(index)
            if tile is None:
                continue
            color = tile[..., :-1] if tile.shape[2] in (2, 4) else tile
            # not min and max, which drop NaN
            low, high = np.minimum(low, color.min()), np.maximum(high, color.max())
            opaque = max(opaque, tile[..., -1].max())
        if low > high:
            return 1.0, False  # nothing was ever written
        return brightness_scale(page.dtype, float(low), float(high), self.path), bool(opaque > 0)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        window = np.empty((height, width, 3), np.uint8)
        for row in range(y // self.tile_height, (y + height - 1) // self.tile_height + 1):
            for column in range(x // self.tile_width, (x + width - 1) // self.tile_width + 1):
                tile = self._tile(row * self._across + column)
                top, left = row * self.tile_height, column * self.tile_width
                y0, y1 = max(y, top), min(y + height, top + self.tile_height)
                x0, x1 = max(x, left), min(x + width, left + self.tile_width)
                window[y0 - y : y1 - y, x0 - x : x1 - x] = tile[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return window

    def _tile(self, index: int) -> np.ndarray:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        stored = self._stored(index)
        if stored is None:
            tile = np.full((self.tile_height, self.tile_width, 3), GLASS, np.uint8)
        else:
            associated = self.pages[0].extrasamples == _ASSOCIATED
            tile = to_rgb(stored, self._scale, self._alpha, self.path, associated)
        self._cache[index] = tile
        self._kept += tile.nbytes
        while self._kept > _CACHE and len(self._cache) > 1:
            self._kept -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _stored(self, index: int) -> np.ndarray | None:
        """One tile (h, w, bands) as stored; None where it was never written."""
        pieces = [(page, index) for page in self.pages]
        if self._separate:
            pieces = [(self.pages[0], s * self._count + index) for s in range(self._bands)]
        parts = [self._segment(*piece) for piece in pieces]
        if any(part is None for part in parts):
            return None
        return np.concatenate(parts, axis=2)

    def _segment(self, page, index: int) -> np.ndarray | None:
        count = page.databytecounts[index]
        if count == 0:
            return None
        self._handle.seek(page.dataoffsets[index])
        data = self._handle.read(count)
        try:
            tile, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:  # each codec has errors of its own
            reason = " ".join(str(error).split())[:150]
            raise InputError(
                f"{self.path}: tile {index} cannot be decoded ({reason}); the file is damaged, "
                "copy it again, or save it with another compression"
            ) from error
        if tile is None:
            return None
        tile = np.asarray(tile).reshape(tile.shape[-3:])[: shape[1], : shape[2]]
        return true_values(tile, page)


def main_series(file: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    """The largest image of a file, labels and macro pictures apart; the first of equal ones.

    Raises:
        InputError: a file without an image.
    """
    series = [one for one in file.series if {"Y", "X"} <= set(one.axes)]
    if not series:
        raise InputError(f"{file.filename} holds no image; it is damaged, copy it again")
    return max([one for one in series if not _ASIDE.search(one.name)] or series, key=_area)


def _area(series: tifffile.TiffPageSeries) -> int:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    return sizes["Y"] * sizes["X"]


def ome_pixels(file: tifffile.TiffFile) -> ElementTree.Element | None:
    """The OME ``Pixels`` of the image that ``main_series`` finds; None without OME-XML."""
    if not file.ome_metadata:
        return None
    root = ElementTree.fromstring(file.ome_metadata)
    images = [image for image in root.findall("{*}Image") if image.find("{*}Pixels") is not None]
    images = [one for one in images if not _ASIDE.search(one.get("Name", ""))] or images
    pixels = [image.find("{*}Pixels") for image in images]
    return max(pixels, key=lambda p: int(p.get("SizeX")) * int(p.get("SizeY")), default=None)


def ome_channels(file: tifffile.TiffFile) -> list[str]:
    """Names of the channels by OME-XML, as far as they have any."""
    pixels = ome_pixels(file)
    channels = [] if pixels is None else pixels.findall("{*}Channel")
    names = [(c.get("Name") or c.get("Fluor") or "").strip() for c in channels]
    return [name for name in names if name]


def is_tiff(path: str | os.PathLike) -> bool:
    """Whether a file starts as TIFF or BigTIFF does."""
    with open(path, "rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
