"""A slide before extraction, whatever layout it comes in.

Spots and counts are read when asked for, so a cohort costs the memory of one slide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.tables import read_table
from histokit.data.placement import FLAGS

MPP_RANGE = (0.08, 5.0)  # 80x objectives to small pictures of whole sections


@dataclass(frozen=True)
class SlideSource:
    """One slide before extraction.

    Attributes:
        image: the image, or an HDF5 file of ready patches (HEST); then spots have a column ``row``.
        mpp: microns per level-0 pixel, None where unknown; ``mpp_source`` says where it is from.
        load_spots: reads a table with ``barcode``, ``x``, ``y`` (spot centers, level-0 pixels),
            optionally ``selected`` (spots under tissue), and any further columns. None where there
            are no spots: then patches on a grid stand for themselves.
        load_counts: reads raw counts as ``histokit.data.counts.read_counts`` returns them. None
            where nothing was measured.
        inputs: every file that the slide is read from.
        notes: what the reader chose or repaired, in sentences that are said at extraction.
    """

    slide_id: str
    cancer: str
    patient: str
    technology: str
    image: Path
    mpp: float | None
    mpp_source: str
    load_spots: Callable[[], pd.DataFrame] | None
    load_counts: Callable[[], anndata.AnnData] | None
    inputs: tuple[Path, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What the user says of a source.

    Attributes:
        cancer: OncoTree code for layouts that state none.
        only: ids of the slides wanted; empty for all.
        mpp: microns per level-0 pixel of every slide, in place of what the source says.
        image: the full-resolution image, for folders of one slide that do not hold it.
        bin_um: side in microns of the squares into which bins, cells or transcripts are pooled.
    """

    cancer: str = "Unknown"
    only: frozenset[str] = frozenset()
    mpp: float | None = None
    image: Path | None = None
    bin_um: float = 112.0

    def wants(self, slide_id: str) -> bool:
        """Whether a slide is among those asked for."""
        return not self.only or slide_id in self.only

    def origin(self, source: str) -> str:
        """Where a slide's mpp is from: ``source``, unless the user gave it."""
        return "--mpp" if self.mpp else source


def check_slide_id(slide_id: str, path: Path) -> str:
    """A slide id becomes a file name: raises InputError when it cannot."""
    if not re.fullmatch(r"[\w][\w.+ -]{0,99}", slide_id):
        raise InputError(
            f"{path}: the slide_id {slide_id[:120]!r} cannot name a file; use at most 100 letters, "
            "digits, - _ . +"
        )
    return slide_id


def positive(text: str, what: str) -> float:
    """A positive number from text; raises InputError naming ``what``."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a positive number, got {text!r}")
    return value


def plausible_mpp(text: str, what: str) -> float:
    """Microns per pixel from text, in the range that any slide has.

    Raises:
        InputError: no number, or one that is another unit; says which.
    """
    mpp = positive(text, what)
    if MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        return mpp
    guess = "it may be off by a factor"
    if mpp < 0.01:
        guess = "it looks like millimeters"
    elif mpp >= 10:
        guess = "it looks like a magnification (20x is about 0.5 um, 40x about 0.25)"
    raise InputError(
        f"{what} is {text}, which no slide has ({MPP_RANGE[0]:g} to {MPP_RANGE[1]:g} um per "
        f"pixel); {guess}; correct it, or give the true value with --mpp"
    )


def read_spots(path: Path, slide_id: str) -> pd.DataFrame:
    """Read ``spots.csv``: ``barcode``, ``x``, ``y`` in level-0 pixels; further columns are kept."""
    try:
        return read_table(path, ("barcode", "x", "y"), "table of spots")
    except InputError as error:
        raise InputError(f"slide {slide_id}: {error}") from error


def check_spots(table: pd.DataFrame, slide_id: str) -> pd.DataFrame:
    """The spots that have a place, with float64 centers.

    A spot whose x or y is blank has none and is left out. Columns that are numbers throughout
    become numbers, and names that no AnnData can hold are changed (``/`` to ``_``, ``_index`` to
    ``index_``).

    Raises:
        InputError: coordinates that are no numbers, barcodes that are missing or listed twice.
    """
    table = table.copy()
    blank = (table[["x", "y"]].astype(str).apply(lambda c: c.str.strip()) == "").any(axis=1)
    table = table[~blank].reset_index(drop=True)
    for axis in ("x", "y"):
        table[axis] = pd.to_numeric(table[axis], errors="coerce").astype(np.float64)
    bad = ~np.isfinite(table[["x", "y"]].to_numpy()).all(axis=1)
    if bad.any():
        raise InputError(
            f"slide {slide_id}: the spot {table['barcode'][bad].iloc[0]} has no usable x and y; "
            "spot centers must be numbers in level-0 pixels, with a decimal point"
        )
    names = table["barcode"].astype(str).str.strip()
    wrong = names.duplicated() | (names == "")
    if wrong.any():
        raise InputError(
            f"slide {slide_id}: the barcode {names[wrong].iloc[0]!r} is missing or listed twice "
            "among the spots; barcodes must be unique"
        )
    table["barcode"] = names
    kept = ("barcode", "x", "y", *FLAGS)
    for column in table.columns.difference(kept, sort=False):
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.notna().all():
            table[column] = numbers
    return table.rename(columns=_writable([c for c in table.columns if c not in kept], kept))


def _writable(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """New names for columns that a .h5ad cannot hold, unique among all."""
    used, renamed = {*taken, *columns}, {}
    for column in columns:
        name = str(column).replace("/", "_").strip(".") or "column"
        name = "index_" if name == "_index" else name
        while name != column and name in used:
            name += "_"
        used.add(name)
        if name != column:
            renamed[column] = name
    return renamed
