"""Tissue of a small picture and the grid on it."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from histokit.core.errors import InputError
from histokit.extract.tissue import TissueMask, draw, find_tissue, grid, patch_names

SQUARE = [[20, 20], [60, 20], [60, 60], [20, 60], [20, 20]]
HOLE = [[30, 30], [40, 30], [40, 40], [30, 40], [30, 30]]


def section(width=200, height=160, box=(60, 40, 140, 120)):
    """A pink ellipse on glass, with noise."""
    image = Image.new("RGB", (width, height), (242, 241, 243))
    ImageDraw.Draw(image).ellipse(box, fill=(190, 110, 170))
    noise = np.random.default_rng(0).integers(-4, 5, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def ellipse(width=200, height=160, box=(60, 40, 140, 120)):
    y, x = np.mgrid[:height, :width] + 0.5
    left, top, right, bottom = box
    u, v = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    return u**2 + v**2 <= 1


def agreement(one, other):
    return (one & other).sum() / (one | other).sum()


def whole(mask):
    return TissueMask(np.asarray(mask, bool), "test")


# ---- what is seen ------------------------------------------------------------------------------


def test_a_section_on_glass_is_found():
    found = find_tissue(section())
    assert found.mask.shape == (160, 200)
    assert found.mask.dtype == bool
    assert agreement(found.mask, ellipse()) > 0.93
    assert found.share == pytest.approx(found.mask.mean())
    assert (found.method, found.said) == ("brightness and color (Otsu)", ())


@pytest.mark.parametrize("color", [(20, 40, 190), (20, 140, 60), (10, 10, 12)])
def test_pen_marks_are_no_tissue(color):
    picture = section()
    ImageDraw.Draw(picture).line([(10, 10), (190, 25)], fill=color, width=8)
    found = find_tissue(picture)
    assert agreement(found.mask, ellipse()) > 0.9
    assert not found.mask[14:21, 80:120].any()


def test_black_borders_are_no_tissue():
    pixels = np.array(section())
    pixels[:, :25] = pixels[:12] = 3
    assert agreement(find_tissue(Image.fromarray(pixels)).mask, ellipse()) > 0.93
    pixels[~ellipse()] = 0  # tissue cut out on black
    assert agreement(find_tissue(Image.fromarray(pixels)).mask, ellipse()) > 0.93


def test_specks_are_dropped_and_large_holes_kept():
    picture = section(400, 400, (100, 100, 300, 300))
    pen = ImageDraw.Draw(picture)
    pen.rectangle([20, 20, 22, 22], fill=(190, 110, 170))
    pen.ellipse([180, 180, 220, 220], fill=(242, 241, 243))
    pen.rectangle([140, 200, 142, 202], fill=(242, 241, 243))
    mask = find_tissue(picture).mask
    assert not mask[:60, :60].any()
    assert not mask[195:205, 195:205].any()
    assert mask[195:208, 135:148].all()


def test_a_picture_without_glass_and_one_without_tissue_are_told():
    colors = np.random.default_rng(0).integers((160, 90, 150), (190, 120, 180), (100, 100, 3))
    full = find_tissue(Image.fromarray(colors.astype(np.uint8)))
    assert full.share == 1
    assert "no glass was found" in full.method
    assert "100.0% of the picture counts as tissue" in full.said[0]
    empty = find_tissue(Image.new("RGB", (100, 100), (242, 241, 243)))
    assert empty.share == 0
    assert "0.0% of the picture counts as tissue" in empty.said[0]
    with pytest.raises(InputError, match="none of 100 squares"):
        grid(100, 100, 10, empty, 1.0)


# ---- what is given -----------------------------------------------------------------------------


def feature(kind, coordinates):
    properties = {"objectType": "annotation", "tissue_id": 0}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


TWO = feature("MultiPolygon", [[SQUARE, HOLE], [[[70, 0], [80, 0], [80, 10], [70, 10], [70, 0]]]])
FORMS = {
    "collection": {"type": "FeatureCollection", "features": [TWO]},
    "array": [TWO],
    "feature": TWO,
    "geometry": TWO["geometry"],
    "with points": [feature("Point", [1, 1]), TWO, {"type": "Feature", "geometry": None}],
    "two polygons": [
        feature("Polygon", TWO["geometry"]["coordinates"][0]),
        feature("Polygon", TWO["geometry"]["coordinates"][1]),
    ],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz"])
def test_polygons_are_filled_but_for_their_holes(tmp_path, form, suffix):
    path, content = tmp_path / f"a{suffix}", json.dumps(FORMS[form]).encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    expected = np.zeros((80, 100), bool)
    expected[20:60, 20:60], expected[30:40, 30:40], expected[:10, 70:80] = True, False, True
    found = find_tissue(Image.new("RGB", (100, 80)), path)
    np.testing.assert_array_equal(found.mask, expected)
    assert found.said == ()
    assert str(path) in found.method


def test_polygons_are_in_pixels_of_level_0(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(feature("Polygon", [[[4 * x, 4 * y] for x, y in SQUARE]])))
    found = find_tissue(Image.new("RGB", (100, 80)), path, 0.25)
    expected = np.zeros((80, 100), bool)
    expected[20:60, 20:60] = True
    np.testing.assert_array_equal(found.mask, expected)
    beyond = find_tissue(Image.new("RGB", (100, 80)), path, 1.0)
    assert "reach to 3.0 times the image's size" in beyond.said[0]


def test_overlapping_polygons_do_not_cut_each_other(tmp_path):
    path = tmp_path / "a.geojson"
    inner = [[25, 25], [45, 25], [45, 45], [25, 45], [25, 25]]
    path.write_text(json.dumps([feature("Polygon", [inner]), feature("Polygon", [SQUARE, HOLE])]))
    assert find_tissue(Image.new("RGB", (80, 80)), path).mask[20:60, 20:60].all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no Polygon"),
        ('{"type": "Feature", "geometry": {"type": "LineString", "coordinates": []}}', "holds no"),
        ('{"features": []}', "is not a whole GeoJSON of polygons"),
        ("{", "is not a whole GeoJSON of polygons"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], [NaN, 3], [3, 4]]]}', "are no numbers"),
    ],
)
def test_what_is_no_outline_is_refused(tmp_path, content, said):
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(InputError, match=said):
        find_tissue(Image.new("RGB", (80, 80)), tmp_path / "a.geojson")


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("size", [(50, 40), (100, 80), (401, 319)])
def test_nonzero_pixels_of_a_mask_image_are_tissue(tmp_path, mode, size):
    value = {"1": 1, "L": 1, "I;16": 300, "RGB": (0, 0, 1), "RGBA": (0, 0, 1, 255), "P": 2}[mode]
    empty = (0, 0, 0, 255) if mode == "RGBA" else 0
    mask = Image.new(mode, size, empty)
    mask.paste(value, (0, 0, size[0] // 2, size[1]))
    mask.save(tmp_path / "mask.png")
    found = find_tissue(Image.new("RGB", (100, 80)), tmp_path / "mask.png").mask
    assert found.shape == (80, 100)
    assert found[:, :50].all()
    assert not found[:, 50:].any()


def test_noise_of_a_jpeg_mask_is_no_tissue(tmp_path):
    mask = np.zeros((80, 100), np.uint8)
    mask[20:60, 20:53] = 255
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=40)
    found = find_tissue(Image.new("RGB", (100, 80)), tmp_path / "mask.jpg").mask
    np.testing.assert_array_equal(found, mask > 0)


def test_masks_that_do_not_fit_are_refused(tmp_path):
    Image.new("L", (90, 80)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="90 x 80 pixels, of another shape than the image"):
        find_tissue(Image.new("RGB", (100, 80)), tmp_path / "mask.png")
    (tmp_path / "mask.pkl").write_text("none")
    with pytest.raises(InputError, match="is not a whole mask image or GeoJSON"):
        find_tissue(Image.new("RGB", (100, 80)), tmp_path / "mask.pkl")
    Image.new("L", (100, 80)).save(tmp_path / "empty.png")
    assert "0.0% of" in find_tissue(Image.new("RGB", (100, 80)), tmp_path / "empty.png").said[0]


# ---- the grid ----------------------------------------------------------------------------------


def test_squares_come_row_by_row_with_their_centers_inside():
    centers = grid(100, 75, 30, None, 1.0)
    assert centers.dtype == np.float64
    expected = [[x, y] for y in (15, 45) for x in (15, 45, 75)]  # (105, 75) has its center outside
    np.testing.assert_array_equal(centers, expected)
    assert patch_names(centers, 30)[:4] == [
        "00000x00000",
        "00000x00001",
        "00000x00002",
        "00001x00000",
    ]
    assert len(grid(100, 76, 30, None, 1.0)) == 9


def test_shares_of_tissue_are_exact_at_any_scale():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 50)) < 0.5
    large = mask.repeat(8, axis=0).repeat(8, axis=1)  # level 0: scale 1/8
    for side in (5, 13, 20, 40, 64):
        for least in (0.3, 0.5, 0.6):
            every = grid(400, 320, side, None, 1.0)
            corners = (every - side / 2).astype(int)
            shares = [large[y : y + side, x : x + side].sum() / side**2 for x, y in corners]
            expected = every[np.array(shares) >= least]
            np.testing.assert_array_equal(grid(400, 320, side, whole(mask), 1 / 8, least), expected)


def test_a_square_smaller_than_a_pixel_takes_that_pixel():
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    centers = grid(400, 400, 50, whole(mask), 0.01)
    np.testing.assert_array_equal(centers, [[225, 125], [275, 125], [225, 175], [275, 175]])


def test_what_lies_outside_the_image_is_no_tissue():
    assert len(grid(50, 50, 30, whole(np.ones((50, 50))), 1.0, least=0.6)) == 3
    assert len(grid(50, 50, 30, whole(np.ones((50, 50))), 1.0, least=0.4)) == 4


def test_no_square_is_an_error_that_says_how_near_it_was():
    mask = np.zeros((100, 100), bool)
    mask[:10, :40] = True
    said = r"none of 4 squares of 50 .* 50% tissue \(the best has 16%; .*--mask, .*--no-mask.*-um"
    with pytest.raises(InputError, match=said):
        grid(100, 100, 50, whole(mask), 1.0)
    with pytest.raises(InputError, match="has no room for a square of 300"):
        grid(100, 100, 300, None, 1.0)


def test_outline_and_squares_are_drawn():
    picture, mask = section(), whole(ellipse())
    centers = grid(400, 320, 40, mask, 0.5)
    drawn = np.asarray(draw(picture, mask, centers, 40, 0.5)).astype(int)
    assert drawn.shape == (160, 200, 3)
    changed = (drawn != np.asarray(picture)).any(axis=2)
    x, y = (centers[0] * 0.5).astype(int)
    assert drawn[y - 10, x].tolist() == [0, 114, 178]
    assert not changed[y, x]
    assert (drawn.sum(axis=2) == 0).sum() > 100
    assert not changed[:30].any()
    assert (np.asarray(draw(picture, None, centers[:1], 40, 0.5)) != 0).any()
