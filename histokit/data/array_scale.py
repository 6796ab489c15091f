"""Positions of the spots of a 10x array, and the microns per pixel that they imply."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.core.tables import delimiter_of, read_table, text_lines
from histokit.data.sources import Ask, positive

POSITION_COLUMNS = (
    "barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"
)  # fmt: skip
SCALE_KEYS = (
    "spot_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef", "bin_size_um",
    "microns_per_pixel",
)  # fmt: skip
VISIUM_STEP_UM = (50.0, 86.6025)  # one array column, one array row
TOLERANCE = 0.03  # relative difference of two figures for mpp that rounding may explain
_COARSE_PX, _COARSE_UM = 4000, 1.6  # an array of 6.5 mm on fewer pixels, and what one spans then
_SHIFT = 0.3  # residual in pitches beyond which positions do not follow the array
_WHAT = "table of tissue positions"


@dataclass(frozen=True)
class ArrayScale:
    """How the array lies on the image.

    Attributes:
        mpp: microns per pixel.
        residual_um: root mean square distance of a spot from its array place.
        mirrored: whether the image shows the array mirrored.
        turn_deg: by how much the image shows the array's columns turned, clockwise.
    """

    mpp: float
    residual_um: float
    mirrored: bool
    turn_deg: float


def read_positions(path: Path, scale: float = 1.0) -> pd.DataFrame:
    """Read Space Ranger's positions, CSV with or without a header, or Parquet.

    Args:
        path: the table.
        scale: pixels of the image in use for one pixel of the full-resolution image.

    Returns:
        A table of ``barcode``, ``x``, ``y`` (float64 spot centers, pixels of the image in use),
        ``in_tissue``, ``array_row``, ``array_col``; one row a spot, in the file's order.

    Raises:
        InputError: unreadable, without spots, a missing column, or a place that is no number.
    """
    if path.suffix == ".parquet":
        with reading(path, _WHAT):
            table = pd.read_parquet(path, columns=list(POSITION_COLUMNS))
    else:
        table = _read_text(path)
    if table.empty:
        raise InputError(f"{path} lists no spot; copy it again")
    for column in POSITION_COLUMNS[2:]:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(np.float64)
        bad = ~np.isfinite(table[column].to_numpy())
        if bad.any():
            raise InputError(
                f"{path}: the {column} of the spot {table['barcode'][bad].iloc[0]} is no number; "
                "the file may be damaged, copy it again"
            )
    places = {"x": table["pxl_col_in_fullres"] * scale, "y": table["pxl_row_in_fullres"] * scale}
    return table.assign(**places)[["barcode", "x", "y", "in_tissue", "array_row", "array_col"]]


def _read_text(path: Path) -> pd.DataFrame:
    """Positions as text; whether there is a header is told by content, the name says nothing."""
    with text_lines(path, _WHAT) as lines:
        first = next((line for line in lines if line.strip()), "")
    if "in_tissue" in first:
        return read_table(path, POSITION_COLUMNS, _WHAT)
    with text_lines(path, _WHAT) as lines:
        rows = [row for row in csv.reader(lines, delimiter=delimiter_of(first)) if any(row)]
    if not rows:
        raise InputError(f"{path} is empty; positions of spots were expected")
    for number, row in enumerate(rows, 1):
        if len(row) != len(POSITION_COLUMNS):
            raise InputError(
                f"row {number} of {path} has {len(row)} fields; without a header there must be "
                f"{len(POSITION_COLUMNS)}: {', '.join(POSITION_COLUMNS)}"
            )
    return pd.DataFrame([[cell.strip() for cell in row] for row in rows], columns=POSITION_COLUMNS)


def read_scales(path: Path | None) -> dict[str, float]:
    """What is known of ``SCALE_KEYS``; nothing where there is no ``scalefactors_json.json``.

    Raises:
        InputError: unreadable, or a factor that is no positive number.
    """
    content = {} if path is None else _read_json(path)
    there = [key for key in SCALE_KEYS if key in content]
    return {key: positive(str(content[key]), f"{path}: {key}") for key in there}


def _read_json(path: Path) -> dict:
    """A JSON object, plain or gzipped."""
    with reading(path, "JSON file"), text_lines(path, "JSON file") as lines:
        content = json.loads("".join(lines))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object of scale factors; copy it again")
    return content


def fit_scale(spots: pd.DataFrame, step_um: tuple[float, float]) -> ArrayScale | None:
    """Least squares similarity (one scale, any turn, mirrored or not) of the array to the pixels.

    Args:
        spots: ``x``, ``y`` in pixels and ``array_row``, ``array_col``.
        step_um: microns between two array columns and two array rows.

    Returns:
        The fit, or None for fewer than three spots that are not in one line.
    """
    array = spots[["array_col", "array_row"]].to_numpy(np.float64) * step_um
    pixels = spots[["x", "y"]].to_numpy(np.float64)
    if len(spots) < 3:
        return None
    array, pixels = array - array.mean(axis=0), pixels - pixels.mean(axis=0)
    if np.linalg.matrix_rank(array) < 2 or np.linalg.matrix_rank(pixels) < 2:
        return None
    plain, seen = array @ (1, 1j), pixels @ (1, 1j)  # a similarity is one complex factor
    fits = []
    for mirrored, place in ((False, plain), (True, plain.conj())):
        factor = np.vdot(place, seen) / np.vdot(place, place).real
        rest = float(np.sqrt(np.mean(np.abs(seen - factor * place) ** 2)))
        fits.append((rest, mirrored, factor))
    rest, mirrored, factor = min(fits, key=lambda fit: fit[0])
    size = float(abs(factor))
    if size < 1e-12:
        return None
    return ArrayScale(1 / size, rest / size, mirrored, float(np.degrees(np.angle(factor))))


def settle_mpp(
    figures: Mapping[str, float | None], ask: Ask, where: Path, hint: str
) -> tuple[float | None, str, list[str]]:
    """Choose microns per pixel among what several sources say, and compare them.

    Args:
        figures: microns per pixel by source, the preferred one first; None where unknown.
        ask: the user's mpp is taken where there is one.
        where: named in messages.
        hint: what may explain figures that differ.

    Returns:
        The mpp (None where nothing tells it), its source, and notes.

    Raises:
        InputError: two figures more than 3 % apart, and no mpp of the user.
    """
    known = {name: mpp for name, mpp in figures.items() if mpp}
    listed = ", ".join(f"{mpp:.4g} um ({name})" for name, mpp in known.items())
    first, own = next(iter(known.items()), ("", None))
    notes = []
    if own and any(_apart(mpp, own) for mpp in known.values()):
        said = f"microns per pixel disagree: {listed}; {hint}"
        if not ask.mpp:
            raise InputError(f"{where}: {said}; give the true value with --mpp")
        notes.append(said)
    if own and ask.mpp and _apart(ask.mpp, own):
        notes.append(f"--mpp {ask.mpp:g} is used, where the array says {own:.4g} um ({first})")
    return ask.mpp or own, ask.origin(first), notes


def _apart(mpp: float, other: float) -> bool:
    return abs(mpp / other - 1) > TOLERANCE


def array_notes(
    fit: ArrayScale | None, pitch_um: float, extent: np.ndarray, scale: float = 1.0
) -> list[str]:
    """What speaks against the array lying on its image.

    Args:
        fit: the fit of all spots.
        pitch_um: distance of neighboring spots or bins.
        extent: (2,) largest x and y in pixels of the full-resolution image.
        scale: pixels of the image that was fitted for one pixel of the full-resolution image.
    """
    notes = []
    if fit is not None and fit.mirrored:
        notes.append(
            f"the array is mirrored on the image (and turned by {fit.turn_deg:.0f} degrees): the "
            "image is mirrored, or x and y are swapped"
        )
    if fit is not None and fit.residual_um > _SHIFT * pitch_um:
        notes.append(
            f"spots lie {fit.residual_um:.0f} um off the array's rows and columns: positions of "
            "another slide, or barcodes in another order"
        )
    fine = fit is not None and fit.mpp * scale < _COARSE_UM  # a part of an array is small too
    if extent.max() < _COARSE_PX and not fine:
        notes.append(
            f"the positions refer to an image of about {extent[0]:.0f} x {extent[1]:.0f} px such "
            "as the CytAssist image: too coarse"
        )
    return notes
