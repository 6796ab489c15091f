"""Slides of every known layout, read lazily and joined by barcode.

Spots and counts are read when asked for, so a cohort costs the memory of one slide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.tables import read_table
from histokit.data.placement import FLAGS, selected_spots


@dataclass(frozen=True)
class SlideSource:
    """One slide before extraction.

    Attributes:
        image: the image, or an HDF5 file of ready patches (HEST); then spots have a column ``row``.
        mpp: microns per level-0 pixel, None where unknown; ``mpp_source`` says where it is from.
        load_spots: reads a table with ``barcode``, ``x``, ``y`` (spot centers, level-0 pixels),
            optionally ``selected`` (spots under tissue), and any further columns.
        load_counts: reads raw counts as ``histokit.data.counts.read_counts`` returns them.
        inputs: every file that the slide is read from.
    """

    slide_id: str
    cancer: str
    patient: str
    technology: str
    image: Path
    mpp: float | None
    mpp_source: str
    load_spots: Callable[[], pd.DataFrame]
    load_counts: Callable[[], anndata.AnnData]
    inputs: tuple[Path, ...]


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


def join_spots(slide: SlideSource, width: int, height: int) -> tuple[anndata.AnnData, dict]:
    """Join spots and counts of a slide by barcode, in the order of the spot list.

    Args:
        slide: where to read from.
        width: the width of the image in level-0 pixels; spots that lie outside are dropped.
        height: the height of the image in level-0 pixels.

    Returns:
        counts of the joined spots with ``obsm["spatial"]`` (N, 2) float64 centers, and the row of
        the reconciliation table.

    Raises:
        InputError: no common barcode, no spot on the image, or fewer than two joined spots.
    """
    listed, counts = slide.load_spots(), slide.load_counts()
    spots = check_spots(listed, slide.slide_id)
    selected = spots[selected_spots(spots, f"slide {slide.slide_id}")]
    inside = selected["x"].between(0, width, "left") & selected["y"].between(0, height, "left")
    common = selected["barcode"].isin(counts.obs_names)
    kept = selected[inside & common]
    name = slide.slide_id
    if not common.any():
        shown = [
            str(v[0]) if len(v) else "none" for v in (selected["barcode"].array, counts.obs_names)
        ]
        raise InputError(
            f"slide {name}: spots and counts have no barcode in common (spots: {shown[0]!r}, "
            f"counts: {shown[1]!r}); make both use the same names, with barcodes as rows"
        )
    if not inside.any():
        raise InputError(
            f"slide {name}: no spot lies on the image ({width} x {height} px); coordinates must be "
            "level-0 pixels of this image"
        )
    if len(kept) < 2:
        raise InputError(
            f"slide {name}: spots left after the join: {len(kept)}; at least 2 are needed to score "
            "a slide, leave it out"
        )
    joined = counts[kept["barcode"].to_numpy()].copy()
    joined.obsm["spatial"] = kept[["x", "y"]].to_numpy()
    for column in kept.columns.difference(["barcode", "x", "y", *FLAGS], sort=False):
        values = kept[column]
        joined.obs[column] = (values.astype(str) if values.dtype == object else values).to_numpy()
    row = {
        "slide_id": name,
        "spots_listed": len(listed),
        "without_position": len(listed) - len(spots),
        "spots_selected": len(selected),
        "counts_rows": counts.n_obs,
        "joined": len(kept),
        "outside_image": int((~inside).sum()),
        "without_counts": int((inside & ~common).sum()),
        "counts_without_spot": int((~counts.obs_names.isin(selected["barcode"])).sum()),
        "genes": counts.n_vars,
        "control_probes": counts.uns["control_probes"],
        "other_features": counts.uns["other_features"],
        "date_names": counts.uns["date_names"],
        "note": counts.uns["note"],
        "renamed_genes": counts.uns["renamed_genes"],
        "empty_spots": int((np.asarray(joined.X.sum(axis=1)).ravel() == 0).sum()),
    }
    return joined, row
