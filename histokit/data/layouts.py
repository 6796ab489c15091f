"""Every layout that slides come in: how it is told, and what reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from histokit.core.errors import InputError
from histokit.data.cohort_table import detect_cohort, read_cohort
from histokit.data.hest import detect_hest, read_hest
from histokit.data.hest_bench import detect_bench, read_bench
from histokit.data.legacy import detect_legacy, read_legacy
from histokit.data.slide_images import detect_images, read_images
from histokit.data.sources import Ask, SlideSource
from histokit.data.spaceranger import detect_spaceranger, read_spaceranger
from histokit.data.spatialdata_store import detect_spatialdata, read_spatialdata
from histokit.data.visium_hd import detect_visium_hd, read_visium_hd
from histokit.data.xenium import detect_xenium, read_xenium

LAYOUTS = [
    (detect_cohort, read_cohort),
    (detect_legacy, read_legacy),
    (detect_hest, read_hest),
    (detect_xenium, read_xenium),
    (detect_spatialdata, read_spatialdata),
    (detect_bench, read_bench),
    (detect_visium_hd, read_visium_hd),
    (detect_spaceranger, read_spaceranger),
    (detect_images, read_images),
]


def read_source(
    source: str | os.PathLike,
    cancer: str = "Unknown",
    only: Sequence[str] = (),
    mpp: float | None = None,
    image: str | os.PathLike | None = None,
    bin_um: float = 112.0,
) -> list[SlideSource]:
    """List the slides of a cohort.csv or of a folder in a known layout.

    Args:
        source: ``cohort.csv``, the folder that holds it, an image, a folder of images, or a folder
            in one of the layouts of docs/inputs.md.
        cancer: OncoTree code for layouts that do not state one.
        only: ids of the slides wanted; faults of others do not matter then. All by default.
        mpp: microns per level-0 pixel of every slide, in place of what the source says.
        image: the full-resolution image, for a folder of one slide that does not hold it.
        bin_um: side in microns of the squares into which bins, cells or transcripts are pooled.

    Raises:
        InputError: no known layout, a slide that the source lacks, a fault in its table, or an
            image for a source that names its images itself.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"the source {source} does not exist")
    ask = Ask(cancer, frozenset(only), mpp, None if image is None else Path(image), bin_um)
    for detect, read in LAYOUTS:
        if detect(source):
            slides = read(source, ask)
            if not slides and not only:
                raise InputError(f"the source {source} holds no slide")
            lost = [name for name in only if name not in {s.slide_id for s in slides}]
            if lost:
                raise InputError(f"--slides: {source} has no slide {lost[0]!r}")
            if ask.image is not None and [s.image for s in slides] != [ask.image]:
                raise InputError(
                    f"--image gives the image of a folder of one slide, and {source} names the "
                    f"images of its slides itself ({', '.join(s.slide_id for s in slides[:3])}"
                    f"{', ...' * (len(slides) > 3)}); leave --image out"
                )
            return slides
    raise InputError(
        f"{source} has no known layout; expected a cohort.csv, an image, a folder of images, or a "
        "folder of Space Ranger (outs, spatial), Visium HD (binned_outputs), Xenium "
        "(experiment.xenium), SpatialData (.zarr), HEST-1k (st with patches or wsis), HEST-Bench "
        "(adata, patches) or legacy ST (ST-imgs, ST-cnts, ST-spotfiles)"
    )
