"""Visium slides of SpatialData stores: spots, counts and the full image of a ``.zarr``."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.data.counts import read_counts
from histokit.data.placement import fit_array, nearest_pitch
from histokit.data.sources import Ask, SlideSource, check_slide_id, plausible_mpp
from histokit.data.technologies import PITCH_UM

SPOT_UM = 65.0  # diameter that Space Ranger gives a Visium spot, and readers the circles
_ROWS, _COLUMNS = 128, 224  # of the largest Visium array; odd rows use odd columns alone
_METADATA = ("zarr.json", ".zattrs", ".zgroup")  # of Zarr 3, of Zarr 2
_NO_SLIDE = re.compile(r"(hires|lowres|cytassist)_image$")
_ORIGINAL = "the output folder that the store was made from is read instead"


@dataclasses.dataclass(frozen=True)
class _Region:
    """The spots of a table that lie on one slide, and the image below them ("" for a file)."""

    store: Path
    table: str
    region: str
    image: str


def detect_spatialdata(source: Path) -> bool:
    """A Zarr store with tables, and images or shapes."""
    parts = [name for name in ("tables", "images", "shapes") if os.path.isdir(source / name)]
    return _metadata_file(source) is not None and len(parts) > 1 and parts[0] == "tables"


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / n for n in _METADATA if os.path.isfile(folder / n)), None)


def read_spatialdata(source: Path, ask: Ask) -> list[SlideSource]:
    """Every Visium slide of a SpatialData store: a table that annotates circles or has places.

    The image is ``REGION_full_image``, the only ``*_full_image``, the only image that is none of
    the small ones, or ``ask.image``. Places are taken into its level-0 pixels by the store's own
    transformations. The pixel size is measured: neighboring spots are 100 um apart.

    Raises:
        InputError: spatialdata is not installed, no store, no Visium slide in it, or no image.
    """
    sdata = _open(source, ("tables", "shapes", "images"))
    stem = source.resolve().name.removesuffix(".zarr")
    found = [(name, region) for name in sdata.tables for region in _regions(sdata, name)]
    if not found:
        raise InputError(
            f"{source} holds no Visium spots (tables: {', '.join(sdata.tables) or 'none'}; shapes: "
            f"{', '.join(sdata.shapes) or 'none'}); for Xenium and Visium HD {_ORIGINAL}"
        )
    if len(found) > 1 and ask.image is not None:
        raise InputError(
            f"{source} holds {len(found)} slides ({', '.join(region for _, region in found)}), and "
            "--image is one image; write each slide into a store of its own"
        )
    slides = []
    for table, region in found:
        slide_id = check_slide_id(stem if len(found) == 1 else f"{stem}-{region}", source)
        if ask.wants(slide_id):
            image = "" if ask.image is not None else _full_image(sdata, region, source)
            slides.append(_slide(sdata, _Region(source, table, region, image), slide_id, ask))
    return slides


def _slide(sdata, region: _Region, slide_id: str, ask: Ask) -> SlideSource:
    spots, notes = _spots(sdata, region, slide_id)
    mpp = ask.mpp or _mpp(spots, slide_id)
    circle = 2 * spots["radius"].median() * mpp if "radius" in spots else SPOT_UM
    if abs(circle / SPOT_UM - 1) > 0.03:
        notes.append(
            f"circles are {circle:.1f} um wide where those of Visium have {SPOT_UM:g}; the pixel "
            "size is taken from the distance of spots"
        )
    store = region.store
    elements = [store / "tables" / region.table]
    elements += [store / "images" / region.image] if region.image else []
    files = [path for folder in elements if (path := _metadata_file(folder)) is not None]
    shapes = store / "shapes" / region.region / "shapes.parquet"
    return SlideSource(
        slide_id,
        ask.cancer,
        slide_id,
        "Visium",
        elements[1] if region.image else ask.image,
        mpp,
        ask.origin("spot pitch 100 um"),
        partial(_load_spots, region, slide_id),
        partial(_load_counts, region, slide_id),
        (*files, *([shapes] if shapes.is_file() else [])) + (() if region.image else (ask.image,)),
        tuple(notes),
    )


@contextmanager
def _quiet(source: Path) -> Iterator[None]:
    """Name the store in whatever spatialdata raises, and keep its warnings for itself."""
    metadata = _metadata_file(source) or source
    with reading(metadata, "SpatialData store"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(source: Path, parts: tuple[str, ...]):
    try:
        import spatialdata
    except ImportError as error:
        raise InputError(
            f"{source} is a SpatialData store, which needs the package spatialdata; install it "
            "with pip install spatialdata"
        ) from error
    with _quiet(source):
        return spatialdata.read_zarr(source, selection=parts)


def _keys(table: anndata.AnnData) -> dict:
    return table.uns.get("spatialdata_attrs", {})


def _regions(sdata, name: str) -> list[str]:
    """The regions of a table that are slides of Visium spots."""
    table = sdata.tables[name]
    regions = _keys(table).get("region") or []
    return [r for r in np.atleast_1d(regions).tolist() if _is_visium(sdata, table, r)]


def _is_visium(sdata, table: anndata.AnnData, region: str) -> bool:
    """Circles, or places, that lie as Visium's do: not Visium HD's bins, not cells."""
    circles = region in sdata.shapes and "radius" in sdata.shapes[region]
    if {"array_row", "array_col"} <= set(table.obs):
        row, column = table.obs["array_row"], table.obs["array_col"]
        small = row.max() < _ROWS and column.max() < _COLUMNS
        shown = circles or (region not in sdata.shapes and "spatial" in table.obsm)
        return bool(shown and small and ((row + column) % 2 == 0).all())
    if not circles:
        return False
    shapes = sdata.shapes[region]
    width = 2 * shapes["radius"].median()
    pitch = nearest_pitch(np.column_stack([shapes.geometry.x, shapes.geometry.y]))
    return bool(np.ptp(shapes["radius"]) < 0.01 * width and 1.4 < pitch / width < 1.9)


def _full_image(sdata, region: str, source: Path) -> str:
    names = list(sdata.images)
    chosen = [name for name in names if name == f"{region}_full_image"]
    chosen = chosen or [name for name in names if name.endswith("_full_image")]
    chosen = chosen or [name for name in names if not _NO_SLIDE.search(name)]
    if len(chosen) != 1:
        raise InputError(
            f"{source} holds {len(chosen)} full images for {region} (images: "
            f"{', '.join(names) or 'none'}), and the hires and lowres ones are too small to be cut "
            "into patches; give the image that Space Ranger was given with --image"
        )
    return chosen[0]


def _load_spots(region: _Region, slide_id: str) -> pd.DataFrame:
    sdata = _open(region.store, ("tables", "shapes", "images"))
    return _spots(sdata, region, slide_id)[0]


def _spots(sdata, region: _Region, slide_id: str) -> tuple[pd.DataFrame, list[str]]:
    """Spots with their centers in pixels of the image, and what to say of them."""
    with _quiet(region.store):
        table = _rows_of(sdata.tables[region.table], region.region)
        kept = [c for c in ("in_tissue", "array_row", "array_col") if c in table.obs]
        spots = table.obs[kept].reset_index(drop=True)
        spots.insert(0, "barcode", table.obs_names.astype(str))
        if region.region not in sdata.shapes:
            places = np.asarray(table.obsm["spatial"], float)
            said = ["the store has no circles; obsm spatial is taken as pixels of the full image"]
            return spots.assign(x=places[:, 0], y=places[:, 1]), said
        shapes = sdata.shapes[region.region]
        matrix = _to_image(sdata, region)
        instances = table.obs[_keys(table)["instance_key"]].to_numpy()
        radius = shapes["radius"].reindex(instances).to_numpy(float)
        places = pd.DataFrame({"x": shapes.geometry.x, "y": shapes.geometry.y}, shapes.index)
        centers = places.reindex(instances).to_numpy(float) @ matrix[:2, :2].T + matrix[:2, 2]
    known = np.isfinite(centers).all(axis=1)
    if not known.any():
        raise InputError(
            f"slide {slide_id}: no row of the table {region.table} of {region.store} has a circle "
            f"in {region.region}; write the store again"
        )
    spots = spots.assign(x=centers[:, 0], y=centers[:, 1])
    spots["radius"] = radius * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    said = [f"{int((~known).sum()):,} rows of the table have no circle"] * (not known.all())
    return spots[known].reset_index(drop=True), said


def _rows_of(table: anndata.AnnData, region: str) -> anndata.AnnData:
    rows = table.obs[_keys(table)["region_key"]].astype(str) == region
    return table[rows.to_numpy()]


def _to_image(sdata, region: _Region) -> np.ndarray:
    """The affine map (3, 3) of the circles' own coordinates to pixels of the image.

    An image in a file is the one that the circles' own coordinates belong to.
    """
    from spatialdata.transformations import get_transformation

    if not region.image:
        return np.eye(3)
    shapes = get_transformation(sdata.shapes[region.region], get_all=True)
    image = get_transformation(sdata.images[region.image], get_all=True)
    common = [
        name for name in (region.region, "global", *shapes) if name in shapes and name in image
    ]
    if not common:
        raise InputError(
            f"{region.store}: the circles {region.region} and the image {region.image} share no "
            f"coordinate system ({', '.join(shapes)}; {', '.join(image)}); align them in the store"
        )
    forward, back = (
        kind[common[0]].to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))
        for kind in (shapes, image)
    )
    return np.linalg.inv(back) @ forward


def _mpp(spots: pd.DataFrame, slide_id: str) -> float:
    """Microns per pixel from the distance of neighboring spots."""
    fit = fit_array(spots)
    pitch = nearest_pitch(spots[["x", "y"]].to_numpy(float)) if fit is None else fit.pitch_px
    if not pitch > 0:
        raise InputError(
            f"slide {slide_id} has too few spots to measure its pixel size; give --mpp"
        )
    what = f"slide {slide_id}: the pixel size, at {pitch:.4g} pixels for 100 um,"
    return plausible_mpp(f"{PITCH_UM['visium'] / pitch:.9g}", what)


def _load_counts(region: _Region, slide_id: str, layer: str | None = None) -> anndata.AnnData:
    """Raw counts of the spots of a region, checked as every counts file is."""
    sdata = _open(region.store, ("tables",))
    table = _rows_of(sdata.tables[region.table], region.region)
    plain = anndata.AnnData(
        table.X, obs=pd.DataFrame(index=table.obs_names), var=table.var, layers=dict(table.layers)
    )
    if table.raw is not None:
        plain.raw = table.raw.to_adata()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.h5ad"
        plain.write_h5ad(path)
        try:
            return read_counts(path, slide_id, layer)
        except InputError as error:
            place = region.store / "tables" / region.table
            raise InputError(str(error).replace(str(path), str(place))) from error
