"""Microns per pixel of an image: every value that it states, which one is used, and which are not.

Resolution tags of TIFF are mostly wrong for spatial slides: printing resolutions, or left behind by
a copy of another size. So they count last, and never against what was measured.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import openslide
import tifffile

from histokit.core.errors import InputError
from histokit.extract.images import naming, vendor_of
from histokit.extract.tiffs import is_tiff, main_series, ome_pixels

PLAUSIBLE = (0.08, 5.0)  # um per pixel: beyond 80x objectives, to pictures of whole sections
OME_XML, TIFF_TAGS = "OME-XML PhysicalSizeX", "TIFF resolution tags"
_PRINTING = {dpi: 25_400 / dpi for dpi in (72, 96, 150, 300, 600)}  # dots per inch: um
_PLACEHOLDERS = (1.0, 10.0, 1000.0)  # one pixel for each micron, or for each unit of some library
_INCH_AS_MM = {dpi: 25.4 / dpi for dpi in (72, 96)}
_AGREE = 0.03  # relative difference up to which two values are the same
_SQUARE = 0.02  # relative difference of x and y up to which pixels are square
_UNITS_UM = {
    "nm": 1e-3, "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6,
}  # fmt: skip
_TAG_UNITS_UM = {2: 25_400.0, 3: 10_000.0}  # inch, centimeter


@dataclass(frozen=True)
class Candidate:
    """One value that a file states.

    Attributes:
        mpp_x, mpp_y: microns per level-0 pixel.
        source: where in the file it stands.
        rejected: why it cannot be right; empty for a plausible value.
    """

    mpp_x: float
    mpp_y: float
    source: str
    rejected: str = ""

    @property
    def mpp(self) -> float:
        """The mean of both axes."""
        return (self.mpp_x + self.mpp_y) / 2

    @property
    def is_square(self) -> bool:
        """Whether x and y differ by at most 2 %."""
        return _agree(self.mpp_x, self.mpp_y, _SQUARE)

    @property
    def is_trusted(self) -> bool:
        """Whether the value counts against what was measured."""
        return not self.rejected and self.source != TIFF_TAGS

    def __str__(self) -> str:
        both = f"{self.mpp_x:.4g}"
        if not _agree(self.mpp_x, self.mpp_y, 0.001):
            both += f" x {self.mpp_y:.4g}"
        return f"{both} um of the {self.source}"


@dataclass(frozen=True)
class Resolution:
    """The microns per pixel to use.

    Attributes:
        mpp: microns per level-0 pixel; None where nothing trustworthy is known.
        source: where it is from; empty without a value.
        rejected: the other values with the reason against each, in words.
    """

    mpp: float | None
    source: str
    rejected: tuple[str, ...]


def image_scale(path: str | os.PathLike) -> list[Candidate]:
    """Every value that an image states, the most trusted first.

    Vendor's key (through OpenSlide), OME-XML, resolution tags of TIFF. PNG, JPEG and the like state
    printing resolutions only; folders and HDF5 files are no images: none of these has candidates.

    Args:
        path: the image.

    Raises:
        InputError: a file that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return []
    with naming(path):
        vendor = vendor_of(path)
        found = [_vendor(path, vendor)] if vendor else []
        if is_tiff(path):
            # NDPI has offsets of its own
            with tifffile.TiffFile(path, is_ndpi=vendor == "hamamatsu") as file:
                found += [_ome(file), _tags(file)]
    return [_judged(one) for one in found if one is not None]


def resolve(
    path: str | os.PathLike, given: float | None, measured: float | None, measured_source: str
) -> Resolution:
    """Choose among what the user, the source and the image say.

    In this order: the user, what the source measured (pitch of the spots, alignment matrix,
    cohort.csv), the vendor's key, OME-XML, plausible resolution tags of TIFF.

    Args:
        path: the image.
        given: ``--mpp``, which settles every contradiction; None where it is not given.
        measured: what the source of the slide says, or None.
        measured_source: where ``measured`` is from.

    Raises:
        InputError: the image contradicts what was measured by more than 3 %, or its pixels are not
            square, and no ``given`` settles it.
    """
    found = image_scale(path)
    if given is not None:
        rejected = [] if measured is None else _unlike([(measured, measured_source)], given)
        return Resolution(given, "--mpp", (*rejected, *_rejected(found, given)))
    trusted = [one for one in found if one.is_trusted]
    for one in trusted:
        _check_square(one, path)
    if measured is not None:
        for one in trusted:
            _check_agreement(one, path, measured, measured_source)
        return Resolution(measured, measured_source, _rejected(found, measured))
    used = next((one for one in found if not one.rejected), None)
    if used is None:
        return Resolution(None, "", _rejected(found, None))
    _check_square(used, path)
    return Resolution(used.mpp, used.source, _rejected(found, used.mpp))


def _vendor(path: Path, vendor: str) -> Candidate | None:
    with openslide.OpenSlide(str(path)) as slide:
        x = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
        y = slide.properties.get(openslide.PROPERTY_NAME_MPP_Y)
    if x is None and y is None:
        return None
    return Candidate(float(x or y), float(y or x), f"vendor's key ({vendor})")


def _ome(file: tifffile.TiffFile) -> Candidate | None:
    pixels = ome_pixels(file)
    x, y = (None, None) if pixels is None else (_ome_size(pixels, axis) for axis in "XY")
    if x is None and y is None:
        return None
    (x, strange), (y, _) = x or y, y or x
    unknown = f"its unit is {strange!r}, which is no length that is known here"
    return Candidate(x, y, OME_XML, unknown if strange else "")


def _ome_size(pixels, axis: str) -> tuple[float, str] | None:
    """Microns of a pixel along an axis, and its unit where that is unknown."""
    size = pixels.get(f"PhysicalSize{axis}")
    if size is None:
        return None
    unit = pixels.get(f"PhysicalSize{axis}Unit", "um").strip()
    return float(size) * _UNITS_UM.get(unit, 1.0), "" if unit in _UNITS_UM else unit


def _tags(file: tifffile.TiffFile) -> Candidate | None:
    """Of the largest image; a missing unit means inch, the unit "none" no resolution."""
    tags = main_series(file).pages[0].aspage().tags
    unit = _TAG_UNITS_UM.get(tags.valueof("ResolutionUnit", 2))
    x, y = (_rational(tags.valueof(f"{axis}Resolution")) for axis in "XY")
    if unit is None or not (x or y):
        return None
    return Candidate(unit / (x or y), unit / (y or x), TIFF_TAGS)


def _rational(value: tuple[int, int] | None) -> float:
    """Pixels for each unit; 0 where the tag states none."""
    return value[0] / value[1] if value and value[1] else 0.0


def _judged(one: Candidate) -> Candidate:
    """The candidate with the reason for which it cannot be right."""
    reason = one.rejected
    if one.source == TIFF_TAGS:
        reason = reason or _not_scanned(one.mpp_x) or _not_scanned(one.mpp_y)
    inside = all(PLAUSIBLE[0] <= mpp <= PLAUSIBLE[1] for mpp in (one.mpp_x, one.mpp_y))
    if not reason and not inside:
        reason = f"outside {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g} um, which no slide has"
    return replace(one, rejected=reason)


def _not_scanned(mpp: float) -> str:
    """Which value that no scanner wrote this is; empty for others."""
    for dpi, size in _PRINTING.items():
        if _agree(mpp, size, 0.01):
            return f"{dpi} dpi, a printing resolution"
    for dpi, size in _INCH_AS_MM.items():
        if _agree(mpp, size, 0.002):  # scanners of 0.263 um exist
            return f"25.4/{dpi}, {dpi} dpi with the inch taken for millimeters"
    if any(_agree(mpp, size, 0.01) for size in _PLACEHOLDERS):
        return "a placeholder that programs write where they know nothing"
    return ""


def _agree(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=0.0, abs_tol=tolerance * abs(other))


def _rejected(found: list[Candidate], used: float | None) -> tuple[str, ...]:
    """Words for every candidate that is not, or not nearly, the value in use."""
    said = [f"{one}: {one.rejected}" for one in found if one.rejected]
    good = [one for one in found if not one.rejected]
    for one in good:
        if not one.is_square:
            said.append(f"{one}: pixels that are not square")
    return (*said, *_unlike([(o.mpp, o.source) for o in good if o.is_square], used))


def _unlike(values: list[tuple[float, str]], used: float | None) -> list[str]:
    return [
        f"{mpp:.4g} um of the {source}: not the {used:.4g} um in use"
        for mpp, source in values
        if used is not None and not _agree(mpp, used, _AGREE)
    ]


def _check_square(one: Candidate, path) -> None:
    if not one.is_square:
        raise InputError(
            f"{path} has pixels of {one.mpp_x:.4g} by {one.mpp_y:.4g} um by its {one.source}; "
            "square pixels were expected, check the export or give the true value with --mpp"
        )


def _check_agreement(one: Candidate, path, measured: float, measured_source: str) -> None:
    if _agree(one.mpp, measured, _AGREE):
        return
    ratio = one.mpp / measured
    cause = "it may be another image of the slide, or a smaller copy that kept its tags"
    if _agree(ratio, 10, 0.005) or _agree(ratio, 0.1, 0.005):
        cause = "exactly ten times apart, as in files whose writer took centimeters for millimeters"
    raise InputError(
        f"{path} states {one} a pixel, where {measured_source} gives {measured:.4g}: {cause}; "
        "check the image, or give the true value with --mpp"
    )
