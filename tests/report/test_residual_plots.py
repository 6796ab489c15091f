import numpy as np
import pytest
from matplotlib.collections import EllipseCollection, PolyCollection

from histokit.report import plots
from histokit.report.residual_plots import residual_maps

MEASURED = np.array([0.0, 1.0, 2.0, 9.0])


def tissue(square=False):
    image = np.full((400, 500, 3), 255, np.uint8)
    centers = np.array([[250.0, 200.0], [310.0, 200.0], [250.0, 260.0], [310.0, 260.0]])
    return plots.Tissue(image, 0.5, centers, 60.0, 1.0, square)


def drawn(figure, kind=EllipseCollection):
    return [c for axis in figure.axes for c in axis.collections if isinstance(c, kind)]


@pytest.fixture
def figure():
    maps = [plots.GeneMap("best", MEASURED, MEASURED[::-1]), plots.GeneMap("worst", *np.eye(4)[:2])]
    residuals = np.stack([np.array([1.0, -1, 0, 2]), np.array([3.0, 1, 0, -2])], axis=1)
    return residual_maps(tissue(), maps, residuals, "slide", "unit")


def test_residuals_are_measured_minus_predicted_and_white_at_zero(figure):
    measured, predicted, residual = drawn(figure)[:3]
    assert measured.norm is predicted.norm
    np.testing.assert_array_equal(residual.get_array(), MEASURED - MEASURED[::-1])
    assert residual.norm.vmin == -residual.norm.vmax
    assert residual.to_rgba([0.0])[0, :3].min() > 0.95
    red, _, blue, _ = residual.to_rgba([residual.norm.vmax])[0]
    assert red > 2 * blue  # more was measured


def test_the_last_row_holds_the_size_and_the_mean_of_all_genes(figure):
    size, mean = drawn(figure)[-2:]
    np.testing.assert_array_equal(size.get_array(), [2, 1, 0, 2])
    np.testing.assert_array_equal(mean.get_array(), [2, 0, 0, 0])
    assert mean.norm.vmin == -mean.norm.vmax


def test_each_scale_has_one_color_bar_and_the_figure_one_scale_bar(figure):
    figure.canvas.draw()
    bars = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
    assert len(bars) == 2 * 2 + 2
    labels = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert [text for text in labels if text.endswith("µm")] == ["50 µm"]


def test_pooled_squares_are_drawn_as_squares_that_touch():
    maps = [plots.GeneMap("gene", MEASURED, MEASURED)]
    squares = drawn(plots.gene_maps(tissue(square=True), maps, "slide", "unit"), PolyCollection)
    first, second = (path.get_extents() for path in squares[0].get_paths()[:2])
    assert (first.x0, first.x1, first.y0, first.y1) == (220, 280, 170, 230)
    assert second.x0 == first.x1
