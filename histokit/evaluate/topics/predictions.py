"""Predicted expression as .h5ad, ready for scanpy and squidpy."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from PIL import Image

from histokit.core.files import atomic_path, make_folder
from histokit.data.cohort import Cohort, Slide
from histokit.data.technologies import POOLED, spot_diameter, technology_kind
from histokit.evaluate.residuals import headline_residuals
from histokit.evaluate.topics.base import Topic
from histokit.evaluate.views import SlideView
from histokit.models.retrieval import Retrieval
from histokit.models.sampling import Generative
from histokit.report.plots import Tissue

# scanpy draws the tissue under the spots; so many pixels suffice and keep the files small.
_PICTURE = 800


class PredictionTopic(Topic):
    """Predicted expression of every test slide, one .h5ad each.

    Args:
        folder: the folder of the evaluation.
        cohort: its slides.
        provenance: what is stored beside every prediction.
        whole: write every gene, not only those of the headline PCC.
    """

    def __init__(self, folder: Path, cohort: Cohort, provenance: dict, whole: bool):
        self.folder, self.cohort, self.provenance, self.whole = folder, cohort, provenance, whole

    def add(self, view: SlideView) -> None:
        """Write a slide's prediction."""
        fold, slide_id = view.fold, view.slide.slide_id
        path = make_folder(self.folder / "predictions" / fold.id) / f"{slide_id}.h5ad"
        about = self.provenance | {"fold": fold.name, "slide_id": slide_id}
        chosen = np.ones_like(view.score.hvg) if self.whole else view.score.hvg
        write_prediction(path, view, read_tissue(self.cohort, view.slide), about, chosen)


def read_tissue(cohort: Cohort, slide: Slide) -> Tissue:
    """What a slide's spots are drawn on; white where the cohort holds no thumbnail."""
    row = cohort.slides.loc[slide.slide_id]
    path = cohort.folder / "thumbnails" / f"{slide.slide_id}.jpg"
    mpp = float(row["mpp"]) if row["mpp"] not in ("", None) else None
    mpp = None if mpp is None or np.isnan(mpp) else mpp
    if path.is_file():
        image, scale = np.asarray(Image.open(path).convert("RGB")), float(row["thumbnail_scale"])
    else:
        scale = _PICTURE / max(1.0, slide.centers.max())
        width, height = np.ceil(slide.centers.max(axis=0) * scale).astype(int) + 1
        image = np.full((height, width, 3), 255, np.uint8)
    diameter = spot_diameter(slide.centers, row["technology"], mpp)
    square = technology_kind(row["technology"]) in POOLED
    return Tissue(image, scale, slide.centers, diameter, mpp, square)


def write_prediction(
    path: Path, view: SlideView, tissue: Tissue, provenance: dict, chosen: np.ndarray
) -> None:
    """Write one slide's prediction.

    ``X`` is the prediction, ``layers["target"]`` the measured expression, both float32 on the
    target scale; NaN where a gene was not measured, in ``X`` where nothing was learned of it.
    ``obsm["spatial"]`` holds spot centers in pixels of level 0, ``uns["spatial"]`` the tissue in
    Space Ranger's form.
    Of a retrieval model also what ``add_retrieved`` adds; of one that draws, ``add_draws``.

    Args:
        path: the .h5ad.
        view: the slide.
        tissue: its picture.
        provenance: run, model, encoder, transform and the like, stored in ``uns["histokit"]``.
        chosen: (G,) bool, genes to write.
    """
    slide, score, prediction, target = view.slide, view.score, view.prediction, view.target
    var = score.genes.set_index("gene")[["gene_id", "symbol"]]
    var = var.assign(hvg=score.hvg, measured=score.measured, pcc=score.pcc, mse=score.mse)
    var = var.assign(target_variance=score.variance)
    measured = target[:, np.flatnonzero(chosen)].toarray()
    measured[:, ~score.measured[chosen]] = np.nan
    predicted = prediction[:, np.flatnonzero(chosen)].numpy()
    predicted[:, ~score.learned[chosen]] = np.nan
    data = anndata.AnnData(
        predicted,
        obs=pd.DataFrame(
            {"mean_abs_residual": np.abs(headline_residuals(view)).mean(axis=1)},
            index=pd.Index(slide.barcodes, name="barcode"),
        ),
        var=var[chosen],
        layers={"target": measured},
        obsm={"spatial": np.asarray(slide.centers, dtype=np.float64)},
    )
    data.uns["histokit"] = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in provenance.items()
    }
    if isinstance(view.model, Retrieval):
        add_retrieved(data, view.model, slide)
    if isinstance(view.model, Generative):
        add_draws(data, view, chosen)
    picture = Image.fromarray(tissue.image)
    picture.thumbnail((_PICTURE, _PICTURE))
    data.uns["spatial"] = {
        slide.slide_id: {
            "images": {"hires": np.asarray(picture)},
            "scalefactors": {
                "tissue_hires_scalef": tissue.scale * picture.width / tissue.image.shape[1],
                "spot_diameter_fullres": tissue.diameter,
            },
        }
    }
    with atomic_path(path) as temporary:
        data.write_h5ad(temporary, compression="gzip", compression_opts=1)


def add_draws(data: anndata.AnnData, view: SlideView, chosen: np.ndarray) -> None:
    """Add how far the draws of a generative model lie apart, and what drew them.

    ``layers["spread"]`` (N, G) is the standard deviation of the draws whose mean ``X`` is, NaN of a
    single one; ``uns`` holds ``samples``, their ``seed``, and ``network_calls`` for each spot.
    """
    model = view.model
    spread = model.behind(view.prediction.hidden).spread
    spread = spread[:, np.flatnonzero(chosen)].numpy()
    spread[:, ~view.score.learned[chosen]] = np.nan
    data.layers["spread"] = spread
    data.uns["samples"], data.uns["seed"] = model.samples, model.sample_seed
    data.uns["network_calls"] = model.network_calls


def add_retrieved(data: anndata.AnnData, model: Retrieval, slide: Slide) -> None:
    """Add the training spots behind each prediction of a retrieval model.

    ``obsm["retrieved_index"]`` (N, K) int32 are rows of the table ``uns["bank"]``, nearest first,
    and ``obsm["retrieved_weight"]`` (N, K) float32 their weights. The table's columns slide_id and
    row name each training spot, rows counted from 0 in the order that ``Cohort.load`` reads.
    """
    index, weight = model.retrieve(slide.features)
    data.obsm["retrieved_index"] = index.numpy().astype(np.int32)
    data.obsm["retrieved_weight"] = weight.numpy()
    bank = model.bank
    slide_id = pd.Categorical.from_codes(bank.slide.numpy(), bank.slides)
    places = pd.RangeIndex(len(bank)).astype(str)
    data.uns["bank"] = pd.DataFrame({"slide_id": slide_id, "row": bank.row.numpy()}, index=places)
