"""A predicted map as GeoJSON tiles for QuPath, written tile by tile."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from histokit.core.files import atomic_path, make_folder
from histokit.maps.anndata_file import check_genes
from histokit.maps.slide_map import SlideMap

NOVELTY = "novelty"


def write_geojson(
    slide: SlideMap, path: Path, genes: list[str], bounds: tuple[float, float] = (0, 0)
) -> None:
    """Write patches as square QuPath tiles with measurements.

    A measurement is a gene by its name, ``novelty``, or ``score:NAME``; one that is not finite is
    left out. Coordinates are pixels of level 0, rounded to hundredths. Some 100,000 tiles of 50
    genes make a file of 150 MB.

    Args:
        slide: the map.
        path: the .geojson, or .geojson.gz to compress it; its folder is made.
        genes: the genes to write.
        bounds: x, y in pixels of level 0 where the viewer's image begins (``openslide.bounds-x``
            and ``-y`` of slides that it crops); subtracted.

    Raises:
        InputError: an unknown gene, or a folder that cannot be written.
        OSError: the disk is full.
    """
    genes = check_genes(slide, genes)
    path = Path(path)
    make_folder(path.parent)
    with atomic_path(path) as temporary, _opened(temporary) as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for feature in _features(slide, genes, bounds):
            file.write(separator + json.dumps(feature, allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")


def _opened(path: Path) -> TextIO:
    """A text file for writing, compressed where its suffix says so."""
    if path.suffix == ".gz":
        return gzip.open(path, "wt", compresslevel=6, encoding="utf-8")
    return open(path, "w", encoding="utf-8")


def _features(slide: SlideMap, genes: list[str], bounds: tuple[float, float]) -> Iterator[dict]:
    names, values = _measurements(slide, genes)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) * slide.side / 2
    centers = np.asarray(slide.centers, np.float64) - np.asarray(bounds, np.float64)
    for barcode, center, row in zip(slide.barcodes, centers, values, strict=True):
        known = np.flatnonzero(np.isfinite(row))
        yield {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [(center + corners).round(2).tolist()],
            },
            "properties": {
                "objectType": "tile",
                "name": str(barcode),
                "measurements": {names[k]: _short(row[k]) for k in known},
            },
        }


def _measurements(slide: SlideMap, genes: list[str]) -> tuple[list[str], np.ndarray]:
    """Names and (N, names) float32 of genes, novelty and scores."""
    more = {} if slide.novelty is None else {NOVELTY: slide.novelty}
    more |= {f"score:{name}": values for name, values in slide.scores.items()}
    columns = [np.asarray(values, np.float32)[:, None] for values in more.values()]
    return [*genes, *more], np.concatenate([slide.columns(genes), *columns], axis=1)


def _short(value: np.float32) -> float:
    """The same float32 in as few digits as tell it apart."""
    return float(str(value))
