"""A predicted map as a SpatialData store, for the viewers of scverse."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.evaluate.folders import whole_folder
from histokit.maps.anndata_file import check_genes, provenance, without_values
from histokit.maps.slide_map import SlideMap

TABLE = "predictions"
LARGEST = 1 << 31  # bytes; a table of SpatialData is read whole into memory
_CHUNK = 1 << 18  # values; whole columns, since viewers read single genes


def write_spatialdata(slide: SlideMap, path: Path, genes: list[str] | None = None) -> None:
    """Write a map as a SpatialData store (.zarr).

    The coordinate system has the name of the slide and is in pixels of level 0. The elements are
    the image ``<slide>_image`` (the small picture), the circles ``<slide>_tiles`` (patch centers,
    half a side as radius), and the table ``predictions`` with float32 ``X`` (N, genes), centers
    in ``obsm["spatial"]``, novelty and scores; characters that no element's name may hold are
    ``-``. Spread and measured values are in the .h5ad alone.

    Args:
        slide: the map.
        path: the .zarr; one that this function wrote before is replaced.
        genes: the genes to write; None for all.

    Raises:
        InputError: spatialdata is not installed, a gene is unknown, the table would be larger
            than 2 GiB, or something else is at ``path``.
        OSError: the disk is full.
    """
    chosen = slide.genes if genes is None else slide.genes.loc[check_genes(slide, genes)]
    size = 4 * len(slide.barcodes) * len(chosen)
    if size > LARGEST:
        raise InputError(
            f"slide {slide.slide_id}: {len(chosen):,} genes of {len(slide.barcodes):,} patches "
            f"are {size / 2**30:.1f} GiB, and a table of SpatialData is read whole; write chosen "
            "genes only, or take the .h5ad for all of them"
        )
    spatialdata = _library()
    name = re.sub(r"^__|[^\w.-]", "-", slide.slide_id)
    elements = {
        f"{name}_image": _image(spatialdata, slide),
        f"{name}_tiles": _circles(spatialdata, slide),
        TABLE: _table(spatialdata, slide, chosen, f"{name}_tiles"),
    }
    store = spatialdata.SpatialData.init_from_elements(
        elements, attrs={"histokit": provenance(slide)}
    )
    with whole_folder(Path(path)) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zarr's, of formats to come
        temporary.rmdir()  # SpatialData makes it, and takes a folder that is there for foreign
        store.write(temporary)
        _write_values(temporary, slide, chosen)


def _library() -> ModuleType:
    """The package spatialdata; InputError where it is not installed."""
    try:
        import spatialdata.models
        import spatialdata.transformations
    except ImportError as error:
        raise InputError(
            f"SpatialData stores need the package spatialdata ({error}); install it with "
            "'pip install spatialdata', or write the .h5ad"
        ) from error
    return spatialdata


def _image(spatialdata: ModuleType, slide: SlideMap):
    """The picture, with its scale to pixels of level 0."""
    pixels = np.asarray(slide.picture.convert("RGB")).transpose(2, 0, 1)
    scale = spatialdata.transformations.Scale([1 / slide.scale] * 2, axes=("x", "y"))
    return spatialdata.models.Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={slide.slide_id: scale},
    )


def _circles(spatialdata: ModuleType, slide: SlideMap):
    """Patches as circles, numbered from 0."""
    return spatialdata.models.ShapesModel.parse(
        np.asarray(slide.centers, np.float64),
        geometry=0,
        radius=slide.side / 2,
        index=np.arange(len(slide.barcodes)),
        transformations={slide.slide_id: spatialdata.transformations.Identity()},
    )


def _table(spatialdata: ModuleType, slide: SlideMap, genes: pd.DataFrame, region: str):
    """The table without ``X``, which is written in blocks."""
    data = without_values(slide, genes)
    data.obs["region"] = pd.Categorical([region] * data.n_obs)
    data.obs["tile_id"] = np.arange(data.n_obs)
    return spatialdata.models.TableModel.parse(
        data, region=region, region_key="region", instance_key="tile_id"
    )


def _write_values(folder: Path, slide: SlideMap, genes: pd.DataFrame) -> None:
    """Write ``X`` (N, genes) of the table, a chunk of genes after the other."""
    import zarr

    patches, width = len(slide.barcodes), max(1, _CHUNK // len(slide.barcodes))
    table = zarr.open_group(folder, mode="r+", use_consolidated=False)[f"tables/{TABLE}"]
    values = table.create_array(
        "X",
        shape=(patches, len(genes)),
        chunks=(patches, width),
        dtype="float32",
        attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
    )
    places = slide.genes.index.get_indexer(genes.index)
    for start in range(0, len(genes), width):
        values[:, start : start + width] = _columns(slide, places[start : start + width])
    zarr.consolidate_metadata(folder)


def _columns(slide: SlideMap, places: np.ndarray) -> np.ndarray:
    """Predicted values (N, len(places)); neighbors in one block, where they are neighbors."""
    if (np.diff(places) == 1).all():
        return slide.block(int(places[0]), int(places[-1]) + 1)
    return np.concatenate([slide.block(int(k), int(k) + 1) for k in places], axis=1)
