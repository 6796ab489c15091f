"""Readers of the known layouts: cohort.csv, legacy Spatial Transcriptomics, HEST."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from anndata.io import read_elem

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5, reading
from histokit.core.tables import read_table
from histokit.data.counts import read_counts
from histokit.data.sources import SlideSource, check_spots, read_spots

COHORT_COLUMNS = ("slide_id", "cancer", "patient", "technology", "image", "spots", "counts", "mpp")
MPP_RANGE = (0.1, 5.0)  # 80x objectives to small pictures of whole sections
ARRAY_PITCH_UM = 200.0  # legacy ST arrays (Andersson et al. 2021): one step of the array
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def detect_cohort(source: Path) -> bool:
    """A ``cohort.csv`` or a folder with one."""
    return source.suffix == ".csv" or (source / "cohort.csv").is_file()


def read_cohort(
    source: Path, cancer: str, only: frozenset[str], mpp: float | None
) -> list[SlideSource]:
    """Slides of a ``cohort.csv``; all paths are relative and stay inside its folder."""
    path = source if source.suffix == ".csv" else source / "cohort.csv"
    table = read_table(path, COHORT_COLUMNS, "cohort table")
    if table["slide_id"].duplicated().any():
        name = table["slide_id"][table["slide_id"].duplicated()].iloc[0]
        raise InputError(f"{path} lists the slide {name!r} twice; slide_id must be unique")
    rows = table.to_dict("records")
    wanted = [row for row in rows if not only or row["slide_id"] in only]
    return [_cohort_slide(row, path, cancer, mpp) for row in wanted]


def _cohort_slide(row: dict, path: Path, cancer: str, given: float | None) -> SlideSource:
    slide_id = check_slide_id(row["slide_id"], path)
    files = {key: _inside(path, row[key], slide_id, key) for key in ("image", "spots", "counts")}
    mpp = given
    if row["mpp"] and not given:
        mpp = plausible_mpp(row["mpp"], f"{path}: slide {slide_id}: mpp")
    return SlideSource(
        slide_id,
        row["cancer"] or cancer,
        row["patient"] or slide_id,
        row["technology"],
        files["image"],
        mpp,
        _origin("cohort.csv" if mpp else "", given),
        partial(read_spots, files["spots"], slide_id),
        partial(read_counts, files["counts"], slide_id),
        tuple(files.values()),
    )


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


def _origin(source: str, given: float | None) -> str:
    """Where a slide's mpp is from."""
    return "--mpp" if given else source


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


def _inside(path: Path, relative: str, slide_id: str, key: str) -> Path:
    """A path of cohort.csv, resolved; raises InputError when it is missing or leaves the folder."""
    folder = path.parent.resolve()
    with reading(folder / relative, "file"):
        try:
            target = (folder / relative).resolve()
            target.stat()
        except RuntimeError as error:  # how Python words a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
        except FileNotFoundError:
            pass
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


def read_legacy(
    source: Path, cancer: str, only: frozenset[str], mpp: float | None
) -> list[SlideSource]:
    """Legacy ST: ``ST-spotfiles/<section>_selection.tsv`` joined on ``{x}x{y}``.

    The patient is the leading letters of the section (her2st names sections B4, C2, ...). The
    resolution is measured: array steps are 200 um apart, so pixels per step give microns per pixel.
    Images lie in ``ST-imgs``, or as published in ``ST-imgs/<patient>/<section>/<any name>``.
    """
    slides = []
    for path in sorted((source / "ST-spotfiles").glob("[!.]*_selection.tsv")):
        section = check_slide_id(path.name.removesuffix("_selection.tsv"), path)
        if only and section not in only:
            continue
        patient = re.match(r"[A-Za-z]*", section).group() or section
        places = [source / "ST-imgs", source / "ST-imgs" / patient / section]
        image = _only_file(places, section, IMAGE_SUFFIXES)
        counts = _only_file([source / "ST-cnts"], section, (".tsv.gz", ".tsv"))
        slides.append(
            SlideSource(
                section,
                cancer,
                patient,
                "Spatial Transcriptomics",
                image,
                mpp or _legacy_mpp(_legacy_spots(path), path),
                _origin("array pitch 200 um", mpp),
                partial(_legacy_spots, path),
                partial(read_counts, counts, section),
                (image, path, counts),
            )
        )
    return slides


def _only_file(folders: list[Path], stem: str, suffixes: tuple[str, ...]) -> Path:
    """The file of a section: by its name in the first folder, the only one in the second."""
    found = [p for s in suffixes if (p := folders[0] / (stem + s)).is_file()]
    for folder in folders[1:]:
        if not found and folder.is_dir():
            found = [p for p in sorted(folder.glob("[!.]*")) if p.suffix.lower() in suffixes]
            if len(found) > 1:
                raise InputError(f"{folder} holds {len(found)} images; leave one of section {stem}")
    if not found:
        raise InputError(
            f"section {stem} has no file {folders[0] / stem} with one of {', '.join(suffixes)}"
            + "".join(f", and none in {folder}" for folder in folders[1:])
        )
    return found[0]


def _legacy_spots(path: Path) -> pd.DataFrame:
    table = read_table(path, ("x", "y", "pixel_x", "pixel_y", "selected"), "legacy ST spot file")
    barcodes = table["x"] + "x" + table["y"]
    renamed = table.rename(columns={"x": "array_x", "y": "array_y", "pixel_x": "x", "pixel_y": "y"})
    return renamed.assign(barcode=barcodes)


def _legacy_mpp(spots: pd.DataFrame, path: Path) -> float:
    """Microns per pixel from the mean pitch of both axes (least squares)."""
    spots = check_spots(spots, path.name)
    pitches = []
    for axis in ("x", "y"):
        with reading(path, "legacy ST spot file"):
            steps = spots[f"array_{axis}"].to_numpy(float)
        if len(steps) < 2 or np.ptp(steps) == 0:
            raise InputError(f"{path} has one row or column of spots; the pitch needs two")
        pitches.append(abs(np.polyfit(steps, spots[axis].to_numpy(float), 1)[0]))
    return ARRAY_PITCH_UM / float(np.mean(pitches))


def detect_hest(source: Path) -> bool:
    """A folder with ``patches`` and ``st``."""
    return (source / "patches").is_dir() and (source / "st").is_dir()


def read_hest(
    source: Path, cancer: str, only: frozenset[str], mpp: float | None
) -> list[SlideSource]:
    """HEST-1k: patches of 0.5 um/px in ``patches/<id>.h5``, counts in ``st/<id>.h5ad``.

    The patient is ``dataset_title`` with ``patient`` where both are known, because HEST numbers
    patients within a study; a slide without a patient stands for itself. Of several metadata
    tables the newest version is used, and said.
    """
    path, metadata = _hest_metadata(source)
    slides = []
    for file in sorted((source / "patches").glob("[!.]*.h5")):
        slide_id = check_slide_id(file.stem, file)
        if only and slide_id not in only:
            continue
        if slide_id not in metadata.index:
            raise InputError(f"{path} has no row for the slide {slide_id} of {file.parent}")
        row = metadata.loc[slide_id]
        counts = source / "st" / f"{slide_id}.h5ad"
        what = f"{path}: pixel size of {slide_id}"
        own = mpp or plausible_mpp(row["pixel_size_um_estimated"], what)
        name = row["patient"]
        patient = f"{row['dataset_title']} / {name}" if name else slide_id
        slides.append(
            SlideSource(
                slide_id,
                row["oncotree_code"] or cancer,
                patient,
                row["st_technology"],
                file,
                own,
                _origin("HEST pixel_size_um_estimated", mpp),
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


LAYOUTS = [
    (detect_cohort, read_cohort),
    (detect_legacy, read_legacy),
    (detect_hest, read_hest),
]
HEST_MPP = 0.5  # HEST's stored patches: microns per stored pixel


def read_source(
    source: str | os.PathLike,
    cancer: str = "Unknown",
    only: Sequence[str] = (),
    mpp: float | None = None,
) -> list[SlideSource]:
    """List the slides of a cohort.csv or of a folder in a known layout.

    Args:
        source: ``cohort.csv``, the folder that holds it, a legacy ST folder (``ST-imgs``,
            ``ST-cnts``, ``ST-spotfiles``) or a HEST folder (``patches``, ``st``, metadata table).
        cancer: OncoTree code for layouts that do not state one.
        only: ids of the slides wanted; faults of others do not matter then. All by default.
        mpp: microns per level-0 pixel of every slide, in place of what the source says.

    Raises:
        InputError: no known layout, a slide that the source lacks, or a fault in its table.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"the source {source} does not exist")
    for detect, read in LAYOUTS:
        if detect(source):
            slides = read(source, cancer, frozenset(only), mpp)
            if not slides and not only:
                raise InputError(f"the source {source} holds no slide")
            lost = [name for name in only if name not in {s.slide_id for s in slides}]
            if lost:
                raise InputError(f"--slides: {source} has no slide {lost[0]!r}")
            return slides
    if (source / "adata").is_dir() and (source / "patches").is_dir():
        raise InputError(
            f"{source} is a task of HEST-Bench (adata, patches), which names neither patients nor "
            "pixel sizes; give the HEST-1k folder of these slides (patches, st, metadata table)"
        )
    raise InputError(
        f"{source} has no known layout; expected a cohort.csv, a legacy ST folder (ST-imgs, "
        "ST-cnts, ST-spotfiles) or a HEST folder (patches, st, metadata table)"
    )
