"""Where a slide's patches lie: at spots, at patches that others cut, or on a grid of tissue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from PIL import Image

from histokit.core.errors import InputError
from histokit.data.join import join_spots
from histokit.data.placement import selected_spots
from histokit.data.sources import SlideSource, check_spots
from histokit.extract import tissue, writer
from histokit.extract.elsewhere import Embedded
from histokit.extract.patches import image_thumbnail


@dataclass(frozen=True)
class Placed:
    """A slide's patches on its picture.

    Attributes:
        spots: counts of the patches with ``obsm["spatial"]`` (N, 2) centers; no genes where nothing
            was measured.
        row: the row of the reconciliation table.
        picture: small picture of the slide, and ``scale``: its pixels for one of level 0.
        drawn: the picture with the patches.
        said: what speaks against their belonging there, in sentences.
    """

    spots: anndata.AnnData
    row: dict
    picture: Image.Image
    scale: float
    drawn: Image.Image
    said: list[str]


def place_patches(
    slide: SlideSource, sides: list[int], embedded: Embedded | None, mask: Path | None, masked: bool
) -> Placed:
    """Find the patches of a slide.

    Args:
        slide: with or without spots.
        sides: sides of a patch in level-0 pixels; the first is that of the grid.
        embedded: patches of another program, which stand for themselves where there are no spots.
        mask: tissue made elsewhere, for a grid.
        masked: whether a grid leaves out what is no tissue.

    Raises:
        InputError: no patch, a mask for a slide with spots, or as ``join_spots``.
    """
    width, height = writer.image_size(slide)
    if slide.load_spots is not None:
        if mask is not None:
            raise InputError(
                f"slide {slide.slide_id} has spots, which say where its patches lie; --mask is for "
                "slides without, leave it out"
            )
        spots, row = join_spots(slide, width, height)
        picture, scale = writer.small_picture(slide, spots, sides[0])
        drawn, said = writer.place(slide, spots, row, picture, scale)
    else:
        picture, scale = image_thumbnail(slide.image)
        found = None
        if embedded is None:
            found, centers = tissue_grid(picture, scale, (width, height), sides[0], mask, masked)
            names = [f"{sides[0]}px-{name}" for name in tissue.patch_names(centers, sides[0])]
        else:
            centers, names = embedded.centers, [f"x{x}y{y}" for x, y in embedded.corners]
        table = pd.DataFrame({"barcode": names, "x": centers[:, 0], "y": centers[:, 1]})
        spots, row = join_spots(replace(slide, load_spots=lambda: table), width, height)
        drawn, said = tissue.draw(picture, found, centers, sides[0], scale), []
        for sentence in _tissue_said(found, masked and embedded is None):
            print(f"{slide.slide_id}: {sentence}")
        row["tissue_share"] = "" if found is None else round(found.share, 4)
    if not np.isinf(width):
        row["white_border"] = writer.border_patches(spots, max(sides), width, height)
    return Placed(spots, row, picture, scale, drawn, said)


def tissue_grid(
    picture: Image.Image,
    scale: float,
    size: tuple[float, float],
    side: int,
    mask: Path | None,
    masked: bool,
) -> tuple[tissue.TissueMask | None, np.ndarray]:
    """The tissue of a slide without spots, and the centers (N, 2) of the patches on it.

    Args:
        picture, scale: of the slide, as ``image_thumbnail`` gives them.
        size: width and height in level-0 pixels.
        side: of a patch in level-0 pixels.
        mask, masked: as ``place_patches`` takes them.
    """
    found = tissue.find_tissue(picture, mask, scale) if masked else None
    return found, tissue.grid(*size, side, found, scale)


def count_patches(slide: SlideSource, side: int, mask: Path | None, masked: bool) -> int:
    """How many patches a slide has, at most: its counts are not read, so all its spots have some.

    Args:
        slide, mask, masked: as ``place_patches`` takes them.
        side: of a patch in level-0 pixels.

    Raises:
        InputError: a slide that cannot be read.
    """
    width, height = writer.image_size(slide)
    if slide.load_spots is None:
        picture, scale = image_thumbnail(slide.image)
        return len(tissue_grid(picture, scale, (width, height), side, mask, masked)[1])
    spots = check_spots(slide.load_spots(), slide.slide_id)
    spots = spots[selected_spots(spots, f"slide {slide.slide_id}")]
    inside = spots["x"].between(0, width, "left") & spots["y"].between(0, height, "left")
    return int(inside.sum())


def _tissue_said(found: tissue.TissueMask | None, wanted: bool) -> list[str]:
    if found is None:
        return ["every patch of the image is taken (--no-mask)"] if not wanted else []
    return [f"tissue {found.share:.0%} of the picture, by {found.method}", *found.said]
