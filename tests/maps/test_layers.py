"""Maps in the slide's own frame: each pixel is where its world file says."""

import numpy as np
import pytest
from map_samples import slide_map
from PIL import Image

from histokit.core.errors import InputError
from histokit.maps.layers import write_layers
from histokit.maps.overlays import colors_of
from histokit.report.plots import color_range


def test_a_pixel_lies_where_its_world_file_says(tmp_path):
    slide = slide_map()
    gene = slide.genes.index[0]
    (path,) = write_layers(slide, tmp_path, [gene])
    picture = np.asarray(Image.open(path))
    assert picture.shape == (slide.picture.height, slide.picture.width, 4)
    a, d, b, e, c, f = map(float, path.with_suffix(".pgw").read_text().split())
    assert (d, b) == (0, 0)
    values = slide.columns([gene])[:, 0]
    shades = colors_of(bool(slide.genes.loc[gene, "trusted"]))(color_range(values)(values))
    for (x, y), shade in zip(slide.centers, shades, strict=True):
        column, row = round((x - c) / a), round((y - f) / e)
        np.testing.assert_allclose(picture[row, column] / 255, shade, atol=0.01)
    assert (picture[..., 3] == 0).any()  # nothing where there is no patch


def test_an_unknown_gene_is_named(tmp_path):
    with pytest.raises(InputError, match="NOGENE"):
        write_layers(slide_map(), tmp_path, ["NOGENE"])
