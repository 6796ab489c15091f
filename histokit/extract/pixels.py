"""How pixels of any type become eight-bit RGB on white, by rules that are the same everywhere.

- Eight bits: as stored. Three bands without a tag are red, green and blue.
- 16 bits, signed or not: divided by the power of two that takes the brightest value of the image
  into eight bits, counting in whole pairs of bits (8, 10, 12, 14, 16): the glass of a brightfield
  image is near the top of its range, so its brightest value tells the depth.
- Float: 0 to 1 is multiplied by 255; otherwise as 16 bits.
- Negative values, NaN and infinities are no brightness: refused.
- One band is gray, repeated; with two, the second is alpha. Alpha mixes with white, but one that
  is zero everywhere hides nothing.
"""

from __future__ import annotations

import numpy as np

from histokit.core.errors import InputError

GLASS = 255


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


def to_rgb(pixels: np.ndarray, scale: float, alpha: bool, path) -> np.ndarray:
    """Stored pixels (h, w, bands) as uint8 (h, w, 3).

    Args:
        pixels: as stored.
        scale: as ``brightness_scale`` returns it.
        alpha: whether the last of two or four bands is alpha (and not zero everywhere).
        path: named in errors.
    """
    bands = pixels.shape[2]
    if bands > 4:
        raise InputError(f"{path} has {bands} bands; an RGB image of stained tissue was expected")
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.floor(pixels * scale + 1e-6), 0, GLASS).astype(np.uint8)
    color = pixels[..., :3] if bands >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    if bands in (2, 4) and alpha:
        opaque = pixels[..., -1:].astype(np.uint16)
        mixed = (color * opaque + GLASS * (GLASS - opaque) + 127) // GLASS
        color = mixed.astype(np.uint8)
    return np.ascontiguousarray(color)
