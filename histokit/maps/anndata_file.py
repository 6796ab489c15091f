"""A predicted map as .h5ad for scanpy and squidpy, written in blocks of genes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder
from histokit.maps.slide_map import SlideMap

DTYPES = ("float32", "float16")
_CHUNK = 1 << 15  # values; few enough for one gene or one patch, enough for few chunks
_BLOCK = 1 << 24  # values held at once, 64 MiB of float32


def write_anndata(slide: SlideMap, path: Path, dtype: str = "float32") -> None:
    """Write a map as .h5ad: all genes, in memory that does not grow with their number.

    ``X`` (N, G) is the prediction, ``layers["spread"]`` its standard deviation over the folds,
    ``layers["measured"]`` (CSR) what was measured, each where the map has it. ``obsm["spatial"]``
    holds patch centers (x, y) in pixels of level 0, ``obs["novelty"]`` the novelty and
    ``obsm["scores"]`` a table of scores by name, with ``_`` for ``/``. ``uns["spatial"]`` holds
    the picture in Space Ranger's form, ``uns["histokit"]`` the unit, the provenance (what is no
    text there is JSON) and how far to trust the map. ``X`` is not compressed: a gene and a patch
    are read at once, and predictions hardly shrink.

    Args:
        slide: the map.
        path: the .h5ad; its folder is made.
        dtype: ``float32``, or ``float16`` for half the size and three digits.

    Raises:
        InputError: another dtype, values that float16 cannot hold, or a folder that cannot be
            written.
        OSError: the disk is full.
    """
    if dtype not in DTYPES:
        raise InputError(f"predictions are stored as {' or '.join(DTYPES)}, not as {dtype!r}")
    path = Path(path)
    make_folder(path.parent)
    data = without_values(slide, slide.genes)
    data.uns["spatial"] = {slide.slide_id: _space_ranger(slide)}
    if slide.measured is not None:
        data.layers["measured"] = slide.measured
    with atomic_path(path) as temporary:
        data.write_h5ad(temporary, convert_strings_to_categoricals=False)
        with h5py.File(temporary, "r+") as file:
            _write_matrix(file, "X", slide, slide.block, dtype)
            if slide.spread is not None:
                _write_matrix(file["layers"], "spread", slide, slide.spread, dtype)


def check_genes(slide: SlideMap, genes: Iterable[str]) -> list[str]:
    """Gene names without repeats; raises InputError for one that the map does not have."""
    chosen = list(dict.fromkeys(genes))
    unknown = [gene for gene in chosen if gene not in slide.genes.index]
    if unknown:
        raise InputError(
            f"slide {slide.slide_id}: {len(unknown)} of {len(chosen)} genes are not among the "
            f"{len(slide.genes):,} predicted ones, such as {unknown[0]!r}; names are spelled as "
            f"in the run, such as {slide.genes.index[0]!r}"
        )
    return chosen


def provenance(slide: SlideMap) -> dict:
    """What is known of a map, flat, as JSON takes it: ``about``, and unit, side, mpp and trust."""
    own = {"slide_id": slide.slide_id, "unit": slide.unit, "side": float(slide.side)}
    own["mpp"] = None if slide.mpp is None else float(slide.mpp)
    return {**slide.about, **own, "said": list(slide.said)}


def without_values(slide: SlideMap, genes: pd.DataFrame) -> anndata.AnnData:
    """An AnnData (N, len(genes)) of everything but predicted values and the picture.

    Args:
        slide: the map.
        genes: rows of ``slide.genes``.
    """
    names = pd.Index([str(name) for name in slide.barcodes], name="barcode")
    obs = pd.DataFrame(index=names)
    if slide.novelty is not None:
        obs["novelty"] = np.asarray(slide.novelty, np.float32)
    texts = genes.select_dtypes(["object", "string"]).columns
    filled = {column: genes[column].astype(object).fillna("").astype(str) for column in texts}
    data = anndata.AnnData(
        obs=obs,
        var=genes.assign(**filled).rename_axis("gene"),
        obsm={"spatial": np.asarray(slide.centers, np.float64)},
    )
    if slide.scores:
        data.obsm["scores"] = pd.DataFrame(_by_column(slide.scores), index=names)
    data.uns["histokit"] = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in provenance(slide).items()
    }
    return data


def _by_column(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores by names that are columns on disk: a slash would be a folder there."""
    columns = {}
    for name in sorted(scores, key=lambda name: "/" in name):  # names without it stay as they are
        column = name.replace("/", "_")
        while column in columns:
            column += "_"
        columns[column] = np.asarray(scores[name], np.float32)
    return columns


def _space_ranger(slide: SlideMap) -> dict:
    """The picture and its scale as scanpy and squidpy look for them."""
    scales = {"tissue_hires_scalef": float(slide.scale), "spot_diameter_fullres": float(slide.side)}
    # a reader would else take the diameter for the 65 um of a Visium spot
    if slide.mpp is not None:
        scales["microns_per_pixel"] = float(slide.mpp)
    return {
        "images": {"hires": np.asarray(slide.picture.convert("RGB"))},
        "scalefactors": scales,
        "metadata": {"source_image_path": str(slide.about.get("image", "")), "unit": slide.unit},
    }


def _chunks(patches: int, genes: int) -> tuple[int, int]:
    """A chunk (patches, genes) with which one gene costs as much to read as one patch."""
    across = min(genes, max(1, round(math.sqrt(_CHUNK * genes / patches))))
    return min(patches, max(1, _CHUNK // across)), across


def _write_matrix(
    group: h5py.Group,
    name: str,
    slide: SlideMap,
    block: Callable[[int, int], np.ndarray],
    dtype: str,
) -> None:
    """Write (N, G) values as AnnData stores a dense array, one block of genes after the other."""
    shape = (len(slide.barcodes), len(slide.genes))
    chunks = _chunks(*shape)
    data = group.create_dataset(name, shape, dtype, chunks=chunks)
    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    width = max(1, _BLOCK // shape[0] // chunks[1]) * chunks[1]  # whole chunks, each written once
    for start in range(0, shape[1], width):
        stop = min(start + width, shape[1])
        data[:, start:stop] = _narrowed(block(start, stop), dtype, slide, start)


def _narrowed(values: np.ndarray, dtype: str, slide: SlideMap, start: int) -> np.ndarray:
    """Values (N, genes from ``start``) in another dtype; InputError where one would be infinite."""
    with np.errstate(over="ignore"):
        narrow = np.asarray(values).astype(dtype, copy=False)
    lost = (np.isinf(narrow) & np.isfinite(values)).any(axis=0)
    if lost.any():
        gene = slide.genes.index[start + int(np.flatnonzero(lost)[0])]
        raise InputError(
            f"slide {slide.slide_id}: values of the gene {gene} ({slide.unit}) are too large for "
            "float16, which ends at 65,504; choose float32"
        )
    return narrow
