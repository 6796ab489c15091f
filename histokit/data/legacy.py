"""Legacy Spatial Transcriptomics folders, read as published."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.core.tables import read_table
from histokit.data.counts import read_counts
from histokit.data.sources import Ask, SlideSource, check_slide_id, check_spots

ARRAY_PITCH_UM = 200.0  # legacy ST arrays (Andersson et al. 2021): one step of the array
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def detect_legacy(source: Path) -> bool:
    """A folder with ``ST-imgs``, ``ST-cnts`` and ``ST-spotfiles``."""
    return all((source / name).is_dir() for name in ("ST-imgs", "ST-cnts", "ST-spotfiles"))


def read_legacy(source: Path, ask: Ask) -> list[SlideSource]:
    """Legacy ST: ``ST-spotfiles/<section>_selection.tsv`` joined on ``{x}x{y}``.

    The patient is the leading letters of the section (her2st names sections B4, C2, ...). The
    resolution is measured: array steps are 200 um apart, so pixels per step give microns per pixel.
    Images lie in ``ST-imgs``, or as published in ``ST-imgs/<patient>/<section>/<any name>``.
    """
    slides = []
    for path in sorted((source / "ST-spotfiles").glob("[!.]*_selection.tsv")):
        section = check_slide_id(path.name.removesuffix("_selection.tsv"), path)
        if not ask.wants(section):
            continue
        patient = re.match(r"[A-Za-z]*", section).group() or section
        places = [source / "ST-imgs", source / "ST-imgs" / patient / section]
        image = _only_file(places, section, IMAGE_SUFFIXES)
        counts = _only_file([source / "ST-cnts"], section, (".tsv.gz", ".tsv"))
        slides.append(
            SlideSource(
                section,
                ask.cancer,
                patient,
                "Spatial Transcriptomics",
                image,
                ask.mpp or _legacy_mpp(_legacy_spots(path), path),
                ask.origin("array pitch 200 um"),
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
