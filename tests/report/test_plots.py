import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection

from histokit.data.technologies import spot_diameter
from histokit.report import plots


@pytest.fixture
def tissue():
    """A white slide of 1000 x 800 pixels with a red square around the first spot."""
    image = np.full((400, 500, 3), 255, np.uint8)
    image[50:150, 75:175] = (200, 0, 0)
    centers = np.array([[250.0, 200.0], [850.0, 200.0], [250.0, 650.0], [850.0, 650.0]])
    return plots.Tissue(image, 0.5, centers, diameter=60.0, mpp=1.0)


def pixel(figure, axis, point):
    """Color at a point of an axis as the figure is drawn."""
    figure.canvas.draw()
    canvas = np.asarray(figure.canvas.buffer_rgba())
    x, y = axis.transData.transform(point)
    return canvas[canvas.shape[0] - 1 - int(y), int(x), :3].astype(int)


def test_tissue_and_spots_lie_on_each_other_with_y_downwards(tissue):
    measured = np.array([0.0, 1.0, 2.0, 3.0])
    maps = [plots.GeneMap("GENE", measured, measured[::-1])]
    figure = plots.gene_maps(tissue, maps, "slide", "unit")
    picture, left, right = figure.axes[:3]
    assert np.abs(pixel(figure, picture, tissue.centers[0]) - (200, 0, 0)).max() < 12
    assert pixel(figure, picture, tissue.centers[3]).min() > 240
    low, high = np.percentile(np.concatenate([measured, measured]), [1, 99])
    for axis, values in ((left, measured), (right, measured[::-1])):
        assert axis.get_ylim()[0] > axis.get_ylim()[1]
        assert axis.get_aspect() == 1
        for center, value in zip(tissue.centers, values, strict=True):
            color = matplotlib.colormaps["viridis"](np.clip((value - low) / (high - low), 0, 1))
            expected = np.array(color[:3]) * 255
            assert np.abs(pixel(figure, axis, center) - expected).max() < 3


def test_spots_have_their_physical_size(tissue):
    maps = [plots.GeneMap("GENE", np.arange(4.0), np.arange(4.0))]
    figure = plots.gene_maps(tissue, maps, "slide", "unit")
    axis = figure.axes[1]
    background = pixel(figure, axis, (550.0, 425.0))
    inside, outside = np.array([26.0, 0]), np.array([34.0, 0])
    assert np.abs(pixel(figure, axis, tissue.centers[3] + inside) - background).max() > 60
    assert np.abs(pixel(figure, axis, tissue.centers[3] + outside) - background).max() < 20


def test_measured_and_predicted_share_one_scale_and_one_color_bar(tissue):
    maps = [
        plots.GeneMap("one", np.arange(4.0), np.arange(4.0) + 10),
        plots.GeneMap("two", np.zeros(4), np.zeros(4)),
    ]
    figure = plots.gene_maps(tissue, maps, "slide", "unit")
    figure.canvas.draw()
    spots = [c for a in figure.axes for c in a.collections if isinstance(c, EllipseCollection)]
    assert len(spots) == 4
    assert spots[0].norm is spots[1].norm
    assert spots[0].norm.vmin < 1
    assert spots[0].norm.vmax > 12
    assert [axis.get_title(loc="left") for axis in figure.axes[:6:3]] == ["one", "two"]


@pytest.mark.parametrize(
    ("technology", "mpp", "expected"),
    [
        ("Visium", 0.5, 110.0),
        ("Spatial Transcriptomics", 0.5, 200.0),
        ("Visium", None, 50.0),
        ("unheard of", 0.5, 50.0),
        ("Visium HD", 0.5, 100.0),
        ("Xenium", None, 100.0),
    ],
)
def test_spot_diameter_is_the_arrays_or_of_a_squares_whole_pitch(technology, mpp, expected):
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 100.0
    assert spot_diameter(grid, technology, mpp) == pytest.approx(expected)


def test_a_single_spot_can_be_drawn(tissue, tmp_path):
    one = plots.Tissue(tissue.image, 0.5, tissue.centers[:1], 60.0)
    figure = plots.gene_maps(one, [plots.GeneMap("G", np.ones(1), np.ones(1))], "slide", "unit")
    plots.save(figure, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


def bars(figure):
    return {
        label.get_text(): patch
        for label, patch in zip(
            figure.axes[0].get_yticklabels(), figure.axes[0].patches, strict=True
        )
    }


def test_bars_hatch_seen_patients_and_say_undefined():
    slides = pd.DataFrame(
        {
            "slide_id": ["A", "B", "C"],
            "fold": "0",
            "cancer": ["IDC", "IDC", "PRAD"],
            "patient_seen": ["yes", "no", "no"],
            "pcc_hvg": [0.4, -0.2, np.nan],
        }
    )
    figure = plots.slide_bars(slides, 50)
    near = plots.slide_bars(slides.assign(pcc_hvg=[-0.001, -0.2, np.nan]), 50)
    texts = [text.get_text() for text in near.axes[0].texts]
    assert texts == ["\u22120.20", "0.00", "undefined"]
    drawn = bars(figure)
    assert drawn["A"].get_hatch()
    assert not drawn["B"].get_hatch()
    assert drawn["B"].get_width() == pytest.approx(-0.2)
    assert drawn["A"].get_facecolor() != drawn["C"].get_facecolor()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "undefined" in texts
    assert "0.40" in texts


def test_many_slides_and_cancers_stay_a_picture(tmp_path):
    count = 200
    slides = pd.DataFrame(
        {
            "slide_id": [f"S{i}" for i in range(count)],
            "fold": "0",
            "cancer": [f"CODE{i % 12}" for i in range(count)],
            "patient_seen": "no",
            "pcc_hvg": np.linspace(-0.1, 0.5, count),
        }
    )
    figure = plots.slide_bars(slides, 50)
    assert figure.get_size_inches()[1] < 40
    assert not figure.legends
    plots.save(figure, tmp_path / "bars.png")


def test_histogram_splits_off_the_variable_genes():
    genes = pd.DataFrame({"pcc": [0.1, 0.3, np.nan, 0.5], "hvg_folds": [0, 1, 1, 2]})
    figure = plots.pcc_histogram(genes)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["all genes: 3, mean 0.30", "highly variable genes: 2, mean 0.40"]
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 3
