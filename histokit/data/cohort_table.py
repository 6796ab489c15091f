"""Slides listed in a cohort.csv."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.core.tables import read_table
from histokit.data.counts import read_counts
from histokit.data.counts_mex import mex_files
from histokit.data.sources import Ask, SlideSource, check_slide_id, plausible_mpp, read_spots
from histokit.data.spaceranger import detect_spaceranger, read_spaceranger
from histokit.data.technologies import technology_kind
from histokit.data.visium_hd import detect_visium_hd, read_visium_hd
from histokit.data.xenium import detect_xenium, read_xenium

COHORT_COLUMNS = ("slide_id", "cancer", "patient", "technology", "image", "spots", "counts", "mpp")

FOLDERS = (
    (detect_xenium, read_xenium),
    (detect_visium_hd, read_visium_hd),
    (detect_spaceranger, read_spaceranger),
)


def detect_cohort(source: Path) -> bool:
    """A ``cohort.csv`` or a folder with one."""
    return source.suffix == ".csv" or (source / "cohort.csv").is_file()


def read_cohort(source: Path, ask: Ask) -> list[SlideSource]:
    """Slides of a ``cohort.csv``; all paths are relative and stay inside its folder.

    A slide without counts is predicted where its spots are, one without spots on a grid. Counts
    that are a folder of Space Ranger, Visium HD or Xenium bring their own spots.

    Raises:
        InputError: a fault in the table, or in a folder that it names.
    """
    path = source if source.suffix == ".csv" else source / "cohort.csv"
    table = read_table(path, COHORT_COLUMNS, "cohort table")
    if table["slide_id"].duplicated().any():
        name = table["slide_id"][table["slide_id"].duplicated()].iloc[0]
        raise InputError(f"{path} lists the slide {name!r} twice; slide_id must be unique")
    rows = table.to_dict("records")
    wanted = [row for row in rows if ask.wants(row["slide_id"])]
    return [_cohort_slide(row, path, ask) for row in wanted]


def _cohort_slide(row: dict, path: Path, ask: Ask) -> SlideSource:
    slide_id = check_slide_id(row["slide_id"], path)
    files = {
        key: _inside(path, row[key], slide_id, key)
        for key in ("image", "spots", "counts")
        if row[key]
    }
    mpp = ask.mpp
    if row["mpp"] and not mpp:
        mpp = plausible_mpp(row["mpp"], f"{path}: slide {slide_id}: mpp")
    if "spots" not in files and "counts" in files and files["counts"].is_dir():
        return _folder_slide(row, path, files, mpp, ask)
    if "image" not in files:
        raise InputError(f"{path}: slide {slide_id} names no image; fill the column image")
    if "counts" in files and "spots" not in files:
        raise InputError(
            f"{path}: slide {slide_id} has counts and no spots, so nothing says where they were "
            "measured; fill the column spots"
        )
    return SlideSource(
        slide_id,
        row["cancer"] or ask.cancer,
        row["patient"] or slide_id,
        row["technology"],
        files["image"],
        mpp,
        ask.origin("cohort.csv" if mpp else ""),
        partial(read_spots, files["spots"], slide_id) if "spots" in files else None,
        partial(read_counts, files["counts"], slide_id) if "counts" in files else None,
        (*(p for k, p in files.items() if k != "counts"), *_count_files(files.get("counts"))),
    )


def _count_files(counts: Path | None) -> tuple[Path, ...]:
    """The files of counts, of which a folder has three."""
    if counts is None:
        return ()
    return mex_files(counts) if counts.is_dir() else (counts,)


def _folder_slide(
    row: dict, path: Path, files: dict[str, Path], mpp: float | None, ask: Ask
) -> SlideSource:
    """A slide whose counts and spots are those of a platform's folder; the row names the slide."""
    slide_id, folder = row["slide_id"], files["counts"]
    read = next((read for detect, read in FOLDERS if detect(folder)), None)
    if read is None:
        raise InputError(
            f"{path}: slide {slide_id}: the counts {row['counts']!r} are no folder of Space "
            "Ranger, Visium HD or Xenium, which alone bring their spots; fill the column spots"
        )
    own = Ask(row["cancer"] or ask.cancer, mpp=mpp, image=files.get("image"), bin_um=ask.bin_um)
    (slide,) = read(folder, own, slide_id)
    stated = row["technology"]
    if stated and technology_kind(stated) != technology_kind(slide.technology):
        raise InputError(
            f"{path}: slide {slide_id} has the technology {stated!r}, and {row['counts']!r} is a "
            f"folder of {slide.technology}; correct one of them"
        )
    slide = replace(slide, patient=row["patient"] or slide_id)
    if ask.mpp or not mpp:
        return slide
    notes = tuple(note.replace("--mpp", "the mpp of cohort.csv") for note in slide.notes)
    return replace(slide, mpp_source="cohort.csv", notes=notes)


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
    if not target.is_file() and not (key == "counts" and target.is_dir()):
        raise InputError(f"{path}: slide {slide_id}: the {key} file {relative!r} does not exist")
    return target
