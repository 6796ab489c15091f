"""Readers of the known layouts: cohort.csv, legacy Spatial Transcriptomics, HEST."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from histokit.counts import read_counts
from histokit.errors import InputError
from histokit.patches import HEST_MPP
from histokit.slides import SlideSource, read_spots

COHORT_COLUMNS = ("slide_id", "cancer", "patient", "technology", "image", "spots", "counts", "mpp")
ARRAY_PITCH_UM = 200.0  # legacy ST arrays (Andersson et al. 2021): one step of the array
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def detect_cohort(source: Path) -> bool:
    """A ``cohort.csv`` or a folder with one."""
    return source.suffix == ".csv" or (source / "cohort.csv").is_file()


def read_cohort(source: Path, cancer: str) -> list[SlideSource]:
    """Slides of a ``cohort.csv``; all paths are relative and stay inside its folder."""
    path = source if source.suffix == ".csv" else source / "cohort.csv"
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable CSV ({error})") from error
    for column in COHORT_COLUMNS:
        if column not in table:
            raise InputError(
                f"{path} has no column {column!r}; expected {', '.join(COHORT_COLUMNS)}"
            )
    if table["slide_id"].duplicated().any():
        name = table["slide_id"][table["slide_id"].duplicated()].iloc[0]
        raise InputError(f"{path} lists the slide {name!r} twice; slide_id must be unique")
    return [_cohort_slide(row, path, cancer) for row in table.to_dict("records")]


def _cohort_slide(row: dict, path: Path, cancer: str) -> SlideSource:
    slide_id = check_slide_id(row["slide_id"], path)
    files = {key: _inside(path, row[key], slide_id, key) for key in ("image", "spots", "counts")}
    mpp = None
    if row["mpp"].strip():
        mpp = positive(row["mpp"], f"{path}: slide {slide_id}: mpp")
    return SlideSource(
        slide_id,
        row["cancer"].strip() or cancer,
        row["patient"].strip() or slide_id,
        row["technology"].strip(),
        files["image"],
        mpp,
        "cohort.csv" if mpp else "",
        partial(read_spots, files["spots"], slide_id),
        partial(read_counts, files["counts"], slide_id),
        tuple(files.values()),
    )


def check_slide_id(slide_id: str, path: Path) -> str:
    """A slide id becomes a file name: raises InputError when it cannot."""
    if not re.fullmatch(r"[\w][\w.+ -]*", slide_id):
        raise InputError(
            f"{path}: the slide_id {slide_id!r} cannot name a file; use letters, digits, - _ . +"
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


def _inside(path: Path, relative: str, slide_id: str, key: str) -> Path:
    """A path of cohort.csv, resolved; raises InputError when it is missing or leaves the folder."""
    folder = path.parent.resolve()
    target = (folder / relative).resolve()
    if Path(relative).is_absolute() or not target.is_relative_to(folder):
        raise InputError(
            f"{path}: slide {slide_id}: the {key} path {relative!r} leaves the folder of the "
            "cohort; paths must be relative and stay inside it"
        )
    if not target.is_file():
        raise InputError(f"{path}: slide {slide_id}: the {key} file {relative!r} does not exist")
    return target


def detect_legacy(source: Path) -> bool:
    """A folder with ``ST-imgs``, ``ST-cnts`` and ``ST-spotfiles``."""
    return all((source / name).is_dir() for name in ("ST-imgs", "ST-cnts", "ST-spotfiles"))


def read_legacy(source: Path, cancer: str) -> list[SlideSource]:
    """Legacy ST: ``ST-spotfiles/<section>_selection.tsv`` joined on ``{x}x{y}``.

    The patient is the leading letters of the section (her2st names sections B4, C2, ...). The
    resolution is measured: array steps are 200 um apart, so pixels per step give microns per pixel.
    """
    slides = []
    for path in sorted((source / "ST-spotfiles").glob("*_selection.tsv")):
        section = check_slide_id(path.name.removesuffix("_selection.tsv"), path)
        image = _only_file(source / "ST-imgs", section, IMAGE_SUFFIXES)
        counts = _only_file(source / "ST-cnts", section, (".tsv.gz", ".tsv"))
        patient = re.match(r"[A-Za-z]*", section).group() or section
        slides.append(
            SlideSource(
                section,
                cancer,
                patient,
                "Spatial Transcriptomics",
                image,
                _legacy_mpp(_legacy_spots(path), path),
                "array pitch 200 um",
                partial(_legacy_spots, path),
                partial(read_counts, counts, section),
                (image, path, counts),
            )
        )
    return slides


def _only_file(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    found = [
        folder / (stem + suffix) for suffix in suffixes if (folder / (stem + suffix)).is_file()
    ]
    if not found:
        raise InputError(
            f"section {stem} has no file {folder / stem} with one of {', '.join(suffixes)}"
        )
    return found[0]


def _legacy_spots(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable table ({error})") from error
    for column in ("x", "y", "pixel_x", "pixel_y", "selected"):
        if column not in table:
            raise InputError(f"{path} has no column {column!r}; a legacy ST spot file has it")
    barcodes = table["x"].astype(str) + "x" + table["y"].astype(str)
    renamed = table.rename(columns={"x": "array_x", "y": "array_y", "pixel_x": "x", "pixel_y": "y"})
    return renamed.assign(barcode=barcodes)


def _legacy_mpp(spots: pd.DataFrame, path: Path) -> float:
    """Microns per pixel from the mean pitch of both axes (least squares)."""
    pitches = []
    for axis in ("x", "y"):
        steps = spots[f"array_{axis}"].to_numpy(float)
        if np.ptp(steps) == 0:
            raise InputError(f"{path} has one row or column of spots; the pitch needs two")
        pitches.append(abs(np.polyfit(steps, spots[axis].to_numpy(float), 1)[0]))
    return ARRAY_PITCH_UM / float(np.mean(pitches))


def detect_hest(source: Path) -> bool:
    """A folder with ``patches`` and ``st``."""
    return (source / "patches").is_dir() and (source / "st").is_dir()


def read_hest(source: Path, cancer: str) -> list[SlideSource]:
    """HEST-1k: patches of 0.5 um/px in ``patches/<id>.h5``, counts in ``st/<id>.h5ad``.

    The patient is ``dataset_title`` with ``patient`` where both are known, because HEST numbers
    patients within a study; a slide without a patient stands for itself.
    """
    tables = sorted(source.glob("HEST*.csv")) + sorted(source.glob("metadata.csv"))
    if not tables:
        raise InputError(f"{source} has no metadata table; put HEST_v1_1_0.csv or the like there")
    metadata = pd.read_csv(tables[0], dtype=str, encoding="utf-8-sig", keep_default_na=False)
    needed = ("id", "oncotree_code", "patient", "dataset_title", "st_technology")
    for column in (*needed, "pixel_size_um_estimated"):
        if column not in metadata:
            raise InputError(f"{tables[0]} has no column {column!r}; use HEST's metadata table")
    metadata = metadata.drop_duplicates("id").set_index("id")
    slides = []
    for path in sorted((source / "patches").glob("*.h5")):
        slide_id = check_slide_id(path.stem, path)
        if slide_id not in metadata.index:
            raise InputError(f"{tables[0]} has no row for the slide {slide_id} of {path.parent}")
        row = metadata.loc[slide_id]
        counts = source / "st" / f"{slide_id}.h5ad"
        mpp = positive(row["pixel_size_um_estimated"], f"{tables[0]}: pixel size of {slide_id}")
        patient = f"{row['dataset_title']} / {row['patient']}" if row["patient"] else slide_id
        slides.append(
            SlideSource(
                slide_id,
                row["oncotree_code"] or cancer,
                patient,
                row["st_technology"],
                path,
                mpp,
                "HEST pixel_size_um_estimated",
                partial(_hest_spots, path, counts, mpp),
                partial(read_counts, counts, slide_id),
                (path, counts),
            )
        )
    return slides


def _hest_spots(path: Path, counts: Path, mpp: float) -> pd.DataFrame:
    """Patches as spots: centres from the counts where they are there, else from ``coords``."""
    try:
        with h5py.File(path) as file:
            key = "barcode" if "barcode" in file else "barcodes"
            barcodes = np.asarray(file[key]).ravel()
            coords = np.asarray(file["coords"], dtype=np.float64).reshape(-1, 2)
            side = file["img"].shape[1] * HEST_MPP / mpp
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not a whole HEST patch file with img, coords and barcode ({error}); "
            "copy it again"
        ) from error
    barcodes = [b.decode() if isinstance(b, bytes) else str(b) for b in barcodes]
    spots = pd.DataFrame({"barcode": barcodes, "row": np.arange(len(barcodes))})
    centres = pd.DataFrame(coords + side / 2, index=barcodes, columns=["x", "y"])
    if not centres.index.has_duplicates:
        centres.update(_hest_centres(counts))
    return spots.assign(x=centres["x"].to_numpy(), y=centres["y"].to_numpy())


def _hest_centres(counts: Path) -> pd.DataFrame:
    """Spot centres by barcode from ``obsm["spatial"]``, empty where the file has none."""
    try:
        with h5py.File(counts) as file:
            centres = (
                read_elem(file["obsm/spatial"]) if "obsm/spatial" in file else np.empty((0, 2))
            )
            names = read_elem(file["obs"]).index[: len(centres)]
    except (OSError, KeyError) as error:
        raise InputError(f"{counts} is not a whole h5ad file ({error}); copy it again") from error
    table = pd.DataFrame(np.asarray(centres)[:, :2], index=names.astype(str), columns=["x", "y"])
    return table[~table.index.duplicated()]


LAYOUTS = [
    (detect_cohort, read_cohort),
    (detect_legacy, read_legacy),
    (detect_hest, read_hest),
]
