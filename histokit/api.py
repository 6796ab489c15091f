"""The stages as functions: read a slide, extract its features, predict its expression."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from histokit.core.errors import InputError

if TYPE_CHECKING:
    import anndata

    from histokit.data.cohort import Cohort
    from histokit.data.sources import SlideSource


def read_slide(source: str | os.PathLike, slide: str | None = None, **said) -> SlideSource:
    """One slide in any layout that is known; its spots and counts are read when asked for.

    Args:
        source: an image, or a folder as ``run_extract.py --source`` takes it.
        slide: its id, where the source holds several.
        said: ``cancer``, ``mpp``, ``image`` and ``bin_um`` of
            ``histokit.data.layouts.read_source``.

    Raises:
        InputError: no known layout, or several slides and none named.
    """
    from histokit.data.layouts import read_source

    found = read_source(source, only=[slide] if slide else [], **said)
    if len(found) > 1:
        names = ", ".join(one.slide_id for one in found[:5])
        raise InputError(f"{source} holds {len(found)} slides ({names}, ...); name one with slide")
    return found[0]


def extract_features(
    slides: SlideSource | Sequence[SlideSource],
    out: str | os.PathLike,
    encoder: str = "efficientnet-lite0",
    weights: str | os.PathLike | None = None,
    device: str = "cpu",
    patch_um: float = 112.0,
    **settings,
) -> Cohort:
    """Extract features and counts of slides into a folder; what is finished there is kept.

    Args:
        slides: as ``read_slide`` returns them.
        out: the folder.
        encoder: as ``run_extract.py --encoder``.
        weights: a file, for encoders that do not bring their own.
        device: of torch.
        patch_um: side of a patch in microns.
        settings: further fields of ``histokit.extract.slide.Plan``, such as ``mask``.

    Raises:
        InputError: as ``histokit.extract.slide.extract_slide``.
    """
    from histokit.data.cohort import Cohort
    from histokit.extract.base import How
    from histokit.extract.cohort import extract_slides
    from histokit.extract.encoders import make_encoder
    from histokit.extract.encoding import Encoding
    from histokit.extract.slide import Plan, named

    slides, settings = _several(slides), _with_paths(settings)
    made = make_encoder(encoder, weights, How(device=device, precision="auto"))
    provenance = made.provenance() | named(made.name, [patch_um], False, None)
    plan = Plan(provenance, Encoding(made, device=device), scales=(patch_um,), **settings)
    extract_slides(slides, plan, Path(out), whole=False)
    return Cohort(out, made.name)


def predict(
    run: str | os.PathLike,
    slide: SlideSource | str | os.PathLike,
    out: str | os.PathLike | None = None,
    fold: str = "all",
    cancer: str | None = None,
    weights: str | os.PathLike | None = None,
    device: str = "cpu",
    **settings,
) -> anndata.AnnData:
    """Predict a slide's expression, and how far to trust each gene.

    Args:
        run: a folder that ``run_train.py`` wrote.
        slide: as ``read_slide`` returns it, or what it takes.
        out: where the slide's features are kept; nowhere by default.
        fold: the fold whose model predicts; the mean of all by default.
        cancer: OncoTree code of the slide.
        weights: of the run's encoder, where it does not bring its own.
        device: of torch.
        settings: further fields of ``histokit.extract.slide.Plan``, such as ``mask``.

    Returns:
        X (N, G) float32 in the unit of the run's target, as ``prediction.h5ad`` of
        ``run_predict.py``.

    Raises:
        InputError: as ``run_predict.py``.
    """
    import anndata

    from histokit.evaluate.runs import Run
    from histokit.maps.anndata_file import write_anndata
    from histokit.maps.features import extract_for
    from histokit.maps.oracle import consult
    from histokit.maps.slide import map_slide

    source = slide if hasattr(slide, "slide_id") else read_slide(slide)
    if cancer is not None:
        source = replace(source, cancer=cancer)
    oracle = consult(Run(run), fold, device=device)
    machine = {"weights": weights, "device": device, "batch_size": "auto", "features_from": None}
    with tempfile.TemporaryDirectory() as passing:
        folder, settings = Path(out or passing), _with_paths(settings)
        cohort = extract_for(oracle.ensemble.run, [source], folder, settings, machine)
        found = map_slide(oracle, cohort, source.slide_id)
        path = Path(passing) / f"{source.slide_id}.h5ad"
        write_anndata(found, path)
        return anndata.read_h5ad(path)


def _several(slides: SlideSource | Sequence[SlideSource]) -> list[SlideSource]:
    return [slides] if hasattr(slides, "slide_id") else list(slides)


def _with_paths(settings: dict) -> dict:
    """Settings of an extraction, the mask as a path."""
    mask = settings.get("mask")
    return settings if mask is None else settings | {"mask": Path(mask)}
