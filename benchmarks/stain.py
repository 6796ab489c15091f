"""Copies of slides whose colors have one mean and deviation (Reinhard et al. 2001)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from histokit.core.files import atomic_path, make_folder

# of tissue in CIELab, as H&E commonly is; what they are matters little, that they are one does
MEAN, DEVIATION = np.array([65.0, 25.0, -15.0]), np.array([14.0, 10.0, 7.0])
ROWS = 512  # of pixels at a time
IMAGES = (".jpg", ".png")


def normalized(source: Path, out: Path) -> Path:
    """A copy of a cohort's folder in which every image has the same colors; what is there is kept.

    Tissue is what is neither near white nor near black; the rest of an image stays as it is.

    Returns:
        The folder.
    """
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        copy = out / path.relative_to(source)
        if copy.is_file():
            continue
        make_folder(copy.parent)
        if path.suffix in IMAGES:
            with atomic_path(copy) as part:
                pixels = Image.fromarray(one_color(np.asarray(Image.open(path).convert("RGB"))))
                pixels.save(part, format="PNG" if path.suffix == ".png" else "JPEG", quality=95)
        else:
            shutil.copyfile(path, copy)
    return out


def one_color(pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 (H, W, 3) whose tissue has the mean and deviation of all."""
    sample = pixels[::8, ::8]
    lab = rgb2lab(sample)[is_tissue(sample)]
    mean, deviation = lab.mean(axis=0), np.maximum(lab.std(axis=0), 1e-3)
    out = pixels.copy()
    for top in range(0, len(pixels), ROWS):
        part = pixels[top : top + ROWS]
        lab = (rgb2lab(part) - mean) / deviation * DEVIATION + MEAN
        changed = np.rint(255 * lab2rgb(lab).clip(0, 1)).astype(np.uint8)
        out[top : top + ROWS] = np.where(is_tissue(part)[..., None], changed, part)
    return out


def is_tissue(pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool: neither near white nor near black."""
    value = pixels.mean(axis=-1)
    return (value > 12) & (value < 225)
