"""What an extraction will take, said when the first patches of its first slide are encoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anndata
import numpy as np
import scipy.sparse as sp
from PIL import Image

from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.memory import process_memory
from histokit.data.sources import SlideSource
from histokit.extract import writer
from histokit.extract.encoding import duration
from histokit.extract.placing import Placed, count_patches
from histokit.extract.resolution import resolve

COUNTED = 8  # slides whose patches are counted; of others the mean is taken
COPIES = 2  # of a file in memory while it is written
FEATURE_BYTES = 4  # float32


@dataclass(frozen=True)
class Measured:
    """The first slide, as far as it is done.

    Attributes:
        slide_id: its name.
        patches: how many it has.
        seconds_placing: from its start to its first patch: scale, spots, counts, picture.
        seconds_per_patch: of reading and encoding, at all scales.
        feature_bytes: of one patch's features.
        count_bytes: of its counts.
        picture_bytes: of its pictures as files.
        memory: bytes that the process has held at most so far, with counts and features of this
            slide; 0 where nobody knows.
    """

    slide_id: str
    patches: int
    seconds_placing: float
    seconds_per_patch: float
    feature_bytes: int
    count_bytes: int
    picture_bytes: int
    memory: int


@dataclass(frozen=True)
class Estimate:
    """What all slides take: patches, seconds, bytes on the disk and of memory at most."""

    slides: int
    patches: int
    seconds: float
    disk: float
    memory: float

    def __str__(self) -> str:
        memory = f", {_size(self.memory)} of memory at most" if self.memory else ""
        slides = f"{self.slides} slides" if self.slides > 1 else "1 slide"
        return (
            f"{slides} to extract, about {self.patches:,} patches: about {duration(self.seconds)}, "
            f"{_size(self.disk)} on the disk{memory}"
        )


def estimate(first: Measured, patches: Sequence[int], processes: int = 1) -> Estimate:
    """What slides of so many patches take, the first one's included.

    Counts are taken to be as dense as those of the first slide.

    Args:
        first: the slide that was measured.
        patches: of each slide.
        processes: that share the slides.
    """
    slides, total, most = len(patches), sum(patches), max(patches)
    seconds = slides * first.seconds_placing + total * first.seconds_per_patch
    count_bytes = first.count_bytes / first.patches
    disk = total * (first.feature_bytes + count_bytes) + slides * first.picture_bytes
    empty = first.memory - first.patches * (first.feature_bytes + count_bytes)
    largest = most * (
        first.feature_bytes + count_bytes + COPIES * max(first.feature_bytes, count_bytes)
    )
    memory = (max(0.0, empty) + largest) * bool(first.memory)
    return Estimate(slides, total, seconds / min(processes, slides), disk, memory)


class Forecast:
    """Says once what an extraction takes.

    Args:
        slides: those that are not extracted yet, of all processes.
        plan: how, a ``histokit.extract.slide.Plan``.
        team: the processes that share the work; the first one says it.
    """

    def __init__(self, slides: Sequence[SlideSource], plan, team: Team = ALONE):
        self.slides, self.plan, self.team = slides, plan, team
        self.said = not (team.first and slides)

    def say(self, slide_id: str, placed: Placed, placing: float, width: int, pace: float) -> None:
        """Print the estimate, the first time.

        Args:
            slide_id: the slide whose first patches are encoded.
            placed: its patches.
            placing: seconds that placing took.
            width: of the features of a patch.
            pace: seconds of a patch.
        """
        if self.said:
            return
        self.said = True
        spots = placed.spots
        first = Measured(
            slide_id,
            spots.n_obs,
            placing,
            pace,
            width * FEATURE_BYTES,
            _count_bytes(spots),
            _jpeg_bytes(placed.picture) + _jpeg_bytes(placed.drawn),
            process_memory("VmHWM"),
        )
        others = [slide for slide in self.slides if slide.slide_id != slide_id]
        patches = [first.patches, *_counts(others, self.plan, first.patches)]
        print(estimate(first, patches, self.team.size), flush=True)


def _counts(slides: Sequence[SlideSource], plan, usual: int) -> list[int]:
    """Patches of slides; of those that are not counted, the mean of those that are.

    Args:
        slides: the slides.
        plan: how they are extracted.
        usual: patches where none can be counted.
    """
    chosen = {*np.linspace(0, len(slides) - 1, min(COUNTED, len(slides))).astype(int).tolist()}
    known = {i: _patches(slides[i], plan) for i in chosen}
    found = [count for count in known.values() if count is not None]
    mean = round(sum(found) / len(found)) if found else usual
    return [mean if known.get(i) is None else known[i] for i in range(len(slides))]


def _patches(slide: SlideSource, plan) -> int | None:
    """Patches of a slide; None of one that cannot be read, which its own turn will say."""
    try:
        scale = resolve(slide.image, plan.given_mpp, slide.mpp, slide.mpp_source)
        slide = replace(slide, mpp=scale.mpp, mpp_source=scale.source)
        side = writer.patch_side(slide, plan.scales[0], plan.patch_px)
        return count_patches(slide, side, plan.mask, not plan.no_mask)
    except (InputError, OSError):
        return None


def _count_bytes(spots: anndata.AnnData) -> int:
    x = spots.X
    if not sp.issparse(x):
        return 0 if x is None else x.nbytes
    return x.data.nbytes + x.indices.nbytes + x.indptr.nbytes


def _jpeg_bytes(picture: Image.Image) -> int:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=writer.PICTURE_QUALITY)
    return content.tell()


def _size(count: float) -> str:
    """``40 MB``, ``1.2 GB``; below ten megabytes with a decimal."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
