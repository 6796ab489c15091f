"""How pixels of any type become eight-bit RGB on white, by rules that are the same everywhere.

- Eight bits: as stored. Three bands without a tag are red, green and blue.
- 16 bits, signed or not: divided by the power of two that takes the brightest value of the image
  into eight bits, counting in whole pairs of bits (8, 10, 12, 14, 16): the glass of a brightfield
  image is near the top of its range, so its brightest value tells the depth.
- Float: 0 to 1 is multiplied by 255; otherwise as 16 bits.
- Negative values, NaN and infinities are no brightness: refused.
- One band is gray, repeated; with two, the second is alpha. Alpha mixes with white, but one that
  is zero everywhere hides nothing. Colors that were multiplied by alpha before are not again.
- Palette: the color that the map has for the value. Where white is zero: inverted. One bit: 0, 255.
- CMYK, CIELab and other color spaces, YCbCr without JPEG, four bands that are not said to be RGB,
  and more than four: refused.
"""

from __future__ import annotations

import numpy as np
import tifffile

from histokit.core.errors import InputError

GLASS = 255
_YCBCR_CODECS = (6, 7, 34892, 50001)  # compressions of TIFF that give RGB back
_APERIO_YCBCR = 33003  # JPEG 2000 of YCbCr, whatever the tags say
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6  # photometric tag
_ALPHA = ((1,), (2,))  # extra samples that are alpha


def brightness_scale(dtype: np.dtype, low: float, high: float, path) -> float:
    """What pixels of a type are multiplied by to fill eight bits.

    Args:
        dtype: the dtype of the stored pixels.
        low: least value of the image.
        high: greatest value of the image.
        path: named in errors.

    Raises:
        InputError: values that are no brightness.
    """
    if dtype == np.uint8:
        return 1.0
    if dtype.kind == "b":
        return float(GLASS)
    if dtype.kind not in "iuf":
        raise InputError(f"{path} holds pixels of type {dtype}; 8 or 16 bits or floats are read")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path} holds pixels that are not finite; save it as 8-bit RGB")
    if low < 0:
        raise InputError(f"{path} holds negative pixels ({low:g}); save it as 8-bit RGB")
    if high > 2**16:
        raise InputError(f"{path} holds pixels up to {high:g}; save it as 8-bit RGB")
    if dtype.kind == "f" and high <= 1:
        return float(GLASS)
    bits = max(8, int(np.ceil(np.log2(max(high, 1) + (dtype.kind != "f")))))
    return 2.0 ** (8 - (bits + bits % 2))


def check_colors(page: tifffile.TiffPage, path) -> None:
    """Check that the bands of a TIFF page are gray, red, green, blue and alpha.

    Raises:
        InputError: another color space, channels that are no colors, or 2 to 7 bits.
    """
    kind, bands = page.photometric, page.samplesperpixel
    coded = kind == _YCBCR and page.compression not in _YCBCR_CODECS
    if coded or page.compression == _APERIO_YCBCR:
        raise InputError(f"{path} holds YCbCr pixels without JPEG; save it as RGB")
    if kind not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR):
        name = "CMYK" if kind == 5 else getattr(kind, "name", kind)
        raise InputError(f"{path} holds {name} colors; save it as 8-bit RGB")
    odd = bands == 4 or (bands == 2 and page.extrasamples not in _ALPHA)
    if bands > 4 or (kind == _BLACK_IS_ZERO and odd):
        raise InputError(
            f"{path} has {bands} channels that are not said to be RGB, such as fluorescence has; "
            "give the brightfield (H&E) image, or save it as 8-bit RGB"
        )
    if bands not in {_PALETTE: (1,), _WHITE_IS_ZERO: (1,)}.get(kind, (1, 2, 3, 4)) or (
        kind in (_RGB, _YCBCR) and bands < 3
    ):
        raise InputError(f"{path} has {bands} bands, which its color tag excludes; save it as RGB")
    inverted = kind == _WHITE_IS_ZERO and page.dtype.kind not in "bu"
    if inverted or (kind != _PALETTE and 1 < page.bitspersample < 8):
        raise InputError(
            f"{path} holds gray levels of {page.bitspersample} bits ({page.dtype}) in a form that "
            "is not read; save it as 8-bit RGB"
        )


def true_values(values: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    """Stored values (h, w, bands) with the page's palette looked up, and white above black.

    A palette gives uint8 (h, w, 3); some writers fill only its lower eight bits.
    """
    if page.photometric == _PALETTE:
        colors = page.colormap >> 8 if page.colormap.max() > GLASS else page.colormap
        return np.moveaxis(colors.astype(np.uint8)[:, values[..., 0]], 0, 2)
    if page.photometric == _WHITE_IS_ZERO:
        most = (1 << page.bitspersample) - 1
        return ~values if values.dtype == bool else (most - values).astype(values.dtype)
    return values


def to_rgb(
    pixels: np.ndarray, scale: float, alpha: bool, path, associated: bool = False
) -> np.ndarray:
    """Stored pixels (h, w, bands) as uint8 (h, w, 3).

    Args:
        pixels: as stored.
        scale: as ``brightness_scale`` returns it.
        alpha: whether the last of two or four bands is alpha (and not zero everywhere).
        path: named in errors.
        associated: whether the colors were multiplied by alpha already.
    """
    bands = pixels.shape[2]
    if bands > 4:
        raise InputError(f"{path} has {bands} bands; an RGB image of stained tissue was expected")
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.floor(pixels * scale + 1e-6), 0, GLASS).astype(np.uint8)
    color = pixels[..., :3] if bands >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    if bands in (2, 4) and alpha:
        opaque = pixels[..., -1:].astype(np.uint16)
        light = color.astype(np.uint16) if associated else (color * opaque + 127) // GLASS
        mixed = np.minimum(light + (GLASS - opaque), GLASS)
        color = mixed.astype(np.uint8)
    return np.ascontiguousarray(color)
