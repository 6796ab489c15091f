"""What extraction writes for one slide: expression, thumbnail, features; each whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
from anndata.io import write_elem
from PIL import Image

from histokit.core.errors import InputError
from histokit.core.files import atomic_path, open_hdf5, safe_name
from histokit.data.features import FEATURE_IDENTITY
from histokit.data.hest import stored_side
from histokit.data.placement import draw_overlay, fit_array, misfits, nearest_pitch, selected_spots
from histokit.data.sources import SlideSource, check_spots
from histokit.extract.images import open_image
from histokit.extract.patches import (
    image_batches,
    image_thumbnail,
    read_ahead,
    stored_batches,
    stored_thumbnail,
)

RULES = 3  # of reading; data read by older ones are extracted again
LARGEST_PX = 8192  # side of a patch; 200 MB of memory while it is resampled
LOST = 0.5  # share of spots that a join, with counts or with features, may lose
PICTURE_QUALITY = 88  # of JPEG
OUTSIDE = 0.1  # share of selected spots that may lie outside the image


def feature_path(out: Path, encoder: str, slide_id: str) -> Path:
    """Where the features of a slide lie."""
    return out / "features" / safe_name(encoder) / f"{slide_id}.h5"


def patch_side(slide: SlideSource, patch_um: float, patch_px: int | None) -> int:
    """Side of a patch in level-0 pixels; raises InputError for a slide without any scale."""
    if patch_px is not None:
        if patch_px > LARGEST_PX:
            raise InputError(f"--patch-px must be at most {LARGEST_PX:,}, got {patch_px:,}")
        return patch_px
    if slide.mpp is None:
        raise InputError(
            f"slide {slide.slide_id} has no mpp (microns per pixel), so {patch_um:g} um cannot be "
            "turned into pixels; give --mpp, --patch-px, or fill the column mpp"
        )
    side = round(patch_um / slide.mpp)
    if side > LARGEST_PX:
        raise InputError(
            f"slide {slide.slide_id}: a patch of {patch_um:g} um is {side:,} pixels of "
            f"{slide.mpp:g} um, more than the {LARGEST_PX:,} that are read at once; check the mpp"
        )
    if side < 1:
        raise InputError(
            f"slide {slide.slide_id}: a patch of {patch_um:g} um is smaller than one pixel of "
            f"{slide.mpp:g} um; check --patch-um and the mpp"
        )
    return side


def has_stored_patches(slide: SlideSource) -> bool:
    """Whether the slide comes as ready patches (HEST) and not as an image."""
    return slide.image.suffix == ".h5"


def image_size(slide: SlideSource) -> tuple[float, float]:
    """Width and height in level-0 pixels; infinite for ready patches, which all lie inside."""
    if has_stored_patches(slide):
        return np.inf, np.inf
    image = open_image(slide.image)
    return image.width, image.height


def slide_batches(
    slide: SlideSource,
    spots: anndata.AnnData,
    sides: Sequence[int],
    scales: Sequence[float],
    size: int,
    batch_size: int,
    workers: int,
) -> Iterator[np.ndarray]:
    """Yield the patches of joined spots in their order, uint8 (S, B, size, size, 3), read ahead."""
    if has_stored_patches(slide):
        rows = spots.obs["row"].to_numpy()
        stored = [stored_batches(slide.image, rows, um, size, batch_size) for um in scales]
        return read_ahead(map(np.stack, zip(*stored, strict=True)))
    centers = spots.obsm["spatial"]
    return read_ahead(image_batches(slide.image, centers, sides, size, batch_size, workers))


def border_patches(spots: anndata.AnnData, side: int, width: float, height: float) -> int:
    """Number of patches that leave the image and are filled with white there."""
    centers = spots.obsm["spatial"]
    return int(
        ((centers < side / 2) | (centers + side / 2 > np.array([width, height]))).any(axis=1).sum()
    )


def fingerprint(slide: SlideSource, settings: Sequence[str] = ()) -> str:
    """What a slide was read from: when that changes, the slide is extracted again.

    Names, sizes and times of its files, and the options that change which patches it has.
    """
    files = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in slide.inputs]
    return json.dumps([RULES, *files, *settings])


def write_hdf5(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write an HDF5 file atomically.

    The file is made in memory and written as bytes, because HDF5's own failures on a full disk
    come without an error number, some of them only when the interpreter closes the file.
    """
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        content = file.id.get_file_image()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_features(path: Path, features: np.ndarray, corners: np.ndarray, barcodes, attributes):
    """TRIDENT's and CLAM's layout with barcodes.

    ``features`` (N, D) float32, ``coords`` (N, 2) top-left corners in level-0 pixels with the side
    of a patch among their attributes, ``barcodes`` (N,).
    """

    def fill(file: h5py.File) -> None:
        file["features"], file["coords"] = features, corners
        file.create_dataset("barcodes", data=list(barcodes), dtype=h5py.string_dtype())
        side, of = int(attributes["patch_size_level0"]), {"name": path.stem}
        at_level_0 = {"patch_level": 0, "patch_size": side, "downsample": [1.0, 1.0], "overlap": 0}
        file["coords"].attrs.update(of | at_level_0 | {"patch_size_level0": side})
        file["features"].attrs.update(of | {"encoder": attributes["encoder"]})
        for key, value in attributes.items():
            file.attrs[key] = json.dumps(value) if isinstance(value, dict) else value

    write_hdf5(path, fill)


def write_expression(path: Path, spots: anndata.AnnData, source: str) -> None:
    """Raw counts of the joined spots; ``source`` is the fingerprint of the slide's files."""
    spots.uns = {"histokit_source": source}
    write_hdf5(path, lambda file: write_elem(file, "/", spots))


def expression_source(path: Path) -> str | None:
    """The fingerprint in an expression file; None where there is no such file."""
    if not path.is_file():
        return None
    with open_hdf5(path, "expression file", "delete it and run the same command again") as file:
        return file["uns/histokit_source"][()].decode()


def feature_attributes(path: Path) -> dict | None:
    """The provenance in a feature file; None where there is no such file."""
    if not path.is_file():
        return None
    with open_hdf5(path, "feature file", "delete it and run the same command again") as file:
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}


def check_same_features(folder: Path, wanted: dict) -> None:
    """Refuse to mix: every feature file of the folder must have been made the same way.

    Raises:
        InputError: naming the first file and the first difference.
    """
    for path in sorted(folder.glob("[!.]*.h5")):
        found = feature_attributes(path)
        for key in FEATURE_IDENTITY:
            if key in wanted and found.get(key) != wanted[key]:
                raise InputError(
                    f"{path} was made with {key} = {found.get(key)!r} and this run has "
                    f"{wanted[key]!r}; features of two kinds do not mix, choose another --out or "
                    f"delete {folder}"
                )


def small_picture(
    slide: SlideSource, spots: anndata.AnnData, side: int
) -> tuple[Image.Image, float]:
    """A small picture of the slide, and its pixels for one of level 0.

    ``side``, in level-0 pixels, is that of stored patches which nothing says the size of.
    """
    if has_stored_patches(slide):
        rows, centers = spots.obs["row"].to_numpy(), spots.obsm["spatial"]
        stored = stored_side(slide.image, slide.mpp) or side
        return stored_thumbnail(slide.image, rows, centers, stored)
    return image_thumbnail(slide.image)


def write_picture(path: Path, picture: Image.Image) -> None:
    """Save a picture as JPEG."""
    with atomic_path(path) as temporary:
        picture.save(temporary, quality=PICTURE_QUALITY)


def place(
    slide: SlideSource,
    spots: anndata.AnnData,
    row: dict,
    picture: Image.Image,
    scale: float,
) -> tuple[Image.Image, list[str]]:
    """Draw the spots on the slide, and say what speaks against their belonging there.

    Args:
        slide: where to read from.
        spots: the joined ones.
        row: the row of the reconciliation table; gets what was measured.
        picture: the picture of the slide.
        scale: its pixels for one of level 0.

    Returns:
        The picture with the spots, and sentences; none where all is well.
    """
    said = []
    listed = check_spots(slide.load_spots(), slide.slide_id)
    listed = listed[selected_spots(listed, slide.slide_id)].reset_index(drop=True)
    joined = listed["barcode"].isin(spots.obs_names).to_numpy()
    for lost, share, what in (
        (row["spots_selected"] - row["joined"], LOST, "are lost at the join with the counts"),
        (row["outside_image"], OUTSIDE, "lie outside the image"),
    ):
        if lost > share * row["spots_selected"]:
            said.append(f"{lost:,} of {row['spots_selected']:,} spots {what}")
    if slide.load_counts and row["empty_spots"] == row["joined"]:
        said.append(f"not one count was measured in its {row['joined']:,} spots")
    more, found = misfits(listed[joined], picture, scale, slide.mpp, slide.technology)
    row |= found
    fit = fit_array(listed[joined])
    radius = (fit.pitch_px if fit else nearest_pitch(spots.obsm["spatial"])) / 3
    return draw_overlay(picture, scale, listed, joined, slide.mpp, radius), said + more


def refuse_misfits(
    name: str, said: list[str], drawn: Image.Image, overlay: Path, allowed: bool
) -> None:
    """Stop at a slide that something speaks against, or say so and go on where that is allowed.

    The picture with the spots is left to be looked at.
    """
    if said and not allowed:
        write_picture(overlay, drawn)
        raise InputError(
            f"slide {name}: {'; '.join(said)}; look at {overlay}, correct spots, image or mpp, or "
            "go on nevertheless with --allow-misfit"
        )
    if said:
        print(f"{name}: {'; '.join(said)} (allowed by --allow-misfit)")
