"""The features that a run was trained on, made anew for slides that it never saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from histokit.core.encoder_names import split_maker
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.features import difference
from histokit.data.sources import SlideSource
from histokit.evaluate.controls import open_cohort
from histokit.evaluate.runs import Run
from histokit.extract import elsewhere
from histokit.extract.base import How
from histokit.extract.cohort import extract_slides
from histokit.extract.encoders import make_encoder
from histokit.extract.encoding import Encoding
from histokit.extract.slide import Plan, named

_SCALES = re.compile(r"-(\d+(?:\.\d+)?(?:-\d+(?:\.\d+)?)+)um$")


def plan_of(
    run: Run, place: int, slides: Sequence[SlideSource], settings: dict, machine: dict
) -> Plan:
    """How slides are extracted to be predicted by a run.

    Args:
        run: the run; its ``features`` say what the features have to be.
        place: which of its encoders, where it joins several.
        slides: the slides.
        settings: further fields of ``Plan``, such as ``mask``.
        machine: ``weights``, ``device``, ``batch_size`` and ``features_from``.

    Raises:
        InputError: the features cannot be made here, or would be others than the run's.
    """
    wanted = _own(run, place)
    name = wanted["encoder"]
    encoder, maker = split_maker(name)
    if machine["features_from"] and not maker:
        raise InputError(
            f"--features-from {machine['features_from']} gives features made elsewhere, and "
            f"{run.folder} takes those of {name}, which are extracted here; leave the option out"
        )
    if maker:
        if not machine["features_from"]:
            raise InputError(
                f"{run.folder} was trained on features that {maker} made ({name}); make those of "
                "these slides the same way and give their folder with --features-from"
            )
        made = Path(machine["features_from"])
        provenance = elsewhere.provenance_of(made, slides, encoder)
        scales, encoding = (112.0,), None
    else:
        base, several, scales = _scales(name, wanted)
        views = 8 if base.endswith("-8views") else 1
        base = base.removesuffix("-8views")
        pool = "stages" if base.endswith("-stages") else "last"
        precision = wanted.get("precision", "float32")
        how = How(pool, views, machine["device"], precision)
        if base == "hed":
            how = How()
        encoder = make_encoder(base.removesuffix("-stages"), machine["weights"], how)
        made, encoding = None, Encoding(encoder, machine["batch_size"], machine["device"])
        provenance = encoder.provenance() | named(encoder.name, scales, several, _px(wanted))
    # of joined encoders, what differs between them is recorded as text
    alike = {k: str(v) if isinstance(wanted.get(k), str) else v for k, v in provenance.items()}
    if found := difference(wanted, alike):
        key, trained, here = found
        raise InputError(
            f"{run.folder} was trained on features with {key} {trained!r} and here it would be "
            f"{here!r}; give the weights that it was trained with (--weights)"
        )
    return Plan(
        provenance,
        encoding,
        made=made,
        scales=tuple(scales),
        patch_px=_px(wanted),
        **settings,
    )


def _own(run: Run, place: int) -> dict:
    """The identity of one encoder's features, of which several are joined by `` + ``."""
    names = run.config["options"]["encoder"].split("+")
    if len(names) == 1:
        return run.config["features"]
    return {
        key: value.split(" + ")[place] if isinstance(value, str) and " + " in value else value
        for key, value in run.config["features"].items()
        if key != "dimension"
    }


def _scales(name: str, wanted: dict) -> tuple[str, bool, list[float]]:
    """The encoder without its scales, whether they are in its name, and the scales in microns."""
    if found := _SCALES.search(name):
        return name[: found.start()], True, [float(um) for um in found[1].split("-")]
    if single := re.search(r"-(\d+(?:\.\d+)?)um$", name):
        return name[: single.start()], True, [float(single[1])]
    return name, False, [float(wanted.get("patch_um") or 112.0)]


def _px(wanted: dict) -> int | None:
    return int(wanted.get("patch_px") or 0) or None


def extract_for(
    run: Run,
    slides: Sequence[SlideSource],
    out: Path,
    settings: dict,
    machine: dict,
    whole: bool = True,
) -> Cohort:
    """Extract slides with the encoders of a run; what is finished already is kept.

    Args:
        run: the run.
        slides: the slides.
        out: the folder of features.
        settings: as of ``plan_of``.
        machine: as of ``plan_of``.
        whole: as of ``extract_slides``.

    Raises:
        InputError: as ``plan_of`` and ``extract_slides``.
    """
    places = range(len(run.config["options"]["encoder"].split("+")))
    _check_grids([_own(run, place) for place in places], run, slides)
    for place in places:
        plan = plan_of(run, place, slides, settings, machine)
        extract_slides(slides, plan, out, whole=whole)
    return open_cohort(run, str(out))


def _check_grids(wanted: list[dict], run: Run, slides: Sequence[SlideSource]) -> None:
    """Refuse slides without spots where encoders would each lay a grid of their own."""
    sides = {_px(one) or _scales(one["encoder"], one)[2][0] for one in wanted}
    bare = [slide.slide_id for slide in slides if slide.load_spots is None]
    if len(sides) > 1 and bare:
        raise InputError(
            f"{run.folder} joins encoders of patches of {len(sides)} sizes, and a slide without "
            f"spots, such as {bare[0]}, has a grid of patches for each; give its spots in a "
            "cohort.csv, or train on encoders of one --patch-um"
        )
