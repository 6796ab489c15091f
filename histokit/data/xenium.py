"""Xenium output folders: transcripts, or cells, pooled into squares on the aligned H&E image."""

from __future__ import annotations

import os
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import read_json
from histokit.data.alignment import (
    ANISOTROPY,
    aligned_mpp,
    find_alignment,
    read_alignment,
    visible_files,
)
from histokit.data.sources import Ask, SlideSource, check_slide_id, positive
from histokit.data.xenium_counts import Squares, XeniumRun

PIXEL_SIZE = 0.2125  # um for each DAPI pixel, the same on all instruments so far


def detect_xenium(source: Path) -> bool:
    """A folder with ``experiment.xenium``, in itself or in ``outs`` (Xenium Ranger)."""
    return any(os.path.isfile(source / place / "experiment.xenium") for place in ("", "outs"))


def read_xenium(source: Path, ask: Ask, slide_id: str | None = None) -> list[SlideSource]:
    """A Xenium output folder as one slide whose spots are squares of ``ask.bin_um``.

    The squares follow the axes of the H&E image and begin at its pixel (0, 0).

    Args:
        source: the folder, or one with ``outs``.
        ask: what the user says of it.
        slide_id: the id to use, in place of the name of the folder (above ``outs``).

    Raises:
        InputError: no H&E image or several, no alignment or several, an alignment that stretches
            one direction more than the other, an image with an orientation tag, neither
            transcripts nor cells.
    """
    if not os.path.isfile(source / "experiment.xenium"):
        source = source / "outs"
    folder = source.resolve()
    folder = folder.parent if folder.name == "outs" else folder
    slide_id = check_slide_id(slide_id or folder.name, source)
    if not ask.wants(slide_id):
        return []
    experiment = source / "experiment.xenium"
    image = _he_image(source) if ask.image is None else ask.image
    if not image.is_file():
        raise InputError(f"--image: the file {image} does not exist; check the path")
    _check_upright(image)
    aligned = find_alignment(source, image)
    alignment, notes = read_alignment(aligned), []
    stored = read_json(experiment).get("pixel_size")
    if stored is None:
        notes.append(f"{experiment.name} has no pixel_size; {PIXEL_SIZE} um is taken")
    pixel_size = positive(
        str(PIXEL_SIZE if stored is None else stored), f"{experiment}: pixel_size"
    )
    if alignment.residual is not None:
        notes.append(
            f"the {alignment.points} keypoints of {aligned.name} fit with a residual of "
            f"{alignment.residual * pixel_size:.2f} um"
        )
    mpp = ask.mpp or aligned_mpp(alignment, pixel_size, aligned)
    if abs(alignment.scale() * pixel_size / mpp - 1) > ANISOTROPY:
        notes.append(
            f"{aligned.name} makes an H&E pixel {alignment.scale() * pixel_size:.4g} um and "
            f"{mpp:.4g} is used"
        )
    files = _files(source)
    if files["transcripts"] is None:
        notes.append(
            f"{source.name} has no transcripts.parquet: cells are pooled by their centers, and "
            "transcripts outside cells are missing"
        )
    squares = Squares(XeniumRun(slide_id, **files), pixel_size, alignment, ask.bin_um / mpp)
    read = [path for path in files.values() if path is not None]
    return [
        SlideSource(
            slide_id,
            ask.cancer,
            slide_id,
            "Xenium",
            image,
            mpp,
            ask.origin("alignment matrix"),
            squares.spots,
            squares.counts,
            (image, aligned, experiment, *read),
            tuple(notes),
        )
    ]


def _he_image(source: Path) -> Path:
    found = visible_files(source, "*he_image.ome.tif*")
    if len(found) != 1:
        raise InputError(
            f"{source} holds {len(found)} images *he_image.ome.tif where one was expected; the H&E "
            "image is not made by the instrument, give it with --image"
        )
    return found[0]


def _check_upright(image: Path) -> None:
    """Refuse a tag that turns the image, for the alignment is of pixels as they are stored."""
    import pyvips

    try:
        header = pyvips.Image.new_from_file(str(image))
    except pyvips.Error:  # another library may read it, and extraction says so if none does
        return
    tag = header.get("orientation") if header.get_typeof("orientation") else 1
    if tag in range(2, 9):
        raise InputError(
            f"{image} has the orientation tag {tag}, by which it is shown turned or mirrored, and "
            "the alignment is of its stored pixels; write the image again without that tag"
        )


def _files(source: Path) -> dict[str, Path | None]:
    """Transcripts, cells and the matrix of cells; None for each that is absent."""
    cells = [source / name for name in ("cells.parquet", "cells.csv.gz")]
    found = {
        "transcripts": source / "transcripts.parquet",
        "cells": next((path for path in cells if path.is_file()), None),
        "matrix": source / "cell_feature_matrix.h5",
    }
    found = {k: p if p is not None and p.is_file() else None for k, p in found.items()}
    if found["transcripts"] is None and None in (found["cells"], found["matrix"]):
        raise InputError(
            f"{source} has neither transcripts.parquet nor cell_feature_matrix.h5 with "
            "cells.parquet; copy one of them from the run's output folder"
        )
    return found
