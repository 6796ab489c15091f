"""Extract patch features and raw expression of every slide.

    python run_extract.py --source COHORT --out DATA
    python run_extract.py --source ../shared/data/her2st --cancer IDC --out DATA --encoder hed

COHORT is a folder with cohort.csv (or that file), a legacy Spatial Transcriptomics folder, or a
HEST folder. Killed at any moment, the same command goes on with the slide it was at; other
encoders of the same slides go into the same DATA.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from histokit.core.errors import InputError
from histokit.core.files import folder_lock, is_locked, make_folder, remove_leftovers, safe_name
from histokit.core.options import Checked, option, required, run

BEST_SCALES = "112,224,448"  # of --features best


@dataclass(frozen=True)
class Options(Checked):
    """Options of run_extract.py."""

    source: str = required("cohort.csv or a folder in a known layout")
    out: str = required("folder to write into; made if absent")
    encoder: str = option(
        "efficientnet-lite0",
        "efficientnet-lite0, efficientnet-lite0-random, hed, a pathology model such as uni "
        "(docs/encoders.md), or timm:<name>",
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
    mpp: float | None = option(
        None, "microns per level-0 pixel of every slide, overriding its own", above=0, below=1000
    )
    cancer: str = option("Unknown", "OncoTree code for sources that state none")
    layer: str | None = option(
        None, "layer of .h5ad files that holds the raw counts; raw is their raw.X", shown="X"
    )
    slides: list[str] = option([], "ids of the slides to extract; an empty list means all")
    allow_misfit: bool = option(
        False,
        "extract slides although spots, counts and image do not seem to belong together",
    )
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


def main(cfg: Options) -> None:
    """Extract every slide that is not finished yet."""
    cfg = check(cfg)
    from histokit.core import distributed
    from histokit.core.memory import keep_freed_memory
    from histokit.data.layouts import read_source
    from histokit.extract import writer
    from histokit.extract.base import How
    from histokit.extract.encoders import make_encoder
    from histokit.extract.encoding import Encoding

    distributed.check_device(cfg.device)
    keep_freed_memory()
    team = distributed.start(cfg.device)
    out = make_folder(cfg.out)
    slides = choose(read_source(cfg.source, cfg.cancer, cfg.slides, cfg.mpp), cfg)
    how = How(cfg.pool, cfg.views, cfg.device, cfg.precision, cfg.compile)
    encoder = make_encoder(cfg.encoder, cfg.weights, how)
    scales = [cfg.patch_um] if not cfg.scales else parse_scales(cfg.scales)
    tell_magnification(cfg, scales)
    name, patch_um = encoder.name, scales[0]
    if cfg.scales:
        name += f"-{'-'.join(f'{um:g}' for um in scales)}um"
        patch_um = ", ".join(f"{um:g}" for um in scales)
    features = out / "features" / safe_name(name)
    for folder in (out / "expression", out / "thumbnails", out / "overlays", features):
        make_folder(folder)
    with folder_lock(features) if team.first else nullcontext():
        provenance = encoder.provenance() | {
            "encoder": name,
            "patch_um": 0.0 if cfg.patch_px else patch_um,
            "patch_px": cfg.patch_px or 0,
        }
        writer.check_same_features(features, provenance)
        if team.first:
            clean(out, features)
            writer.note_listed(out, cfg.source, slides, whole=not cfg.slides)
        team.wait()
        own, encoding = team.share(slides), Encoding(encoder, cfg.batch_size, cfg.device)
        done = [extract(slide, encoding, scales, provenance, cfg, out) for slide in own]
        done = team.gather_shares(done)
    if team.first:
        print(
            f"wrote {sum(done)} and kept {len(done) - sum(done)} finished slides: "
            f"{out}/slides.csv, expression, thumbnails, {features.relative_to(out)}, "
            "reconciliation.csv"
        )


def check(cfg: Options) -> Options:
    """The options with --features applied; InputError where no slide can be extracted with them."""
    if cfg.features == "best":
        cfg = replace(cfg, pool="stages", views=8, scales=cfg.scales or BEST_SCALES)
    if cfg.scales and cfg.patch_px:
        raise InputError(
            "--scales (and --features best) are microns and --patch-px pixels; give one of them"
        )
    if cfg.batch_size != "auto" and not (cfg.batch_size.isdecimal() and int(cfg.batch_size)):
        raise InputError(f"--batch-size must be auto or a number of patches, got {cfg.batch_size}")
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


def clean(out: Path, features: Path) -> None:
    """Remove what killed processes left, and nothing that another encoder's process is writing."""
    remove_leftovers(features)
    others = [f for f in (out / "features").iterdir() if f != features and f.is_dir()]
    if not any(map(is_locked, others)):
        remove_leftovers(out)


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
    return [
        replace(slide, load_counts=partial(slide.load_counts, layer=cfg.layer)) for slide in slides
    ]


def extract(
    slide, encoding, scales: list[float], provenance: dict, cfg: Options, out: Path
) -> bool:
    """Extract one slide; returns False when it was finished already."""
    import numpy as np

    from histokit.core.progress import progress_bar
    from histokit.data.join import join_spots
    from histokit.extract import writer
    from histokit.extract.encoding import duration
    from histokit.extract.patches import PixelStatistics, top_left

    name = slide.slide_id
    sides = [writer.patch_side(slide, um, cfg.patch_px) for um in scales]
    side = sides[0]
    source = writer.fingerprint(slide)
    expression = out / "expression" / f"{name}.h5ad"
    thumbnail = out / "thumbnails" / f"{name}.jpg"
    target = writer.feature_path(out, provenance["encoder"], name)
    attributes = provenance | {
        "mpp": slide.mpp or 0.0,
        "patch_size_level0": side,
        "source": source,
    }
    table = out / "slides.csv"
    described = {
        "slide_id": name,
        "cancer": slide.cancer,
        "patient": slide.patient,
        "technology": slide.technology,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "image": str(slide.image),
        "source": str(Path(cfg.source).resolve()),
    }
    listed = name in writer.table_rows(table) and thumbnail.is_file()
    found = writer.feature_attributes(target) or {}
    same = all(found.get(key) == attributes[key] for key in ("mpp", "source"))
    if listed and same and writer.expression_source(expression) == source:
        writer.upsert_row(table, described)
        print(f"{name}: finished already")
        return False
    width, height = writer.image_size(slide)
    spots, row = join_spots(slide, width, height)
    picture, scale = writer.small_picture(slide, spots, side)
    overlay = out / "overlays" / f"{name}.jpg"
    drawn, said = writer.place(slide, spots, row, picture, scale)
    row["white_border"] = writer.border_patches(spots, max(sides), width, height)
    print(
        f"{name}: {row['spots_listed']} spots listed, {row['spots_selected']} selected, "
        f"{row['counts_rows']} with counts, {row['joined']} joined; dropped "
        f"{row['outside_image']} outside the image, {row['without_counts']} without counts, "
        f"{row['counts_without_spot']} counts without spot, {row['control_probes']} control probes"
        + f", {row['date_names']} names that are dates" * (row["date_names"] > 0)
        + f"; {row['note']}" * bool(row["note"])
    )
    writer.refuse_misfits(name, said, drawn, overlay, cfg.allow_misfit)
    seen, encoder, count = PixelStatistics(), encoding.encoder, spots.n_obs
    wait = encoding.seconds_per_patch * count * len(scales)
    features = np.empty((count, len(scales) * encoder.dim), dtype=np.float32)
    print(f"{name}: {count} patches, about {duration(wait)} and {features.nbytes / 1e6:.0f} MB")
    batches = writer.slide_batches(
        slide, spots, sides, scales, encoder.size, encoding.batch_size, cfg.workers
    )
    waited, worked = encoding.waited, encoding.worked
    with progress_bar(total=count, unit="patch", desc=name) as progress:
        done = 0
        for batch, encoded in encoding.scales(batches):
            seen.add(batch[0])
            features[done : done + len(encoded)] = encoded
            done += len(encoded)
            progress.update(len(encoded))
    waited, worked = encoding.waited - waited, encoding.worked - worked
    print(
        f"{name}: {count / max(1e-9, waited + worked):.1f} patches a second, "
        f"{waited / max(1e-9, waited + worked):.0%} of the time waiting for the image"
    )
    row |= seen.shares()
    if said := seen.findings():
        print(f"{name}: {'; '.join(said)}")
    if not np.isfinite(features).all():
        raise InputError(f"slide {name}: {encoder.name} gave features that are not finite")
    faults = seen.faults() or encoding.faults(features, len(scales))
    writer.refuse_misfits(name, faults, drawn, overlay, cfg.allow_misfit)
    writer.write_picture(overlay, drawn)
    print(f"{name}: spots drawn on the image: {overlay}")
    writer.write_picture(thumbnail, picture)
    corners = top_left(spots.obsm["spatial"], side)
    writer.write_expression(expression, spots, source)
    writer.upsert_row(out / "reconciliation.csv", row)
    sizes = {"num_spots": spots.n_obs, "num_genes": spots.n_vars, "thumbnail_scale": scale}
    writer.upsert_row(table, described | sizes)
    writer.write_features(target, features, corners, spots.obs_names, attributes)
    return True


if __name__ == "__main__":
    run(main, Options, __doc__)
