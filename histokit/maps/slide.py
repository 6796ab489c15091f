"""One slide's map: prediction, scores, what was measured, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

from histokit.data.cohort import Cohort, Slide
from histokit.data.genes import normalize
from histokit.evaluate.topics.pathways import Collection
from histokit.evaluate.topics.predictions import read_tissue
from histokit.evaluate.topics.signatures import (
    Signature,
    rows_of,
    signature_score,
    varying,
)
from histokit.evaluate.verdict import UNITS
from histokit.maps.ensemble import Ensemble, EnsembleMap
from histokit.maps.novelty import Reference
from histokit.maps.slide_map import SlideMap
from histokit.maps.trust import Trust

if TYPE_CHECKING:
    from histokit.maps.official import Official

FEWEST = 5  # genes of a set that have to be predicted for a score


@dataclass(frozen=True)
class Oracle:
    """A run that predicts, and all that is said beside its predictions.

    Attributes:
        ensemble: the models.
        trust: of its genes.
        reference: what slides are held against; None with ``unchecked`` saying why.
        collections, signatures: what is scored.
        about: provenance that goes into every file.
    """

    ensemble: Ensemble | Official
    trust: Trust
    reference: Reference | None = None
    unchecked: str = ""
    collections: Sequence[Collection] = ()
    signatures: Sequence[Signature] = ()
    about: dict = field(default_factory=dict)


def map_slide(oracle: Oracle, cohort: Cohort, slide_id: str) -> SlideMap:
    """Predict one slide.

    Raises:
        InputError: as ``Cohort.load`` and ``Ensemble.on``.
    """
    ensemble = oracle.ensemble
    genes = ensemble.genes.join(oracle.trust.table)
    has_counts = int(cohort.slides.loc[slide_id].get("num_genes") or 0) > 0
    panel = ensemble.genes.reset_index(names="gene")[["gene", "gene_id", "symbol"]]
    slide = cohort.load(slide_id, panel if has_counts else None, counts=has_counts)
    prediction, tissue = ensemble.on(slide), read_tissue(cohort, slide)
    target = ensemble.run.config["options"]["target"]
    said, novelty = ensemble.said(slide), None
    if oracle.reference is not None:
        novelty = oracle.reference.novelty(slide.features)
        said.append(oracle.reference.verdict(novelty))
    elif oracle.unchecked:
        said.append(oracle.unchecked)
    said += oracle.trust.said
    row = cohort.slides.loc[slide_id]
    about = {"cancer": slide.cancer} | oracle.about
    about |= {
        "slide_id": slide_id,
        "mpp_source": row.get("mpp_source", ""),
        "image": row.get("image", ""),
    }
    scores, unscored = _scores(oracle, prediction, panel)
    return SlideMap(
        slide_id=slide_id,
        barcodes=slide.barcodes,
        centers=slide.centers,
        side=_side(cohort, slide_id),
        mpp=tissue.mpp,
        unit=UNITS[target],
        genes=genes,
        block=prediction.block,
        picture=Image.fromarray(tissue.image),
        scale=tissue.scale,
        spread=prediction.spread if len(ensemble.folds) > 1 else None,
        scores=scores,
        novelty=novelty,
        measured=_measured(slide, target) if has_counts else None,
        about=about,
        said=said + unscored,
    )


def _side(cohort: Cohort, slide_id: str) -> float:
    """Side of a patch in pixels of level 0; of joined encoders that of the first."""
    return float(str(cohort.provenance(slide_id)["patch_size_level0"]).split(" + ")[0])


def _measured(slide: Slide, target: str) -> sp.csr_matrix:
    """(N, G) measured expression on the scale of the prediction; NaN where not measured."""
    values = normalize(slide.counts, slide.library_size, target)
    if slide.measured.all():
        return values
    absent = np.zeros((len(slide.barcodes), len(slide.measured)), np.float32)
    absent[:, ~slide.measured] = np.nan
    return sp.csr_matrix(values + sp.csr_matrix(absent))


def _scores(
    oracle: Oracle, prediction: EnsembleMap, panel: pd.DataFrame
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Mean z-score over the slide of each set's predicted genes, and which sets have none."""
    sets = {signature.name: signature for signature in oracle.signatures}
    for collection in oracle.collections:
        for name, genes in collection.sets.items():
            sets[name] = Signature(name, tuple((gene,) for gene in genes))
    found, said = {}, []
    for name, signature in sets.items():
        rows = rows_of(signature, panel)
        if len(rows) < FEWEST:
            said.append(
                f"{name} is not scored: {len(rows)} of its {len(signature.genes)} genes are "
                f"predicted, and {FEWEST} are needed."
            )
            continue
        values = prediction.take(np.unique(rows.to_numpy()))
        kept = varying(values)
        if kept.any():
            found[name] = signature_score(values[:, kept]).astype(np.float32)
    return found, said
