"""Maps as transparent pictures in the slide's own frame, to be laid over it by other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from histokit.core.files import atomic_path, file_id, make_folder
from histokit.maps.anndata_file import check_genes
from histokit.maps.overlays import colors_of, patch_raster
from histokit.maps.slide_map import SlideMap
from histokit.report.plots import color_range


def write_layers(slide: SlideMap, folder: Path, genes: list[str]) -> list[Path]:
    """Write ``GENE.png`` and its world file ``GENE.pgw`` for each gene.

    The picture covers the slide from its top-left corner, at the scale of ``slide.picture``, and is
    transparent where there is no patch. The world file gives the place of its pixels in level-0
    pixels, x to the right and y downward, as six lines: width of a pixel, two zeros, height of a
    pixel, x and y of the center of the first pixel. Colors are those of the overlays.

    Args:
        slide: the map.
        folder: is made where it is missing.
        genes: the genes to draw.

    Returns:
        The pictures, in the order of the genes.

    Raises:
        InputError: an unknown gene, or a folder that cannot be written.
    """
    genes, folder, paths = check_genes(slide, genes), make_folder(folder), []
    shape, step = (slide.picture.height, slide.picture.width), 1 / slide.scale
    patch = patch_raster(slide, (0, 0), slide.scale, shape)
    world = "\n".join(f"{v:.10g}" for v in (step, 0, 0, step, step / 2, step / 2)) + "\n"
    for gene in genes:
        values = slide.columns([gene])[:, 0]
        trusted = bool(slide.genes.loc[gene, "trusted"])
        shades = np.uint8(np.round(colors_of(trusted)(color_range(values)(values)) * 255))
        shades[~np.isfinite(values)] = 0
        picture = np.zeros((*patch.shape, 4), np.uint8)
        picture[patch >= 0] = shades[patch[patch >= 0]]
        path = folder / f"{file_id(gene)}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        with atomic_path(path.with_suffix(".pgw")) as temporary:
            temporary.write_text(world)
        paths.append(path)
    return paths
