"""One slide through extraction: its scale, its patches, their features, all written or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anndata
import numpy as np

from histokit.core.errors import InputError
from histokit.core.progress import progress_bar
from histokit.data.sources import SlideSource
from histokit.data.technologies import POOLED, technology_kind
from histokit.extract import elsewhere, slide_table, writer
from histokit.extract.encoding import Encoding, duration
from histokit.extract.forecast import Forecast
from histokit.extract.patches import PixelStatistics, stored_microns, top_left
from histokit.extract.placing import place_patches
from histokit.extract.resolution import resolve

FIRST_BATCHES = 2  # by which the pace of an extraction is judged


@dataclass(frozen=True)
class Plan:
    """How slides are extracted.

    Attributes:
        provenance: what ``writer.check_same_features`` holds features to, with the encoder's name.
        encoding: the encoder at work; None where ``made`` gives the features.
        source: where the slides are listed, as given; empty for slides given one by one.
        made: a folder of features that another program made.
        scales: sides of a patch in microns.
        patch_px: side in level-0 pixels instead.
        given_mpp: microns per pixel that the user gave for every slide.
        bin_um: side of the squares into which bins, cells and transcripts are pooled.
        mask: tissue made elsewhere, for slides without spots.
        no_mask: take every patch of the image.
        allow_misfit: go on where spots, counts and image do not seem to belong together.
        workers: threads that read patches.
    """

    provenance: dict
    encoding: Encoding | None
    source: str = ""
    made: Path | None = None
    scales: tuple[float, ...] = (112.0,)
    patch_px: int | None = None
    given_mpp: float | None = None
    bin_um: float = 112.0
    mask: Path | None = None
    no_mask: bool = False
    allow_misfit: bool = False
    workers: int = 1

    def __post_init__(self):
        if self.mask and self.no_mask:
            raise InputError(
                "--mask gives the tissue and --no-mask takes everything; give one of them"
            )
        if self.mask and not self.mask.is_file():
            raise InputError(
                f"--mask {self.mask} does not exist; a GeoJSON or an image was expected"
            )


def named(encoder: str, scales: Sequence[float], several: bool, patch_px: int | None) -> dict:
    """What an encoder's features are called, and the sides of their patches.

    Args:
        encoder: the encoder's own name.
        scales: sides in microns.
        several: whether the sides are part of the name.
        patch_px: the side in level-0 pixels, in place of microns.
    """
    patch_um = scales[0]
    if several:
        encoder += f"-{'-'.join(f'{um:g}' for um in scales)}um"
        patch_um = ", ".join(f"{um:g}" for um in scales)
    return {
        "encoder": encoder,
        "patch_um": 0.0 if patch_px else patch_um,
        "patch_px": patch_px or 0,
    }


def extract_slide(
    slide: SlideSource, plan: Plan, out: Path, forecast: Forecast | None = None
) -> bool:
    """Extract one slide into a folder; False where it was finished already.

    Args:
        slide: the slide.
        plan: how.
        out: the folder.
        forecast: what says how long all slides take, once the first patches are encoded.

    Raises:
        InputError: the slide cannot be read, its parts do not belong together, or its features are
            none of tissue.
    """
    name, start = slide.slide_id, time.perf_counter()
    scale = resolve(slide.image, plan.given_mpp, slide.mpp, slide.mpp_source)
    slide = replace(slide, mpp=scale.mpp, mpp_source=scale.source)
    embedded = elsewhere.of_slide(slide, plan.made, plan.patch_px) if plan.made else None
    if embedded is not None and embedded.side:
        sides = [embedded.side]
    else:
        sides = [writer.patch_side(slide, um, plan.patch_px) for um in plan.scales]
    source = writer.fingerprint(slide, _settings(slide, plan, sides[0]))
    target = writer.feature_path(out, plan.provenance["encoder"], name)
    attributes = plan.provenance | {
        "mpp": slide.mpp or 0.0,
        "patch_size_level0": sides[0],
        "source": source,
    }
    described = {
        "slide_id": name,
        "cancer": slide.cancer,
        "patient": slide.patient,
        "technology": slide.technology,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mpp_rejected": "; ".join(scale.rejected),
        "image": str(slide.image),
        "source": str(Path(plan.source).resolve()) if plan.source else "",
    }
    listed = slide_table.table_rows(out / "slides.csv").get(name)
    if listed is not None and _is_finished(out, name, target, attributes):
        slide_table.upsert_row(out / "slides.csv", described)
        print(f"{name}: finished already")
        return False
    known = (listed or {}).get("source")
    if known and known != described["source"]:
        print(f"{name}: takes the place of the slide of this name that was read from {known}")
    for said in (*_scale_said(scale), *slide.notes):
        print(f"{name}: {said}")
    placed = place_patches(slide, sides, embedded, plan.mask, not plan.no_mask)
    spots, row, overlay = placed.spots, placed.row, out / "overlays" / f"{name}.jpg"
    print(f"{name}: {_counted(row) if slide.load_counts else _bare(slide, row)}")
    writer.refuse_misfits(name, placed.said, placed.drawn, overlay, plan.allow_misfit)
    if embedded is None:
        placing = time.perf_counter() - start
        say = partial(forecast.say, name, placed, placing) if forecast else _say_nothing
        features, faults = _encode(slide, plan, spots, sides, row, say)
        kept, corners = np.ones(spots.n_obs, bool), top_left(spots.obsm["spatial"], sides[0])
    else:
        features, corners, kept, faults = elsewhere.take(slide, spots, embedded, row)
        attributes |= {"made_by": embedded.maker, "about": embedded.about}
    writer.refuse_misfits(name, faults, placed.drawn, overlay, plan.allow_misfit)
    writer.write_picture(overlay, placed.drawn)
    print(f"{name}: patches drawn on the image: {overlay}")
    writer.write_picture(out / "thumbnails" / f"{name}.jpg", placed.picture)
    writer.write_expression(out / "expression" / f"{name}.h5ad", spots, source)
    slide_table.upsert_row(out / "reconciliation.csv", row)
    sizes = {"num_spots": spots.n_obs, "num_genes": spots.n_vars, "thumbnail_scale": placed.scale}
    slide_table.upsert_row(out / "slides.csv", described | sizes)
    writer.write_features(target, features, corners, spots.obs_names[kept], attributes)
    return True


def _settings(slide: SlideSource, plan: Plan, side: int) -> list[str]:
    """Options that change which patches a slide has."""
    if slide.load_spots is None and plan.made is None:
        chosen = "no mask" if plan.no_mask else "tissue"
        if plan.mask:
            chosen = f"{plan.mask.resolve()} {plan.mask.stat().st_mtime_ns}"
        return [f"grid of {side} px", chosen]
    if technology_kind(slide.technology) in POOLED:
        return [f"squares of {plan.bin_um:g} um"]
    return []


def _is_finished(out: Path, name: str, target: Path, attributes: dict) -> bool:
    found = writer.feature_attributes(target) or {}
    return (
        (out / "thumbnails" / f"{name}.jpg").is_file()
        and all(found.get(key) == attributes[key] for key in ("mpp", "source"))
        and writer.expression_source(out / "expression" / f"{name}.h5ad") == attributes["source"]
    )


def _scale_said(scale) -> list[str]:
    said = [f"{scale.mpp:.4g} um per pixel, by {scale.source}"] if scale.mpp else []
    return said + [f"not used: {value}" for value in scale.rejected]


def _counted(row: dict) -> str:
    """The row of the reconciliation table in words."""
    return (
        f"{row['spots_listed']} spots listed, {row['spots_selected']} selected, "
        f"{row['counts_rows']} with counts, {row['joined']} joined; dropped "
        f"{row['outside_image']} outside the image, {row['without_counts']} without counts, "
        f"{row['counts_without_spot']} counts without spot, {row['control_probes']} control probes"
        + f", {row['date_names']} names that are dates" * (row["date_names"] > 0)
        + f"; {row['note']}" * bool(row["note"])
    )


def _bare(slide: SlideSource, row: dict) -> str:
    if slide.load_spots is None:
        return f"{row['joined']} patches, of which nothing was measured"
    return (
        f"{row['spots_listed']} spots listed, {row['joined']} of them selected and on the image; "
        "nothing was measured"
    )


def _say_nothing(width: int, pace: float) -> None:
    """A forecast that nobody asked for."""


def _encode(
    slide: SlideSource,
    plan: Plan,
    spots: anndata.AnnData,
    sides: list[int],
    row: dict,
    say: Callable[[int, float], None],
) -> tuple[np.ndarray, list[str]]:
    """Features (N, D) float32 of a slide's patches, and why they cannot be those of tissue.

    ``say`` is told the width of the features and the seconds of a patch after the first batches.
    """
    name, encoding, count = slide.slide_id, plan.encoding, spots.n_obs
    encoder, seen = encoding.encoder, PixelStatistics()
    wait = encoding.seconds_per_patch * count * len(sides)
    features = np.empty((count, len(sides) * encoder.dim), dtype=np.float32)
    print(f"{name}: {count} patches, about {duration(wait)} and {features.nbytes / 1e6:.0f} MB")
    scales = plan.scales
    if plan.patch_px and writer.has_stored_patches(slide):
        scales = [stored_microns(slide.image, plan.patch_px, slide.mpp)]
    batches = writer.slide_batches(
        slide, spots, sides, scales, encoder.size, encoding.batch_size, plan.workers
    )
    waited, start = encoding.waited, time.perf_counter()
    with progress_bar(total=count, unit="patch", desc=name) as progress:
        done = 0
        for batch, encoded in encoding.scales(batches):
            seen.add(batch[0])
            features[done : done + len(encoded)] = encoded
            done += len(encoded)
            progress.update(len(encoded))
            if done >= min(count, FIRST_BATCHES * encoding.batch_size):
                say(features.shape[1], (time.perf_counter() - start) / done)
    waited, spent = encoding.waited - waited, max(1e-9, time.perf_counter() - start)
    print(
        f"{name}: {count / spent:.1f} patches a second, {waited / spent:.0%} of the time waiting "
        "for the image"
    )
    row |= seen.shares()
    if said := seen.findings():
        print(f"{name}: {'; '.join(said)}")
    if not np.isfinite(features).all():
        raise InputError(f"slide {name}: {encoder.name} gave features that are not finite")
    return features, seen.faults() or encoding.faults(features, len(sides))
