"""Visium HD folders, whose bins are pooled into squares of the size of a patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.core.files import file_id, reading
from histokit.data.array_scale import array_notes, fit_scale, read_scales, settle_mpp
from histokit.data.counts import read_counts
from histokit.data.sources import Ask, SlideSource, check_slide_id
from histokit.data.spaceranger import (
    absolute,
    assemble_run,
    bin_folders,
    choose_image,
    copy_notes,
    copy_scale,
    images_in,
    is_other,
    only,
)

LEAST_SHARE = 0.5  # a square with fewer of its bins in tissue is left out
_SAMPLE_UM = 32  # distance of the bins to which the array is fitted
_WHAT = "Parquet table of tissue positions"
_HINT = "positions and scale factors may be of different images"


@dataclass(frozen=True)
class Squares:
    """Squares of bins, aligned to the array.

    Attributes:
        positions: the table of all bins.
        counts: the matrix of bins.
        size: side of a bin in um.
        n: bins along a side of a square.
        rows: rows of bins on the array; ``columns`` likewise.
        affine: (3, 2) x, y in pixels from array column, array row and 1.
    """

    positions: Path
    counts: Path
    size: int
    n: int
    rows: int
    columns: int
    affine: np.ndarray


def detect_visium_hd(source: Path) -> bool:
    """A folder with ``square_XXXum`` folders, itself, in ``binned_outputs`` or in ``outs``."""
    try:
        return not is_other(source) and bool(bin_folders(source))
    except OSError:
        return False


def read_visium_hd(source: Path, ask: Ask, slide_id: str | None = None) -> list[SlideSource]:
    """One Visium HD slide, its bins pooled into squares of ``ask.bin_um``.

    Args:
        source: the run folder, its ``outs``, ``binned_outputs``, or one folder of bins.
        ask: what the user says of it.
        slide_id: the id to use, in place of the prefix of the files or the name of the folder.

    Raises:
        InputError: a side that no bins add up to, a file that is absent or there twice, no image,
            or figures for mpp that disagree.
    """
    source = absolute(source)
    size, n, folder = _choose_bins(source, ask.bin_um)
    run = assemble_run(folder / "spatial", [folder])
    name = check_slide_id(slide_id, source) if slide_id else file_id(run.name)
    if not ask.wants(name):
        return []
    found = images_in(run)
    tissue = [path for path in found if "tissue_image." in path.name]
    image = choose_image(tissue or found, ask, source)
    scales = read_scales(run.scales)
    scale = copy_scale(image, scales, run)
    bins, rows, columns = _survey(run.positions, size)
    extent = bins[["x", "y"]].max().to_numpy()
    bins[["x", "y"]] *= scale
    fit = fit_scale(bins, (size, size))
    side, diameter = scales.get("bin_size_um"), scales.get("spot_diameter_fullres")
    own = scales.get("microns_per_pixel")
    figures = {
        "microns_per_pixel of scalefactors_json.json": own and own / scale,
        "bin_size_um / spot_diameter_fullres": side and diameter and side / diameter / scale,
        f"bin pitch {size} um": fit and fit.mpp,
    }
    said = array_notes(fit, size, extent, scale)
    mpp, origin, notes = settle_mpp(figures, ask, source, "; ".join([*said, _HINT]))
    notes += [*said, *copy_notes(image, mpp, scale)]
    notes.append(
        f"bins of {size} um are pooled into squares of {n} x {n}; squares with less than "
        f"{LEAST_SHARE:.0%} of their bins in tissue, or cut by the border, are left out"
    )
    squares = Squares(
        run.positions, run.counts, size, n, rows, columns, _fit_affine(bins, run.positions)
    )
    slide = SlideSource(
        name,
        ask.cancer,
        name,
        "Visium HD",
        image,
        mpp,
        origin,
        partial(_load_spots, squares),
        partial(_load_counts, squares, name),
        (image, *run.inputs),
        tuple(notes),
    )
    return [slide]


def _choose_bins(source: Path, side_um: float) -> tuple[int, int, Path]:
    """Size of the coarsest bins of which squares consist, how many to a side, and their folder."""
    folders = bin_folders(source)
    for size in sorted(folders, reverse=True):
        n = round(side_um / size)
        if n >= 1 and abs(n * size - side_um) < 1e-6:
            return size, n, only(folders[size])
    near = [(size, max(1, round(side_um / size))) for size in sorted(folders)]
    listed = " or ".join(f"{size * n} um ({n} bins of {size} um)" for size, n in near)
    raise InputError(
        f"{source}: squares of {side_um:g} um are no whole number of bins; possible are {listed}"
    )


def _survey(path: Path, size: int) -> tuple[pd.DataFrame, int, int]:
    """A sample of bins all over the array with x, y, and the array's rows and columns.

    The table is read in batches: at 2 um it lists 11 million bins.
    """
    step, rows, columns, sample = max(1, _SAMPLE_UM // size), 0, 0, []
    wanted = ["array_row", "array_col", "pxl_col_in_fullres", "pxl_row_in_fullres"]
    with reading(path, _WHAT), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=wanted):
            bins = batch.to_pandas()
            row, column = bins["array_row"], bins["array_col"]
            rows, columns = max(rows, row.max() + 1), max(columns, column.max() + 1)
            sample.append(bins[(row % step == 0) & (column % step == 0)])
        table = pd.concat(sample, ignore_index=True).astype(np.float64)
    table.columns = ["array_row", "array_col", "x", "y"]
    return table, int(rows), int(columns)


def _fit_affine(bins: pd.DataFrame, path: Path) -> np.ndarray:
    """Least squares map (3, 2) of array column, array row and 1 to x, y."""
    design = np.column_stack([bins["array_col"], bins["array_row"], np.ones(len(bins))])
    found, _, rank, _ = np.linalg.lstsq(design, bins[["x", "y"]].to_numpy(), rcond=None)
    if rank < 3 or not np.isfinite(found).all():
        raise InputError(f"{path} does not place its bins in rows and columns; copy it again")
    return found


def _pool(squares: Squares) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Bins in tissue with the number of their square, the squares, and what was left out."""
    wanted, tissue = ["barcode", "array_row", "array_col"], [("in_tissue", "==", 1)]
    with reading(squares.positions, _WHAT):
        bins = pq.read_table(squares.positions, columns=wanted, filters=tissue).to_pandas()
    n, width = squares.n, squares.columns // squares.n + 1
    row, column = bins["array_row"].to_numpy() // n, bins["array_col"].to_numpy() // n
    codes, keys = pd.factorize(row * width + column, sort=True)
    row, column = np.divmod(keys, width)
    held = np.bincount(codes, minlength=len(keys))
    whole = (row < squares.rows // n) & (column < squares.columns // n)
    kept = whole & (held >= LEAST_SHARE * n * n)
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    table = pd.DataFrame({"array_row": row, "array_col": column, "bins": held})[kept]
    side = squares.n * squares.size
    places = zip(table["array_row"], table["array_col"], strict=True)
    table.insert(0, "barcode", [f"s_{side:03d}um_{r:05d}_{c:05d}" for r, c in places])
    said = (
        f"pooled {squares.size} um bins {n} x {n}; left out {np.sum(~whole):,} squares cut by the "
        f"border and {np.sum(whole & ~kept):,} with less than {LEAST_SHARE:.0%} in tissue"
    )
    return bins.assign(square=number[codes]), table.reset_index(drop=True), said


def _load_spots(squares: Squares) -> pd.DataFrame:
    """Squares as spots: barcode, x, y, array_row, array_col, bins in tissue and their share."""
    table = _pool(squares)[1]
    centers = table[["array_col", "array_row"]].to_numpy() * squares.n + (squares.n - 1) / 2
    x, y = (np.column_stack([centers, np.ones(len(table))]) @ squares.affine).T
    return table.assign(x=x, y=y, share=table["bins"] / squares.n**2)


def _load_counts(squares: Squares, slide_id: str) -> anndata.AnnData:
    """Counts of squares: sums over their bins in tissue."""
    counts = read_counts(squares.counts, slide_id)
    bins, table, said = _pool(squares)
    bins = bins[bins["square"] >= 0]
    place = counts.obs_names.get_indexer(bins["barcode"])
    there = place >= 0
    if not there.any():
        raise InputError(
            f"slide {slide_id}: {squares.positions} and {squares.counts} have no bin in common "
            f"(counts: {counts.obs_names[0]!r}); they are of different slides or bin sizes"
        )
    entries = (bins["square"].to_numpy()[there], place[there])
    member = sp.csr_matrix(
        (np.ones(there.sum(), np.float32), entries), shape=(len(table), counts.n_obs)
    )
    pooled = anndata.AnnData(
        sp.csr_matrix(member @ counts.X, dtype=np.float32),
        obs=pd.DataFrame(index=table["barcode"].to_numpy(str)),
        var=counts.var,
        uns=dict(counts.uns),
    )
    pooled.uns["note"] = "; ".join(filter(None, [counts.uns["note"], said]))
    return pooled
