"""Patches around spots, read in windows: memory grows with the batch, not with the image.

The border rule: a spot whose centre lies on the image is kept, and the part of its patch that
leaves the image is white (255), as empty glass is.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pyvips
from PIL import Image

from histokit.errors import InputError

GLASS = 255
DARK = 6  # gray levels from black, or from white, that count as such
HEST_MPP = 0.5  # HEST's stored patches: microns per stored pixel
OPENSLIDE_SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide"}
pyvips.cache_set_max(0)  # every image is read once; the cache would only hold memory


class _VipsImage:
    """Anything libvips opens; level 0 as stored (EXIF rotation is not applied).

    Tiles are decoded as they are needed. An image without tiles is decoded once, at the first
    read, into an unnamed file of TMPDIR, from which windows are then read row by row: mapping the
    file instead would count its pages as this process's memory.
    """

    def __init__(self, path: Path):
        self.path, self._decoded, self._region = path, None, None
        image = self._open("sequential")
        self.width, self.height = image.width, image.height
        if image.get_typeof("tile-width"):
            self._region = pyvips.Region.new(self._open("random"))

    def _open(self, access: str) -> pyvips.Image:
        image = pyvips.Image.new_from_file(str(self.path), access=access, fail_on="error")
        return _vips_rgb(image)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self._region is not None:
            window = self._region.fetch(x, y, width, height)
            return np.frombuffer(window, dtype=np.uint8).reshape(height, width, 3)
        if self._decoded is None:
            self._decoded = self._decode()
        rows = np.empty((height, width, 3), dtype=np.uint8)
        for row in range(height):
            start = 3 * ((y + row) * self.width + x)
            os.preadv(self._decoded.fileno(), [rows[row]], start)
        return rows

    def _decode(self):
        decoded = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the image)
        try:
            target = pyvips.Target.new_to_descriptor(decoded.fileno())
            self._open("sequential").rawsave_target(target)
        except pyvips.Error as error:
            space = os.statvfs(tempfile.gettempdir())
            if space.f_bavail * space.f_frsize < 2**20:
                folder = tempfile.gettempdir()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
            raise
        return decoded

    def thumbnail(self, longest: int) -> Image.Image:
        small = pyvips.Image.thumbnail(
            str(self.path), longest, height=longest, size="down", no_rotate=True
        )
        return Image.fromarray(_vips_rgb(small).numpy())


def _vips_rgb(image: pyvips.Image) -> pyvips.Image:
    """Eight-bit RGB on white."""
    if image.interpretation != "srgb" or image.format != "uchar":
        image = image.colourspace("srgb").cast("uchar")
    return image.flatten(background=GLASS) if image.hasalpha() else image


class _OpenSlideImage:
    """Vendors' whole-slide formats, at level 0."""

    def __init__(self, path: Path):
        import openslide

        self._slide = openslide.OpenSlide(str(path))
        self.width, self.height = self._slide.dimensions

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        return np.asarray(_on_glass(self._slide.read_region((x, y), 0, (width, height))))

    def thumbnail(self, longest: int) -> Image.Image:
        return _on_glass(self._slide.get_thumbnail((longest, longest)))


def _on_glass(image: Image.Image) -> Image.Image:
    """Transparent pixels, where a scanner saw nothing, become white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    glass = Image.new("RGB", image.size, (GLASS,) * 3)
    glass.paste(image, mask=image.getchannel("A"))
    return glass


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the failures of image libraries into one sentence about the file."""
    import openslide

    try:
        yield
    except (pyvips.Error, openslide.OpenSlideError, OSError, KeyError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = " ".join(str(getattr(error, "detail", None) or error).split())[:200]
        raise InputError(
            f"{path} cannot be read to its end ({reason}); it may be cut short or of an unknown "
            "format, copy it again"
        ) from error


def open_image(path: str | os.PathLike):
    """Open an image for random access.

    Returns:
        an object with ``width``, ``height`` (level-0 pixels), ``read(x, y, width, height)`` ->
        uint8 (height, width, 3) for windows inside the image, and ``thumbnail(longest)`` -> PIL
        image with at most ``longest`` pixels a side.

    Raises:
        InputError: the file is missing, of an unknown format or truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the image {path} does not exist")
    with _naming(path):
        if path.suffix.lower() in OPENSLIDE_SUFFIXES:
            return _OpenSlideImage(path)
        return _VipsImage(path)


class PixelStatistics:
    """What was read at the spots: shares of black, white and colorless pixels.

    A decoder that gives up leaves black, an unread region white or black, a lost color channel
    gray; none of that raises an error by itself.
    """

    def __init__(self):
        self.pixels = self.black = self.white = self.gray = 0

    def add(self, patches: np.ndarray) -> None:
        """Count patches uint8 (B, size, size, 3)."""
        low, high = patches.min(axis=-1), patches.max(axis=-1)
        self.pixels += low.size
        self.black += int((high <= DARK).sum())
        self.white += int((low >= GLASS - DARK).sum())
        self.gray += int((high - low <= 2).sum())

    def shares(self) -> dict[str, float]:
        """``black``, ``white`` and ``gray`` shares of all pixels."""
        count = max(1, self.pixels)
        return {name: round(getattr(self, name) / count, 4) for name in ("black", "white", "gray")}

    def findings(self) -> list[str]:
        """What is worth saying in extraction's line."""
        shares = self.shares()
        limits = {"black": 0.05, "white": 0.5, "gray": 0.5}
        return [
            f"{shares[name]:.0%} of the pixels at the spots are {name}"
            for name, limit in limits.items()
            if shares[name] > limit
        ]

    def faults(self) -> list[str]:
        """What no slide of stained tissue looks like."""
        shares = self.shares()
        said = []
        if shares["black"] > 0.5:
            said.append(f"{shares['black']:.0%} of the pixels at the spots are black")
        if shares["white"] > 0.9:
            said.append(f"{shares['white']:.0%} of the pixels at the spots are white")
        if shares["gray"] > 0.98 and not said:
            said.append("the image is gray: its three channels are alike, so no stain is seen")
        return said


def top_left(centres: np.ndarray, side: int) -> np.ndarray:
    """Top-left corners (N, 2) int64 of patches of ``side`` px around ``centres`` (N, 2)."""
    return np.floor(np.asarray(centres) - side / 2 + 0.5).astype(np.int64)


def read_window(image, x: int, y: int, side: int) -> np.ndarray:
    """A square uint8 (side, side, 3) with its top-left at x, y; white where it leaves the image."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + side, image.width), min(y + side, image.height)
    if (left, top, right, bottom) == (x, y, x + side, y + side):
        return image.read(x, y, side, side)
    window = np.full((side, side, 3), GLASS, dtype=np.uint8)
    if right > left and bottom > top:
        inner = image.read(left, top, right - left, bottom - top)
        window[top - y : bottom - y, left - x : right - x] = inner
    return window


def resample(patch: np.ndarray, size: int) -> np.ndarray:
    """Resample a square uint8 patch to (size, size, 3): bicubic, antialiased when shrinking."""
    if patch.shape[:2] == (size, size):
        return patch
    return np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.BICUBIC))


def image_batches(
    path: str | os.PathLike, centres: np.ndarray, sides: Sequence[int], size: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield patches of an image in the order of their centres, each at S scales.

    A spot's largest window is read once and the smaller patches are cut from it.

    Args:
        path: the image.
        centres: (N, 2) spot centres x, y in level-0 pixels.
        sides: of the patches in level-0 pixels, one a scale.
        size: of a patch as yielded, in pixels.
        batch_size: spots at a time.

    Yields:
        uint8 (S, B, size, size, 3).

    Raises:
        InputError: the image is missing, unreadable or truncated.
    """
    image = open_image(path)
    corners = np.stack([top_left(centres, side) for side in sides], axis=1)  # (N, S, 2)
    for start in range(0, len(corners), batch_size):
        with _naming(Path(path)):
            patches = [_at_scales(image, c, sides, size) for c in corners[start:][:batch_size]]
        yield np.stack(patches, axis=1)


def _at_scales(image, corners: np.ndarray, sides: Sequence[int], size: int) -> np.ndarray:
    """One spot's patches uint8 (S, size, size, 3) from a single window."""
    largest = int(np.argmax(sides))
    window = read_window(image, *map(int, corners[largest]), sides[largest])
    return np.stack(
        [
            resample(window[y : y + side, x : x + side], size)
            for (x, y), side in zip(corners - corners[largest], sides, strict=True)
        ]
    )


def stored_batches(
    path: str | os.PathLike, rows: np.ndarray, patch_um: float, size: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Yield ready patches of a HEST file (``img``, 0.5 um/px), cropped to ``patch_um``.

    Args:
        path: the HDF5 file.
        rows: (N,) rows of ``img``.
        patch_um: side of the patch in microns; at most what is stored.
        size: of a patch as yielded, in pixels.
        batch_size: patches at a time.

    Raises:
        InputError: the file is cut short, or its patches are smaller than ``patch_um``.
    """
    with _naming(Path(path)), h5py.File(path) as file:
        images = file["img"]
        stored, side = images.shape[1], round(patch_um / HEST_MPP)
        if side > stored:
            raise InputError(
                f"{path} holds patches of {stored * HEST_MPP:g} um, smaller than --patch-um "
                f"{patch_um:g}; ask for at most that"
            )
        margin = (stored - side) // 2
        for start in range(0, len(rows), batch_size):
            batch = [images[row] for row in rows[start : start + batch_size]]
            yield np.stack(
                [resample(p[margin : margin + side, margin : margin + side], size) for p in batch]
            )


def image_thumbnail(path: str | os.PathLike, longest: int = 1600) -> tuple[Image.Image, float]:
    """A small picture of an image and its scale (thumbnail pixels per level-0 pixel)."""
    image = open_image(path)
    with _naming(Path(path)):
        small = image.thumbnail(longest)
    return small, max(small.size) / max(image.width, image.height)


def stored_thumbnail(
    path: str | os.PathLike, rows: np.ndarray, centres: np.ndarray, side: int, longest: int = 1600
) -> tuple[Image.Image, float]:
    """The picture that HEST's stored patches make when laid at their places on white glass."""
    extent = centres.max(axis=0) + side / 2
    scale = min(1.0, longest / float(extent.max()))
    canvas = Image.new("RGB", tuple(np.ceil(extent * scale).astype(int)), (GLASS,) * 3)
    step = max(1, round(side * scale))
    patches = stored_batches(path, rows, _stored_um(path), step, 1)
    for (x, y), patch in zip(top_left(centres, side), patches, strict=True):
        canvas.paste(Image.fromarray(patch[0]), (round(x * scale), round(y * scale)))
    return canvas, scale


def _stored_um(path: str | os.PathLike) -> float:
    with _naming(Path(path)), h5py.File(path) as file:
        return file["img"].shape[1] * HEST_MPP
