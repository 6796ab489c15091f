"""A source's slides into one folder, safely beside other processes that do the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from histokit.core.distributed import ALONE, Team
from histokit.core.errors import InputError
from histokit.core.files import folder_lock, is_locked, make_folder, remove_leftovers, safe_name
from histokit.data.sources import SlideSource
from histokit.extract import writer
from histokit.extract.forecast import Forecast
from histokit.extract.slide import Plan, extract_slide
from histokit.extract.slide_table import note_listed


def extract_slides(
    slides: Sequence[SlideSource], plan: Plan, out: Path, team: Team = ALONE, whole: bool = True
) -> tuple[int, int]:
    """Extract every slide that is not finished yet.

    Args:
        slides: of one source.
        plan: how.
        out: the folder, which may hold other slides and the features of other encoders.
        team: the processes that share the work.
        whole: whether the slides are all that the source has; what it had before is then taken out
            of the table of slides.

    Returns:
        How many slides were written, and how many were finished already.

    Raises:
        InputError: as ``extract_slide``; one mask for several slides; features of two kinds;
            another process at work there.
    """
    if plan.mask and len(slides) > 1:
        raise InputError(
            f"--mask is the tissue of one image, and there are {len(slides)} slides; name one with "
            "--slides"
        )
    features = out / "features" / safe_name(plan.provenance["encoder"])
    for folder in (out / "expression", out / "thumbnails", out / "overlays", features):
        make_folder(folder)
    with folder_lock(features) if team.first else nullcontext():
        writer.check_same_features(features, plan.provenance)
        if team.first:
            _clean(out, features)
            if plan.source:
                note_listed(out, plan.source, slides, whole)
        team.wait()
        name = plan.provenance["encoder"]
        new = [s for s in slides if not writer.feature_path(out, name, s.slide_id).is_file()]
        forecast = Forecast(new, plan, team) if plan.encoding else None
        done = [extract_slide(slide, plan, out, forecast) for slide in team.share(slides)]
        done = team.gather_shares(done)
    return sum(done), len(done) - sum(done)


def _clean(out: Path, features: Path) -> None:
    """Remove what killed processes left, and nothing that another encoder's process is writing."""
    remove_leftovers(features)
    others = [f for f in (out / "features").iterdir() if f != features and f.is_dir()]
    if not any(map(is_locked, others)):
        remove_leftovers(out)
