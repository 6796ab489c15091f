"""What a technology's array looks like, however its name is spelled."""

from __future__ import annotations

import re

import numpy as np
from scipy.spatial import cKDTree

# By the makers' specification, in um: distance of neighboring spots, and diameter of a spot.
PITCH_UM = {"visium": 100.0, "spatial transcriptomics": 200.0}
SPOT_UM = {"visium": 55.0, "spatial transcriptomics": 100.0}
POOLED = ("visium hd", "xenium")  # whose bins, cells or transcripts are pooled into squares


def technology_kind(name: str) -> str:
    """``visium``, ``visium hd``, ``spatial transcriptomics``, ``xenium``, or "" for any other.

    Case, the maker's name and punctuation do not matter: ``10x Visium``, ``VISIUM_v2``.
    """
    words = re.sub(r"[^a-z0-9]+", " ", name.casefold()).split()
    if "xenium" in words:
        return "xenium"
    if any(word.startswith("visium") for word in words):
        return "visium hd" if {"hd", "visiumhd"} & set(words) else "visium"
    if words in (["st"], ["legacy", "st"]) or ("spatial" in words and "transcriptomics" in words):
        return "spatial transcriptomics"
    return ""


def spot_diameter(centers: np.ndarray, technology: str, mpp: float | None) -> float:
    """Spot diameter, or the side of a square, in pixels of level 0.

    Pooled squares touch, so theirs is the distance between neighbors, whatever side was chosen.
    Else the array's own size where the technology and mpp are known, or half the distance between
    neighboring spots, which is about right for every spot array.
    """
    kind = technology_kind(technology)
    if mpp and kind in SPOT_UM:
        return SPOT_UM[kind] / mpp
    if len(centers) < 2:
        return 100.0
    distance = cKDTree(centers).query(centers, k=2)[0][:, 1]
    return max(1.0, (1.0 if kind in POOLED else 0.5) * float(np.median(distance)))
