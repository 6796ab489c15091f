"""HEST-1k as downloaded: stored patches, or whole slides, with counts."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from anndata.io import read_elem

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5, reading
from histokit.core.tables import read_table
from histokit.data.counts import read_counts
from histokit.data.sources import Ask, SlideSource, check_slide_id, plausible_mpp
from histokit.data.technologies import technology_kind

HEST_MPP = 0.5  # HEST's stored patches: microns per stored pixel, where the file says nothing else
_AGREE = 0.02  # by which two pixel sizes of one slide may differ unsaid
_UNITS = {2: 25_400.0, 3: 10_000.0}  # um of an inch and of a centimeter, by ResolutionUnit


def detect_hest(source: Path) -> bool:
    """A folder with ``st``, and ``patches`` or ``wsis``."""
    images = any(os.path.isdir(source / name) for name in ("patches", "wsis"))
    return images and os.path.isdir(source / "st")


def read_hest(source: Path, ask: Ask) -> list[SlideSource]:
    """HEST-1k: ``patches/<id>.h5``, else ``wsis/<id>.tif``, with counts in ``st/<id>.h5ad``.

    Whole slides are read only where there are no stored patches. The pixel size is that of the
    metadata, because those in the files are wrong for many slides; where they differ it is said.
    The patient is ``dataset_title`` with ``patient`` where both are known, because HEST numbers
    patients within a study; a slide without a patient stands for itself. Of several metadata
    tables the newest version is used, and said.
    """
    tables = hest_tables(source)
    if not tables:
        raise InputError(f"{source} has no metadata table; put HEST_v1_1_0.csv or the like there")
    path, metadata = newest_table(tables)
    slides = []
    for file in _files(source):
        slide_id = check_slide_id(file.stem, file)
        if not ask.wants(slide_id):
            continue
        if slide_id not in metadata.index:
            raise InputError(f"{path} has no row for the slide {slide_id} of {file.parent}")
        row = metadata.loc[slide_id]
        counts = source / "st" / f"{slide_id}.h5ad"
        mpp = ask.mpp or estimated_mpp(row, path)
        spots = partial(hest_spots, file, counts, mpp)
        if file.suffix == ".tif":
            spots = partial(_slide_spots, counts, technology_kind(row["st_technology"]))
        slides.append(
            SlideSource(
                slide_id,
                row["oncotree_code"] or ask.cancer,
                hest_patient(row) or slide_id,
                row["st_technology"],
                file,
                mpp,
                ask.origin("HEST pixel_size_um_estimated"),
                spots,
                partial(read_counts, counts, slide_id),
                (file, counts),
                pixel_size_notes(file, mpp),
            )
        )
    return slides


def hest_ids(source: Path) -> list[str]:
    """Ids of the slides whose patches, or whole images, are in a download of HEST-1k."""
    return [file.stem for file in _files(source)]


def _files(source: Path) -> list[Path]:
    patches = sorted((source / "patches").glob("[!.]*.h5"))
    return patches or sorted((source / "wsis").glob("[!.]*.tif"))


def hest_patient(row: pd.Series) -> str:
    """The patient of a row of the metadata, with the study; empty where it is unknown."""
    return f"{row['dataset_title']} / {row['patient']}" if row["patient"] else ""


def estimated_mpp(row: pd.Series, path: Path) -> float:
    """Microns per level-0 pixel of a row of the metadata table ``path``."""
    what = f"{path}: pixel size of {row.name}"
    return plausible_mpp(row["pixel_size_um_estimated"], what)


def hest_tables(folder: Path) -> list[Path]:
    """Metadata tables of HEST in a folder, oldest version first."""
    tables = [p for p in folder.glob("[!.]*.csv") if re.match(r"HEST|metadata\.csv", p.name)]

    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", path.stem))

    return sorted(tables, key=lambda path: (version(path), path.name))


def newest_table(tables: list[Path]) -> tuple[Path, pd.DataFrame]:
    """The last of the metadata tables, by slide id; says how it differs from the one before."""
    needed = ("id", "oncotree_code", "patient", "dataset_title", "st_technology")
    read = [
        read_table(path, (*needed, "pixel_size_um_estimated"), "metadata table of HEST")
        .drop_duplicates("id")
        .set_index("id")
        for path in tables
    ]
    newest = read[-1]
    if len(tables) > 1:
        older = read[-2].reindex(newest.index).dropna(how="all")
        changed = int((older["patient"] != newest.loc[older.index, "patient"]).sum())
        print(
            f"{tables[-1].parent} holds {len(tables)} metadata tables; {tables[-1].name} is used, "
            f"the newest ({changed} slides have another patient there than in {tables[-2].name})"
        )
    return tables[-1], newest


def stored_mpp(path: str | os.PathLike) -> float:
    """Microns for each pixel of stored patches: as their attributes say, else 0.5.

    Raises:
        InputError: no HEST patch file, or attributes that no patch has.
    """
    return _stored_sizes(Path(path))[1]


def source_mpp(path: Path) -> float | None:
    """Microns for each level-0 pixel of the slide that patches were cut from, if they say it."""
    return _stored_sizes(path)[0]


def stored_side(path: str | os.PathLike, mpp: float | None) -> float | None:
    """Side of stored patches in level-0 pixels.

    As their attributes say, else by ``mpp``, the microns of a level-0 pixel; None without both.
    """
    level0, stored = _stored_sizes(Path(path))
    level0 = level0 or mpp
    return _stored_patches(Path(path))[2] * stored / level0 if level0 else None


def _stored_sizes(path: Path) -> tuple[float | None, float]:
    """Microns for each pixel of level 0, None where unknown, and of the stored patches."""
    with open_hdf5(path, "HEST patch file with img, coords and barcode") as file:
        attributes = file["img"].attrs
        if not {"pixel_size", "downsample"} <= set(attributes):
            return None, HEST_MPP
        level0, factor = float(attributes["pixel_size"]), float(attributes["downsample"])
    what = f"{path}: the pixel size of"
    return (
        plausible_mpp(f"{level0:.9g}", f"{what} the slide (img attribute pixel_size)"),
        plausible_mpp(f"{level0 * factor:.9g}", f"{what} the patches (pixel_size x downsample)"),
    )


def pixel_size_notes(file: Path, mpp: float) -> tuple[str, ...]:
    """What to say of patches cut by another pixel size, and of a TIFF that is ten times off."""
    stored = file.suffix == ".h5"
    own = source_mpp(file) if stored else _tag_mpp(file)
    if own is None:
        return ()
    said = f"{file.name} says {own:.4g} um per pixel and {mpp:.4g} is used"
    if stored:
        return (said,) if abs(own / mpp - 1) > _AGREE else ()
    tenth = abs(mpp / own / 10 - 1) <= 0.01
    return (f"{said}: the factor of ten by which such files are known to be wrong",) * tenth


def _tag_mpp(path: Path) -> float | None:
    """Microns per pixel by the resolution tags of a TIFF; None where they say nothing."""
    with reading(path, "TIFF image"), tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        unit = _UNITS.get(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else None
        if unit is None or "XResolution" not in tags:
            return None
        pixels, units = tags["XResolution"].value
    return unit * units / pixels if pixels else None


def hest_spots(path: Path, counts: Path, mpp: float | None) -> pd.DataFrame:
    """Stored patches as spots: ``barcode``, ``row``, centers ``x``, ``y`` in level-0 pixels.

    Centers are those of the counts where they are there, else ``coords`` with half a patch, whose
    side in level-0 pixels needs the file's own pixel size or ``mpp``.

    Raises:
        InputError: a damaged file, or centers that nothing tells.
    """
    barcodes, coords, side = _stored_patches(path)
    own, stored = _stored_sizes(path)
    level0 = own or mpp  # the file's own is what the patches were cut by
    reach = np.nan if level0 is None else side * stored / level0 / 2
    spots = pd.DataFrame({"barcode": barcodes, "row": np.arange(len(barcodes))})
    centers = pd.DataFrame(coords + reach, index=barcodes, columns=["x", "y"])
    if not centers.index.has_duplicates:
        centers.update(_hest_centers(counts))
    if level0 is None and centers.isna().to_numpy().any():
        raise InputError(
            f"{path}: {counts.name} has no place for every patch (obsm spatial), and without a "
            "pixel size the corners of the patches tell none; give --mpp"
        )
    return spots.assign(x=centers["x"].to_numpy(), y=centers["y"].to_numpy())


def corner_mpp(path: Path, counts: Path) -> float | None:
    """Microns per level-0 pixel by how far the corners of patches lie from the spots' centers.

    A corner is the center less half the patch's side, cut to whole pixels; so the result is right
    within a pixel of the side. None where centers are missing or lie unevenly.
    """
    barcodes, coords, side = _stored_patches(path)
    centers = _hest_centers(counts).reindex(barcodes).to_numpy(float)
    reach = centers - coords
    if not len(reach) or not np.isfinite(reach).all() or np.ptp(reach) > 2 or reach.min() < 1:
        return None
    return side * stored_mpp(path) / (2 * float(np.floor(np.median(reach))))


def _stored_patches(path: Path) -> tuple[list[str], np.ndarray, int]:
    """Barcodes (N,), corners (N, 2) in level-0 pixels and the side in stored pixels."""
    with open_hdf5(path, "HEST patch file with img, coords and barcode") as file:
        key = "barcode" if "barcode" in file else "barcodes"
        barcodes = [_decoded(b) for b in np.asarray(file[key]).ravel()]
        coords = np.asarray(file["coords"], dtype=np.float64).reshape(-1, 2)
        images = file["img"]
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] != 3:
            raise InputError(
                f"{path}: img is {images.shape} of {images.dtype}; HEST patches are uint8 "
                "(N, side, side, 3)"
            )
        if not len(images) == len(barcodes) == len(coords):
            raise InputError(
                f"{path} has {len(images)} patches, {len(barcodes)} barcodes and {len(coords)} "
                "coords; the file is damaged, copy it again"
            )
        return barcodes, coords, images.shape[1]


def _decoded(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _hest_centers(counts: Path) -> pd.DataFrame:
    """Spot centers by barcode from ``obsm["spatial"]``, empty where the file has none."""
    centers, obs = _places(counts)
    names = obs.index[: len(centers)]
    table = pd.DataFrame(np.asarray(centers)[:, :2], index=names.astype(str), columns=["x", "y"])
    return table[~table.index.duplicated()]


def _places(counts: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """``obsm["spatial"]``, (0, 2) where the file has none, and ``obs`` of an AnnData file."""
    with open_hdf5(counts, "AnnData file") as file:
        centers = read_elem(file["obsm/spatial"]) if "obsm/spatial" in file else np.empty((0, 2))
        return np.asarray(centers), read_elem(file["obs"])


def _slide_spots(counts: Path, kind: str) -> pd.DataFrame:
    """Spots of a whole slide from its counts, with the array's rows and columns for Visium."""
    centers, obs = _places(counts)
    if len(centers) != len(obs) or not len(obs):
        raise InputError(
            f"{counts} has no place for every spot (obsm spatial); copy the file again, or use the "
            "stored patches"
        )
    array = ["array_row", "array_col"]
    known = obs[array] if kind == "visium" and set(array) <= set(obs.columns) else obs[[]]
    spots = known.reset_index(drop=True).assign(x=centers[:, 0], y=centers[:, 1])
    return spots.assign(barcode=obs.index.astype(str))
