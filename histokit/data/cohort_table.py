"""Slides listed in a cohort.csv."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.core.tables import read_table
from histokit.data.counts import read_counts
from histokit.data.sources import Ask, SlideSource, check_slide_id, plausible_mpp, read_spots

COHORT_COLUMNS = ("slide_id", "cancer", "patient", "technology", "image", "spots", "counts", "mpp")


def detect_cohort(source: Path) -> bool:
    """A ``cohort.csv`` or a folder with one."""
    return source.suffix == ".csv" or (source / "cohort.csv").is_file()


def read_cohort(source: Path, ask: Ask) -> list[SlideSource]:
    """Slides of a ``cohort.csv``; all paths are relative and stay inside its folder.

    A slide without counts is predicted where its spots are, one without spots on a grid.
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
        if row[key] or key == "image"
    }
    if "counts" in files and "spots" not in files:
        raise InputError(
            f"{path}: slide {slide_id} has counts and no spots, so nothing says where they were "
            "measured; fill the column spots"
        )
    mpp = ask.mpp
    if row["mpp"] and not mpp:
        mpp = plausible_mpp(row["mpp"], f"{path}: slide {slide_id}: mpp")
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
        tuple(files.values()),
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
