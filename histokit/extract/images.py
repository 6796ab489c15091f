"""Images of any format, opened for windows: checked before, decoded as needed, never half read."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openslide
import pyvips
from PIL import Image

from histokit.core.errors import InputError
from histokit.core.files import unreadable
from histokit.extract.pixels import GLASS, brightness_scale, to_rgb
from histokit.extract.tiffs import TiffPicture, is_tiff
from histokit.extract.zarr_image import ZarrImage

_VIPS_LOADERS = {"tiffload", "pngload", "jpegload", "webpload"}
_PILLOW_MAGIC = (b"BM", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # libvips as packaged lacks them
FORMATS = "TIFF, PNG, JPEG, WebP, BMP, JPEG 2000, and OpenSlide's formats"
LARGEST_UNTILED = 4_000_000_000  # pixels of an image that can only be decoded whole
_DTYPES = {
    "uchar": np.uint8, "char": np.int8, "ushort": np.uint16, "short": np.int16,
    "uint": np.uint32, "int": np.int32, "float": np.float32, "double": np.float64,
}  # fmt: skip
pyvips.cache_set_max(0)  # every image is read once; the cache would only hold memory


class _VipsImage:
    """PNG, JPEG, WebP and plain TIFF as stored; ``orientation`` is the EXIF tag.

    An image without tiles is decoded once, at the first read, into an unnamed file of TMPDIR, from
    which windows are then read row by row: mapping the file instead would count its pages as this
    process's memory. Whatever the decoder warns of is an error: damaged JPEG data decodes to
    something.
    """

    turned_from = 1

    def __init__(self, path: Path):
        self.path, self._decoded = path, None
        image = self._open()
        self.width, self.height = image.width, image.height
        _check_size(path, self.width, self.height)
        self.orientation = image.get("orientation") if image.get_typeof("orientation") else 1
        if image.get("vips-loader") not in _VIPS_LOADERS:
            raise InputError(f"{path} is in no format that is read; expected {FORMATS}")
        if image.interpretation in ("cmyk", "lab", "labs", "xyz"):
            name = image.interpretation.upper()
            raise InputError(f"{path} holds {name} colors; save it as 8-bit RGB")
        self._rule = self._depth(image)

    def _open(self) -> pyvips.Image:
        return pyvips.Image.new_from_file(str(self.path), access="sequential", fail_on="warning")

    def _depth(self, image: pyvips.Image) -> tuple[float, bool]:
        """Scale of the pixels and whether alpha hides something; a pass where it must be known."""
        dtype = np.dtype(_DTYPES.get(image.format, np.complex64))
        if dtype == np.uint8 and image.bands in (1, 3):
            return 1.0, False
        table = self._open().stats().numpy()  # rows: all bands, then each band
        color = table[1 : image.bands + (image.bands not in (2, 4))]
        scale = brightness_scale(dtype, color[:, 0].min(), color[:, 1].max(), self.path)
        return scale, bool(table[-1, 1] > 0)

    def _rgb(self, image: pyvips.Image) -> pyvips.Image:
        """Eight-bit RGB on white, by the rules of ``histokit.extract.pixels``."""
        scale, alpha = self._rule
        if image.format != "uchar":
            image = (image * scale + 1e-6).floor().cast("uchar")
        color = image[:3] if image.bands >= 3 else image[0].bandjoin([image[0], image[0]])
        if image.bands in (2, 4) and alpha:
            opaque = image[image.bands - 1].cast("ushort")
            mixed = color.cast("ushort") * opaque + (opaque * -1 + GLASS) * GLASS + 127
            color = (mixed / GLASS).floor().cast("uchar")
        return color.copy(interpretation="srgb")

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self._decoded is None:
            self._decoded = self._decode()
        rows = np.empty((height, width, 3), dtype=np.uint8)
        for row in range(height):
            start = 3 * ((y + row) * self.width + x)
            os.preadv(self._decoded.fileno(), [rows[row]], start)
        return rows

    def _decode(self):
        _check_space(self.path, 3 * self.width * self.height)
        decoded = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the image)
        try:
            target = pyvips.Target.new_to_descriptor(decoded.fileno())
            self._rgb(self._open()).rawsave_target(target)
        except pyvips.Error as error:
            space = os.statvfs(tempfile.gettempdir())
            if space.f_bavail * space.f_frsize < 2**20:
                folder = tempfile.gettempdir()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
            raise
        return decoded

    def thumbnail(self, longest: int) -> Image.Image:
        factor = max(self.width, self.height) / longest
        image = self._rgb(self._open())
        small = image.resize(1 / factor, kernel="linear") if factor > 1 else image
        return Image.fromarray(small.numpy())


class _OpenSlideImage:
    """Vendors' whole-slide formats, at level 0."""

    orientation = turned_from = 1

    def __init__(self, path: Path):
        self._slide = openslide.OpenSlide(str(path))
        self.width, self.height = self._slide.dimensions

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        return np.asarray(_on_glass(self._slide.read_region((x, y), 0, (width, height))))

    def thumbnail(self, longest: int) -> Image.Image:
        return _on_glass(self._slide.get_thumbnail((longest, longest)))


class _PillowImage:
    """BMP and JPEG 2000: decoded whole, into memory."""

    orientation = turned_from = 1

    def __init__(self, path: Path):
        with Image.open(path) as image:
            self.width, self.height = image.size
            _check_size(path, self.width, self.height)
            if 3 * self.width * self.height > 1 << 31:
                raise InputError(
                    f"{path} is {self.width} x {self.height} pixels, more than this format is read "
                    "at; save it as a tiled TIFF"
                )
            if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
                raise InputError(f"{path} holds {image.mode} colors; save it as 8-bit RGB")
            image = image.convert("RGBA" if "A" in image.getbands() else image.mode)
            bands = np.atleast_3d(np.asarray(image if image.mode != "P" else image.convert("RGB")))
        scale = brightness_scale(bands.dtype, float(bands.min()), float(bands.max()), path)
        alpha = bands.shape[2] in (2, 4) and bool(bands[..., -1].max() > 0)
        self._pixels = to_rgb(bands, scale, alpha, path)

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        return self._pixels[y : y + height, x : x + width].copy()

    def thumbnail(self, longest: int) -> Image.Image:
        small = Image.fromarray(self._pixels)
        small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
        return small


class Turned:
    """An image shown as viewers do, by its EXIF orientation of 2 to 8.

    Attributes:
        width, height: in level-0 pixels, after turning.
        orientation: 1, since it is upright now.
        turned_from: the tag.
    """

    orientation = 1

    def __init__(self, image):
        self._image, self.turned_from = image, image.orientation
        self._swapped = self.turned_from >= 5  # rows and columns trade places, before mirroring
        self._mirrored_x = self.turned_from in (2, 3, 6, 7)
        self._mirrored_y = self.turned_from in (3, 4, 7, 8)
        self.width, self.height = image.width, image.height
        if self._swapped:
            self.width, self.height = image.height, image.width

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Uint8 (height, width, 3) of a window inside the turned image."""
        x = self.width - x - width if self._mirrored_x else x
        y = self.height - y - height if self._mirrored_y else y
        if self._swapped:
            x, y, width, height = y, x, height, width
        return self._turn(self._image.read(x, y, width, height))

    def thumbnail(self, longest: int) -> Image.Image:
        """A picture of the turned image, with at most ``longest`` pixels a side."""
        return Image.fromarray(self._turn(np.asarray(self._image.thumbnail(longest))))

    def _turn(self, pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.transpose(1, 0, 2) if self._swapped else pixels
        pixels = pixels[:, ::-1] if self._mirrored_x else pixels
        return np.ascontiguousarray(pixels[::-1] if self._mirrored_y else pixels)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > LARGEST_UNTILED:
        raise InputError(
            f"{path} is {width:,} x {height:,} pixels without tiles, more than is decoded at once; "
            "save it as a tiled TIFF (vips tiffsave IN OUT --tile --pyramid)"
        )


def _check_space(path: Path, size: int) -> None:
    """An image is decoded only where it will fit."""
    folder = tempfile.gettempdir()
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if size > 0.9 * free:
        raise InputError(
            f"{path} decodes to {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
            "point TMPDIR at a larger place, or save the image as a tiled TIFF"
        )


def _on_glass(image: Image.Image) -> Image.Image:
    """Transparent pixels, where a scanner saw nothing, become white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    glass = Image.new("RGB", image.size, (GLASS,) * 3)
    glass.paste(image, mask=image.getchannel("A"))
    return glass


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn the failures of image libraries into one sentence about the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        if isinstance(getattr(error, "errno", None), int):
            raise unreadable(path, error, "image") from error
        reason = " ".join(str(getattr(error, "detail", None) or error).split())[:200]
        raise InputError(
            f"{path} cannot be read to its end ({reason}); it is cut short, damaged or in no known "
            f"format ({FORMATS}), copy it again"
        ) from error


def vendor_of(path: Path) -> str | None:
    """OpenSlide's name of a vendor's format, such as ``aperio``; None for all other files.

    Tiled TIFF without a vendor's marks is none: there every tile is checked by our own reader.
    """
    vendor = openslide.OpenSlide.detect_format(str(path))
    return None if vendor == "generic-tiff" else vendor


def open_image(path: str | os.PathLike):
    """Open an image for random access; the content tells its format, whatever its name ends in.

    An image with an EXIF orientation is turned as viewers do; vendors' formats have none.

    Returns:
        an object with ``width``, ``height`` (level-0 pixels), ``orientation`` (1: upright),
        ``turned_from`` (the tag by which it was turned, 1 if it was not), ``read(x, y, width,
        height)`` -> uint8 (height, width, 3) for windows inside the image, and
        ``thumbnail(longest)`` -> PIL image with at most ``longest`` pixels a side.

    Raises:
        InputError: the file is missing, of an unknown format or kind of color, cut short, damaged.
    """
    path = Path(path)
    with naming(path):
        if path.is_dir():
            if any((path / name).exists() for name in ("zarr.json", ".zgroup")):
                return ZarrImage(path)
            raise InputError(
                f"{path} is a folder where an image was expected; of a DICOM slide, name one of "
                "the .dcm files"
            )
        if not path.stat().st_size:
            raise InputError(f"the image {path} is empty (0 bytes); copy it again")
        image = _OpenSlideImage(path) if vendor_of(path) else _open_stored(path)
        return Turned(image) if image.orientation in range(2, 9) else image


def _open_stored(path: Path):
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(_PILLOW_MAGIC):
        return _PillowImage(path)
    if is_tiff(path):
        tiff = TiffPicture(path)
        if not tiff.is_plain:
            return tiff
    return _VipsImage(path)
