"""Extract patch features and raw expression of every slide.

    python run_extract.py --source COHORT --out DATA
    python run_extract.py --source ../shared/data/her2st --cancer IDC --out DATA --encoder hed

    python run_extract.py --source slide.svs --out DATA

COHORT is a folder with cohort.csv (or that file), an image or a folder of images without counts, or
what a platform or a public collection gives (docs/inputs.md). Killed at any moment, the same
command goes on with the slide it was at; other encoders of the same slides go into the same DATA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import make_folder, safe_name
from histokit.core.options import option, required, run
from histokit.extract.options import SlideOptions

BEST_SCALES = "112,224,448"  # of --features best


@dataclass(frozen=True)
class Options(SlideOptions):
    """Options of run_extract.py."""

    source: str = required(
        "cohort.csv, an image, a folder of images, or a folder in a known layout (docs/inputs.md)"
    )
    out: str = required("folder to write into; made if absent")
    encoder: str = option(
        "efficientnet-lite0",
        "efficientnet-lite0 to -lite2, efficientnet-lite0-random, hed, a pathology model such as "
        "uni (docs/encoders.md), or timm:<name>",
    )
    weights: str | None = option(
        None,
        "weights of a pathology model or a timm encoder: .safetensors, a state dict, or the folder "
        "of the hub's files",
        shown="from the hub or its cache",
    )
    features: str = option(
        "",
        "best: what RESULTS.md recommends for a network of photographs, that is --pool stages "
        "--views 8 --scales 112,224,448",
        choices=("", "best"),
    )
    pool: str = option(
        "last",
        "how features are pooled: last (the network's own) or stages (means at four depths; better "
        "if it was not trained on tissue)",
        choices=("last", "stages"),
    )
    views: int = option(
        1, "8 averages over the turns and mirrors of a patch (ENCODER-8views)", choices=(1, 8)
    )
    patch_um: float = option(112.0, "side of a patch in microns", above=0, below=100000.0)
    scales: str = option(
        "",
        "several sides in microns, such as 112,224,448, instead of --patch-um: their features are "
        "set side by side and are called ENCODER-112-224-448um",
    )
    patch_px: int | None = option(
        None,
        "side of a patch in level-0 pixels, instead of microns; for slides without mpp",
        least=1,
    )
    features_from: str | None = option(
        None,
        "folder of features that TRIDENT, CLAM or HEST made, SLIDE.h5 each; --encoder names theirs",
    )
    layer: str | None = option(
        None, "layer of .h5ad files that holds the raw counts; raw is their raw.X", shown="X"
    )
    slides: list[str] = option([], "ids of the slides to extract; an empty list means all")
    batch_size: str = option(
        "auto",
        "patches encoded at a time; auto is 16 on the CPU and 256 elsewhere, halved where memory "
        "runs out",
        group="machine",
    )
    device: str = option("cpu", "torch device: cpu, cuda, cuda:1 or mps", group="machine")
    precision: str = option(
        "auto",
        "of the encoder: auto is its authors' own on CUDA, float32 elsewhere",
        choices=("auto", "float32", "bfloat16", "float16"),
        group="machine",
    )
    workers: int = option(
        1, "threads that read and resample patches ahead", group="machine", least=1, most=256
    )
    compile: bool = option(False, "compile the encoder by torch.compile", group="machine")


def main(cfg: Options) -> str:
    """Extract every slide that is not finished yet; returns what the features are called."""
    cfg = check(cfg)
    from histokit.core import distributed
    from histokit.core.memory import keep_freed_memory
    from histokit.data.layouts import read_source
    from histokit.extract.cohort import extract_slides

    distributed.check_device(cfg.device)
    keep_freed_memory()
    team = distributed.start(cfg.device)
    out = make_folder(cfg.out)
    found = read_source(cfg.source, cfg.cancer, cfg.slides, cfg.mpp, cfg.image, cfg.bin_um)
    slides = choose(found, cfg)
    plan = make_plan(cfg, slides)
    wrote, kept = extract_slides(slides, plan, out, team, whole=not cfg.slides)
    if team.first:
        print(
            f"wrote {wrote} and kept {kept} finished slides: {out}/slides.csv, expression, "
            f"thumbnails, features/{safe_name(plan.provenance['encoder'])}, reconciliation.csv"
        )
    return plan.provenance["encoder"]


def make_plan(cfg: Options, slides: list):
    """How the slides are extracted: by an encoder, or from features made elsewhere."""
    from histokit.extract.base import How
    from histokit.extract.elsewhere import provenance_of
    from histokit.extract.encoders import make_encoder
    from histokit.extract.encoding import Encoding
    from histokit.extract.slide import Plan, named

    scales = [cfg.patch_um] if not cfg.scales else parse_scales(cfg.scales)
    if cfg.features_from:
        made, encoding = Path(cfg.features_from), None
        provenance = provenance_of(made, slides, cfg.encoder)
    else:
        how = How(cfg.pool, cfg.views, cfg.device, cfg.precision, cfg.compile)
        encoder = make_encoder(cfg.encoder, cfg.weights, how)
        made, encoding = None, Encoding(encoder, cfg.batch_size, cfg.device)
        tell_magnification(cfg, scales)
        provenance = encoder.provenance() | named(
            encoder.name, scales, bool(cfg.scales), cfg.patch_px
        )
    return Plan(
        provenance,
        encoding,
        cfg.source,
        made,
        tuple(scales),
        cfg.patch_px,
        cfg.mpp,
        cfg.bin_um,
        Path(cfg.mask) if cfg.mask else None,
        cfg.no_mask,
        cfg.allow_misfit,
        cfg.workers,
    )


def check(cfg: Options) -> Options:
    """The options with --features applied; InputError where no slide can be extracted with them."""
    from histokit.extract.base import check_batch_size

    if cfg.features == "best":
        cfg = replace(cfg, pool="stages", views=8, scales=cfg.scales or BEST_SCALES)
    if cfg.scales and cfg.patch_px:
        raise InputError(
            "--scales (and --features best) are microns and --patch-px pixels; give one of them"
        )
    if cfg.features_from and (cfg.weights or cfg.features or cfg.scales):
        raise InputError(
            "--features-from takes features as they are: leave --weights, --features and --scales"
        )
    check_batch_size(cfg.batch_size)
    return cfg


def tell_magnification(cfg: Options, scales: list[float]) -> None:
    """Say it where a pathology model sees patches unlike those that it was trained on."""
    from histokit.extract.registry import REGISTRY

    if cfg.encoder not in REGISTRY or cfg.patch_px:
        return
    own = REGISTRY[cfg.encoder].patch_um
    for um in scales:
        if not 1 / 1.5 < um / own < 1.5:
            print(
                f"{cfg.encoder} was trained on patches of {own:g} um; at {um:g} um it sees tissue "
                f"{own / um:.1f} times as magnified (--patch-um {own:g} is its own)"
            )


def parse_scales(text: str) -> list[float]:
    """``112,224`` as numbers; raises InputError where one is none, not positive or repeated."""
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if not scales or len(set(scales)) < len(scales) or not all(0 < um < 1e6 for um in scales):
        raise InputError(
            f"--scales must be different sides in microns, such as 112,224,448, got {text!r}"
        )
    return scales


def choose(slides: list, cfg: Options) -> list:
    """The slides with --layer applied; says which patients may be one."""
    from histokit.audit.leaks import alike_patients

    for names in alike_patients({slide.slide_id: slide.patient for slide in slides}):
        print(f"patients {', '.join(names)} differ in writing only; are they one?")
    if cfg.layer is None:
        return slides
    if not any(slide.load_counts for slide in slides):
        raise InputError(f"--layer {cfg.layer} belongs to counts, and no slide has any; leave it")
    return [
        replace(slide, load_counts=partial(slide.load_counts, layer=cfg.layer))
        if slide.load_counts
        else slide
        for slide in slides
    ]


if __name__ == "__main__":
    run(main, Options, __doc__)
