"""Every layout that slides come in: how it is told, and what reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from histokit.core.errors import InputError
from histokit.data.cohort_table import detect_cohort, read_cohort
from histokit.data.hest import detect_hest, read_hest
from histokit.data.legacy import detect_legacy, read_legacy
from histokit.data.sources import Ask, SlideSource

LAYOUTS = [
    (detect_cohort, read_cohort),
    (detect_legacy, read_legacy),
    (detect_hest, read_hest),
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
        source: ``cohort.csv``, the folder that holds it, a legacy ST folder (``ST-imgs``,
            ``ST-cnts``, ``ST-spotfiles``) or a HEST folder (``patches``, ``st``, metadata table).
        cancer: OncoTree code for layouts that do not state one.
        only: ids of the slides wanted; faults of others do not matter then. All by default.
        mpp: microns per level-0 pixel of every slide, in place of what the source says.
        image: the full-resolution image, for a folder of one slide that does not hold it.
        bin_um: side in microns of the squares into which bins, cells or transcripts are pooled.

    Raises:
        InputError: no known layout, a slide that the source lacks, or a fault in its table.
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
