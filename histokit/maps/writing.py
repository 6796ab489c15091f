"""Everything that is written of one predicted slide, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from histokit.core.files import read_json, write_json
from histokit.data.cohort import Cohort
from histokit.evaluate.folders import MANIFEST, versions, whole_folder
from histokit.maps.anndata_file import check_genes, write_anndata
from histokit.maps.layers import write_layers
from histokit.maps.overlays import write_overlays
from histokit.maps.page import write_page
from histokit.maps.qupath import write_geojson
from histokit.maps.slide import Oracle
from histokit.maps.slide_map import SlideMap
from histokit.maps.spatialdata_file import write_spatialdata

CHOSEN = 12  # genes of pictures and of the files for viewers, where none are named
LARGEST_TABLE = 2000  # genes up to which SpatialData, which opens whole, gets all
RECORD = "prediction.json"
THUMBNAIL = "thumbnail.jpg"
# options that say nothing of how one slide is predicted
_NO_PART = ("out", "slides", "batch_size", "device", "workers")


def write_slide(slide: SlideMap, folder: Path, oracle: Oracle, cohort: Cohort, cfg) -> None:
    """Write one slide's folder and say what is in it.

    Args:
        slide: the map.
        folder: its place; replaced if this program wrote it.
        oracle: what predicted it.
        cohort: whose features.
        cfg: the options of run_predict.py.

    Raises:
        InputError: genes that the run does not predict, or a folder that is not ours.
    """
    genes = check_genes(slide, cfg.genes) if cfg.genes else chosen_genes(slide)
    with whole_folder(folder) as place:
        if "h5ad" in cfg.formats:
            write_anndata(slide, place / "prediction.h5ad", cfg.dtype)
        if "spatialdata" in cfg.formats:
            few = None if len(slide.genes) <= LARGEST_TABLE else genes
            write_spatialdata(slide, place / "prediction.zarr", few)
        if "geojson" in cfg.formats:
            write_geojson(slide, place / "tiles.geojson.gz", genes)
        if "overlays" in cfg.formats:
            write_overlays(slide, place / "overlays", genes)
            write_layers(slide, place / "layers", genes)
        if "page" in cfg.formats:
            write_page(slide, place / "page")
        thumbnail = cohort.folder / "thumbnails" / f"{slide.slide_id}.jpg"
        if thumbnail.is_file():  # for the index, which outlives the extraction
            shutil.copyfile(thumbnail, place / THUMBNAIL)
        record = {"made_from": made_from(oracle, cohort, slide.slide_id, cfg), "said": slide.said}
        record |= {"patches": len(slide.barcodes), "genes": len(slide.genes)}
        write_json(place / RECORD, record | {"versions": versions()})
    count = len(slide.barcodes)
    print(f"{slide.slide_id}: {count:,} patches x {len(slide.genes):,} genes in {folder}")
    if "page" in cfg.formats:
        print(f"{slide.slide_id}: look at {folder}/page/index.html")


def chosen_genes(slide: SlideMap) -> list[str]:
    """The trusted genes of highest held-out PCC; of the others where none is trusted."""
    table = slide.genes.sort_values(
        ["trusted", "rank"], ascending=[False, True], kind="stable", na_position="last"
    )
    trusted = int(np.sum(table["trusted"]))
    return list(table.index[: min(CHOSEN, trusted or CHOSEN)])


def is_finished(folder: Path, oracle: Oracle, cohort: Cohort, slide_id: str, cfg) -> bool:
    """Whether a folder holds all of this prediction, from the same files by the same options."""
    if not (folder / MANIFEST).is_file():
        return False
    if not all((folder / name).is_file() for name in read_json(folder / MANIFEST)["files"]):
        return False
    record = read_json(folder / RECORD)
    return record.get("made_from") == made_from(oracle, cohort, slide_id, cfg)


def made_from(oracle: Oracle, cohort: Cohort, slide_id: str, cfg) -> dict:
    """Options, and sizes and times of the files that shape a prediction."""
    options = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in _NO_PART}
    evaluation = Path(cfg.eval) if cfg.eval else oracle.ensemble.run.folder / "eval"
    files = [fold.folder / "model.safetensors" for fold in oracle.ensemble.folds]
    files += [evaluation / "pcc_by_slide.csv", *cohort.feature_files(slide_id)]
    # names of libraries and of shipped signatures are no files, and say all themselves
    files += [Path(name) for name in (*cfg.gene_sets, *cfg.signature, cfg.gene_list) if name]
    stats = [f.stat() if f.is_file() else None for f in files]
    return {
        "options": options,
        "files": [[s.st_size, s.st_mtime_ns] if s else None for s in stats],
        "checked": oracle.reference is not None,
        "about": json.loads(json.dumps(oracle.about)),
    }
