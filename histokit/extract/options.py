"""Options of every script that reads slides: what these are, and what is taken of them."""

from __future__ import annotations

import dataclasses

from histokit.core.options import Checked, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideOptions(Checked):
    """What run_extract.py and run_predict.py ask of slides alike."""

    mpp: float | None = option(
        None, "microns per level-0 pixel of every slide, overriding its own", above=0, below=1000
    )
    image: str | None = option(
        None, "the full-resolution image, for a folder of one slide that does not hold it"
    )
    bin_um: float = option(
        112.0,
        "side in microns of the squares into which bins, cells and transcripts of Visium HD and "
        "Xenium are pooled",
        above=0,
        below=10000.0,
    )
    mask: str | None = option(
        None, "tissue of slides without spots: a GeoJSON in level-0 pixels, or an image"
    )
    no_mask: bool = option(False, "take every patch of a slide without spots, not tissue alone")
    cancer: str = option("Unknown", "OncoTree code for sources that state none")
    allow_misfit: bool = option(
        False, "go on although spots, counts and image do not seem to belong together"
    )
