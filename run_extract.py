"""Extract patch features and raw expression of every slide.

    python run_extract.py --source COHORT --out DATA
    python run_extract.py --source ../shared/data/her2st --cancer IDC --out DATA --encoder hed

COHORT is a folder with cohort.csv (or that file), a legacy Spatial Transcriptomics folder, or a
HEST folder. Killed at any moment, the same command goes on with the slide it was at; other
encoders of the same slides go into the same DATA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from histokit.errors import InputError
from histokit.files import folder_lock, make_folder, safe_name
from histokit.options import option, required, run


@dataclass(frozen=True)
class Options:
    """Options of run_extract.py."""

    source: str = required("cohort.csv or a folder in a known layout")
    out: str = required("folder to write into; made if absent")
    encoder: str = option(
        "efficientnet-lite0", "efficientnet-lite0, efficientnet-lite0-random, hed, or timm:<name>"
    )
    weights: str | None = option(None, "weights of a timm encoder: .safetensors or a state dict")
    patch_um: float = option(112.0, "side of a patch in microns")
    patch_px: int | None = option(
        None, "side of a patch in level-0 pixels, instead of microns; for slides without mpp"
    )
    mpp: float | None = option(None, "microns per level-0 pixel of every slide, overriding its own")
    cancer: str = option("Unknown", "OncoTree code for sources that state none")
    slides: list[str] = option([], "ids of the slides to extract; an empty list means all")
    batch_size: int = option(16, "patches encoded at a time")


def main(cfg: Options) -> None:
    """Extract every slide that is not finished yet."""
    check(cfg)
    from histokit.encoders import make_encoder
    from histokit.extraction import check_same_features, remove_leftovers
    from histokit.slides import read_source

    out = make_folder(cfg.out)
    slides = choose(read_source(cfg.source, cfg.cancer), cfg)
    encoder = make_encoder(cfg.encoder, cfg.weights)
    features = out / "features" / safe_name(encoder.name)
    for folder in (out / "expression", out / "thumbnails", features):
        make_folder(folder)
    with folder_lock(out):
        provenance = encoder.provenance() | {
            "patch_um": 0.0 if cfg.patch_px else cfg.patch_um,
            "patch_px": cfg.patch_px or 0,
        }
        remove_leftovers(out)
        check_same_features(features, provenance)
        done = [extract(slide, encoder, provenance, cfg, out) for slide in slides]
    print(
        f"wrote {sum(done)} and kept {len(done) - sum(done)} finished slides: {out}/slides.csv, "
        f"expression, thumbnails, {features.relative_to(out)}, reconciliation.csv"
    )


def check(cfg: Options) -> None:
    """Raise InputError for options that no slide can be extracted with."""
    for name in ("patch_um", "patch_px", "mpp", "batch_size"):
        value = getattr(cfg, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be positive, got {value}")


def choose(slides: list, cfg: Options) -> list:
    """The slides asked for, with --mpp applied."""
    known = {slide.slide_id for slide in slides}
    for name in cfg.slides:
        if name not in known:
            raise InputError(f"--slides names {name!r}, which {cfg.source} has not")
    chosen = [s for s in slides if not cfg.slides or s.slide_id in cfg.slides]
    if cfg.mpp is not None:
        chosen = [replace(slide, mpp=cfg.mpp, mpp_source="--mpp") for slide in chosen]
    return chosen


def extract(slide, encoder, provenance: dict, cfg: Options, out: Path) -> bool:
    """Extract one slide; returns False when it was finished already."""
    import numpy as np

    from histokit import extraction, patches
    from histokit.progress import progress_bar
    from histokit.slides import join_spots

    name = slide.slide_id
    side = extraction.patch_side(slide, cfg.patch_um, cfg.patch_px)
    source = extraction.fingerprint(slide)
    expression = out / "expression" / f"{name}.h5ad"
    thumbnail = out / "thumbnails" / f"{name}.jpg"
    target = extraction.feature_path(out, encoder.name, name)
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
    }
    listed = name in extraction.table_rows(table) and thumbnail.is_file()
    found = extraction.feature_attributes(target) or {}
    same = all(found.get(key) == attributes[key] for key in ("mpp", "source"))
    if listed and same and extraction.expression_source(expression) == source:
        extraction.upsert_row(table, described)
        print(f"{name}: finished already")
        return False
    width, height = extraction.image_size(slide)
    spots, row = join_spots(slide, width, height)
    row["white_border"] = extraction.border_patches(spots, side, width, height)
    print(
        f"{name}: {row['spots_listed']} spots listed, {row['spots_selected']} selected, "
        f"{row['counts_rows']} with counts, {row['joined']} joined; dropped "
        f"{row['outside_image']} outside the image, {row['without_counts']} without counts, "
        f"{row['counts_without_spot']} counts without spot, {row['control_probes']} control probes"
    )
    features = np.empty((spots.n_obs, encoder.dim), dtype=np.float32)
    batches = extraction.slide_batches(
        slide, spots, side, cfg.patch_um, encoder.size, cfg.batch_size
    )
    with progress_bar(total=spots.n_obs, unit="patch", desc=name) as progress:
        done = 0
        for batch in batches:
            features[done : done + len(batch)] = encoder.encode(batch)
            done += len(batch)
            progress.update(len(batch))
    if not np.isfinite(features).all():
        raise InputError(f"slide {name}: {encoder.name} gave features that are not finite")
    scale = extraction.write_thumbnail(thumbnail, slide, spots, side)
    corners = patches.top_left(spots.obsm["spatial"], side)
    extraction.write_expression(expression, spots, source)
    extraction.upsert_row(out / "reconciliation.csv", row)
    sizes = {"num_spots": spots.n_obs, "num_genes": spots.n_vars, "thumbnail_scale": scale}
    extraction.upsert_row(table, described | sizes)
    extraction.write_features(target, features, corners, spots.obs_names, attributes)
    return True


if __name__ == "__main__":
    run(main, Options, __doc__)
