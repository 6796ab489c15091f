"""HEST-1k as downloaded."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata.io import read_elem

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5
from histokit.core.tables import read_table
from histokit.data.counts import read_counts
from histokit.data.sources import Ask, SlideSource, check_slide_id, plausible_mpp

HEST_MPP = 0.5  # HEST's stored patches: microns per stored pixel


def detect_hest(source: Path) -> bool:
    """A folder with ``patches`` and ``st``."""
    return (source / "patches").is_dir() and (source / "st").is_dir()


def read_hest(source: Path, ask: Ask) -> list[SlideSource]:
    """HEST-1k: patches of 0.5 um/px in ``patches/<id>.h5``, counts in ``st/<id>.h5ad``.

    The patient is ``dataset_title`` with ``patient`` where both are known, because HEST numbers
    patients within a study; a slide without a patient stands for itself. Of several metadata
    tables the newest version is used, and said.
    """
    path, metadata = _hest_metadata(source)
    slides = []
    for file in sorted((source / "patches").glob("[!.]*.h5")):
        slide_id = check_slide_id(file.stem, file)
        if not ask.wants(slide_id):
            continue
        if slide_id not in metadata.index:
            raise InputError(f"{path} has no row for the slide {slide_id} of {file.parent}")
        row = metadata.loc[slide_id]
        counts = source / "st" / f"{slide_id}.h5ad"
        what = f"{path}: pixel size of {slide_id}"
        own = ask.mpp or plausible_mpp(row["pixel_size_um_estimated"], what)
        name = row["patient"]
        patient = f"{row['dataset_title']} / {name}" if name else slide_id
        slides.append(
            SlideSource(
                slide_id,
                row["oncotree_code"] or ask.cancer,
                patient,
                row["st_technology"],
                file,
                own,
                ask.origin("HEST pixel_size_um_estimated"),
                partial(_hest_spots, file, counts, own),
                partial(read_counts, counts, slide_id),
                (file, counts),
            )
        )
    return slides


def _hest_metadata(source: Path) -> tuple[Path, pd.DataFrame]:
    """HEST's metadata table by slide id: the newest version where there are several."""
    tables = [p for p in source.glob("[!.]*.csv") if re.match(r"HEST|metadata\.csv", p.name)]
    if not tables:
        raise InputError(f"{source} has no metadata table; put HEST_v1_1_0.csv or the like there")

    def version(path: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", path.stem))

    tables.sort(key=lambda path: (version(path), path.name))
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
            f"{source} holds {len(tables)} metadata tables; {tables[-1].name} is used, the newest "
            f"({changed} slides have another patient there than in {tables[-2].name})"
        )
    return tables[-1], newest


def _hest_spots(path: Path, counts: Path, mpp: float) -> pd.DataFrame:
    """Patches as spots: centers from the counts where they are there, else from ``coords``."""
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
        side = images.shape[1] * HEST_MPP / mpp
    spots = pd.DataFrame({"barcode": barcodes, "row": np.arange(len(barcodes))})
    centers = pd.DataFrame(coords + side / 2, index=barcodes, columns=["x", "y"])
    if not centers.index.has_duplicates:
        centers.update(_hest_centers(counts))
    return spots.assign(x=centers["x"].to_numpy(), y=centers["y"].to_numpy())


def _decoded(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _hest_centers(counts: Path) -> pd.DataFrame:
    """Spot centers by barcode from ``obsm["spatial"]``, empty where the file has none."""
    with open_hdf5(counts, "AnnData file") as file:
        centers = read_elem(file["obsm/spatial"]) if "obsm/spatial" in file else np.empty((0, 2))
        names = read_elem(file["obs"]).index[: len(centers)]
    table = pd.DataFrame(np.asarray(centers)[:, :2], index=names.astype(str), columns=["x", "y"])
    return table[~table.index.duplicated()]
