"""Task folders of HEST-Bench as downloaded: stored patches and counts of the slides of a task."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pandas as pd
from anndata.io import read_elem

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5
from histokit.data.counts import read_counts
from histokit.data.hest import (
    corner_mpp,
    estimated_mpp,
    hest_patient,
    hest_spots,
    hest_tables,
    newest_table,
    pixel_size_notes,
    source_mpp,
)
from histokit.data.sources import Ask, SlideSource, check_slide_id


def detect_bench(source: Path) -> bool:
    """A folder with ``adata`` and ``patches``, or a folder of such folders."""
    return _is_task(source) or bool(_tasks(source))


def _is_task(folder: Path) -> bool:
    return all(os.path.isdir(folder / name) for name in ("adata", "patches"))


def _tasks(source: Path) -> list[Path]:
    if not os.path.isdir(source):
        return []
    return [folder for folder in sorted(source.glob("[!.]*")) if _is_task(folder)]


def read_bench(source: Path, ask: Ask) -> list[SlideSource]:
    """A task of HEST-Bench: ``patches/<id>.h5`` with counts in ``adata/<id>.h5ad``.

    The task says neither patients nor cancers, and not always pixel sizes; they are taken from
    the metadata table of HEST-1k that lies in the folder or in one above.

    Raises:
        InputError: a folder of several tasks.
    """
    if not _is_task(source):
        names = [folder.name for folder in _tasks(source)]
        raise InputError(
            f"{source} holds {len(names)} tasks of HEST-Bench ({', '.join(names)}), each with "
            f"slides and splits of its own; give one of them, such as {source / names[0]}"
        )
    path, metadata = _metadata(source)
    slides = []
    for file in sorted((source / "patches").glob("[!.]*.h5")):
        slide_id = check_slide_id(file.stem, file)
        if not ask.wants(slide_id):
            continue
        row = metadata.loc[slide_id] if slide_id in metadata.index else None
        counts = source / "adata" / f"{slide_id}.h5ad"
        patient = (hest_patient(row) if row is not None else "") or _own_patient(counts)
        mpp, origin = _mpp(file, counts, row, path)
        mpp = ask.mpp or mpp
        notes = [f"metadata of {path} is used"] * (row is not None)
        notes += pixel_size_notes(file, mpp) if mpp else []
        if not patient:
            notes.append(
                f"its patient is unknown, so it stands for itself; the splits in "
                f"{source / 'splits'} are by patient"
            )
        slides.append(
            SlideSource(
                slide_id,
                ask.cancer if row is None else row["oncotree_code"] or ask.cancer,
                patient or slide_id,
                "Unknown" if row is None else row["st_technology"],
                file,
                mpp,
                ask.origin(origin),
                partial(hest_spots, file, counts, mpp),
                partial(read_counts, counts, slide_id),
                (file, counts),
                tuple(notes),
            )
        )
    return slides


def _metadata(source: Path) -> tuple[Path | None, pd.DataFrame]:
    """The metadata table of HEST-1k in the folder or the nearest one above; empty without."""
    for folder in (source, *source.resolve().parents):
        tables = [path for path in hest_tables(folder) if path.name.startswith("HEST")]
        if tables:
            return newest_table(tables)
    return None, pd.DataFrame()


def _own_patient(counts: Path) -> str:
    """The patient that the counts name for all of their spots; empty where they name none."""
    with open_hdf5(counts, "AnnData file") as file:
        if "patient" not in file["obs"]:
            return ""
        names = pd.Series(read_elem(file["obs/patient"])).dropna().astype(str).unique()
    return names[0].strip() if len(names) == 1 else ""


def _mpp(
    file: Path, counts: Path, row: pd.Series | None, path: Path | None
) -> tuple[float | None, str]:
    """Microns per level-0 pixel and where it is from; None and "" where nothing tells it."""
    if (own := source_mpp(file)) is not None:
        return own, "HEST pixel_size of the patches"
    if row is not None and row["pixel_size_um_estimated"]:
        return estimated_mpp(row, path), "HEST pixel_size_um_estimated"
    measured = corner_mpp(file, counts)
    return measured, "patch corners and spot centers" if measured else ""
