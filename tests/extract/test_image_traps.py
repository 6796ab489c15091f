"""Images as people have them: one rule for each kind of pixel, no tile black by accident."""

import shutil

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image
from tiny_slides import picture, write_cohort

import run_extract
from histokit.core.errors import InputError
from histokit.extract import images
from histokit.extract.images import naming, open_image
from histokit.extract.patches import PixelStatistics
from histokit.extract.pixels import brightness_scale

TILED = {"tile": (64, 64), "photometric": "rgb"}
PIXELS = picture(side=256)


def whole(path):
    image = open_image(path)
    with naming(path):
        return image.read(0, 0, image.width, image.height)


def save(path, pixels=PIXELS, **options):
    tifffile.imwrite(path, pixels, **(TILED | options))
    return path


@pytest.mark.parametrize(
    "compression", [None, "zlib", "lzw", "zstd", "lzma", "packbits", "jpeg2000", "png", "webp"]
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiles_of_every_compression_are_read_as_they_were_saved(tmp_path, compression, planar):
    if planar == "separate" and compression in ("png", "webp"):
        pytest.skip("these hold all colors of a tile")
    arguments = {"lossless": True} if compression == "webp" else None
    if compression == "jpeg2000":
        arguments = {"reversible": True, "level": 0}
    options = {"compression": compression, "compressionargs": arguments}
    pixels = PIXELS if planar == "contig" else np.moveaxis(PIXELS, 2, 0)
    path = save(tmp_path / "a.tif", pixels, planarconfig=planar, **options)
    np.testing.assert_array_equal(whole(path), PIXELS)


@pytest.mark.parametrize("compression", ["zstd", "lzma", "jpeg2000"])
def test_strips_of_rare_compressions_are_read(tmp_path, compression):
    arguments = {"reversible": True, "level": 0} if compression == "jpeg2000" else None
    options = {"photometric": "rgb", "rowsperstrip": 32, "compressionargs": arguments}
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, compression=compression, **options)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), PIXELS)


def test_jpeg_tiles_equal_those_of_another_decoder(tmp_path):
    path = tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(PIXELS).copy(interpretation="srgb")
    image.tiffsave(str(path), tile=True, compression="jpeg", Q=90, pyramid=True)
    other = pyvips.Image.new_from_file(str(path)).numpy()
    assert np.abs(whole(path).astype(int) - other).max() <= 2
    small = np.asarray(open_image(path).thumbnail(64)).astype(int)
    assert small.shape == (64, 64, 3)
    assert np.abs(small - np.asarray(Image.fromarray(PIXELS).resize((64, 64)))).mean() < 8


def test_the_cases_of_real_users_are_read(shared):
    folder = shared / "cases" / "tiled-tiff-undecodable" / "images"
    for path in folder.glob("*.tif"):
        pixels = whole(path)
        assert pixels.max() > 100
        assert (pixels.max(axis=2) <= 6).mean() < 0.01


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", None])
def test_a_file_cut_behind_its_directory_is_refused_before_it_is_read(tmp_path, compression):
    path = save(tmp_path / "a.tif", compression=compression)
    content = path.read_bytes()  # tifffile writes the directory in front
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match="tiles lie beyond the end of the file; it was cut short"):
        open_image(path)


def test_real_cut_files_are_refused(shared):
    cases = shared / "cases"
    for path in ("tiled-tiff-cut-short/images/S1.tif", "fuzz-tiff-tile-offset/e.tif"):
        with pytest.raises(InputError, match="beyond the end of the file"):
            open_image(cases / path)


def test_a_damaged_tile_is_an_error_and_not_black(tmp_path):
    path = save(tmp_path / "a.tif", compression="zlib")
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[start + 20 : start + 60] = b"\0" * 40
    path.write_bytes(content)
    image = open_image(path)
    np.testing.assert_array_equal(image.read(0, 0, 64, 64), PIXELS[:64, :64])
    with pytest.raises(InputError, match="tile 5 cannot be decoded"):
        image.read(64, 64, 64, 64)


def test_a_tile_that_was_never_written_is_glass(tmp_path):
    path = save(tmp_path / "a.tif", compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = list(file.pages[0].databytecounts)
        counts[5] = 0
        file.pages[0].tags["TileByteCounts"].overwrite(counts)
    pixels = whole(path)
    expected = PIXELS.copy()
    expected[64:128, 64:128] = 255
    np.testing.assert_array_equal(pixels, expected)
    assert np.asarray(open_image(path).thumbnail(256))[70:120, 70:120].min() == 255


# ---- kinds of pixels ---------------------------------------------------------------------------


def kinds():
    """Name, pixels as stored, and the eight-bit pixels that they mean."""
    wide = PIXELS.astype(np.uint16)
    yield "eight bits in sixteen", wide, PIXELS
    yield "twelve bits", wide * 16, PIXELS
    yield "sixteen bits", wide * 257, PIXELS
    yield "signed", PIXELS.astype(np.int16), PIXELS
    yield "float to 255", PIXELS.astype(np.float32), PIXELS
    yield "float to 1", PIXELS.astype(np.float32) / 255, PIXELS
    yield "double to 255", PIXELS.astype(np.float64), PIXELS


@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize(
    ("name", "stored", "meant"), list(kinds()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_kind_of_pixel_is_converted_by_one_rule(tmp_path, name, stored, meant, layout):
    options = {"photometric": "rgb"} | (TILED if layout == "tiles" else {})
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    assert np.abs(whole(tmp_path / "a.tif").astype(int) - meant).max() <= 1


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (PIXELS.astype(np.int16) - 200, "negative pixels"),
        (np.where(PIXELS > 150, np.nan, PIXELS).astype(np.float32), "not finite"),
        (PIXELS.astype(np.float32) * 1e6, "holds pixels up to"),
    ],
)
@pytest.mark.parametrize("layout", ["tiles", "strips"])
def test_what_is_no_brightness_is_refused(tmp_path, stored, said, layout):
    options = {"photometric": "rgb"} | (TILED if layout == "tiles" else {})
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    with pytest.raises(InputError, match=said):
        whole(tmp_path / "a.tif")


def test_brightest_values_tell_the_depth():
    for high, scale in ((255, 1), (256, 1 / 4), (1023, 1 / 4), (4095, 1 / 16), (65535, 1 / 256)):
        assert brightness_scale(np.dtype(np.uint16), 0, high, "a") == scale


@pytest.mark.parametrize("layout", ["tiles", "strips", "png"])
def test_alpha_mixes_with_white_unless_it_is_zero_everywhere(tmp_path, layout):
    alpha = np.zeros((256, 256, 1), np.uint8)
    for opaque in (False, True):
        if opaque:
            alpha[:100], alpha[100:200] = 255, 128
        pixels, path = np.concatenate([PIXELS, alpha], axis=2), tmp_path / f"{opaque}.tif"
        if layout == "png":
            path = path.with_suffix(".png")
            Image.fromarray(pixels).save(path)
        else:
            options = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
            tifffile.imwrite(
                path, pixels, **options, **({"tile": (64, 64)} if layout == "tiles" else {})
            )
        found = whole(path).astype(int)
        if not opaque:
            np.testing.assert_array_equal(found, PIXELS)
            continue
        np.testing.assert_array_equal(found[:100], PIXELS[:100])
        half = PIXELS[100:200] * (128 / 255) + 255 * (127 / 255)
        assert np.abs(found[100:200] - half).max() <= 1
        assert (found[200:] == 255).all()


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("ome", [True, False])
def test_colors_as_three_pages_are_red_green_and_blue(tmp_path, ome, tile):
    path = tmp_path / ("a.ome.tif" if ome else "a.tif")
    planes = np.moveaxis(PIXELS, 2, 0)
    options = {"photometric": "minisblack", "tile": tile}
    if ome:
        options |= {"ome": True, "metadata": {"axes": "CYX"}}
    tifffile.imwrite(path, planes, **options)
    np.testing.assert_array_equal(whole(path), PIXELS)


def test_other_stacks_are_refused(tmp_path):
    stack = np.repeat(PIXELS[None, ..., 0], 5, axis=0)
    options = {"photometric": "minisblack", "tile": (64, 64), "metadata": {"axes": "CYX"}}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, ome=True, **options)
    with pytest.raises(InputError, match="has the axes CYX"):
        open_image(tmp_path / "a.ome.tif")


def test_real_users_pixels(shared):
    folder = shared / "cases" / "image-range" / "images"
    for path in sorted(folder.glob("S*.tif")):
        pixels = whole(path)
        assert 60 < pixels.mean() < 250, path.name
        assert (np.ptp(pixels, axis=2) > 2).mean() > 0.5, path.name


@pytest.mark.parametrize("suffix", ["bmp", "jp2", "webp", "png"])
def test_formats_of_the_readme_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"irreversible": False} if suffix == "jp2" else {}
    Image.fromarray(PIXELS).save(path, **options | ({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(whole(path), PIXELS)
    assert open_image(path).thumbnail(64).size == (64, 64)


# ---- damage and size ---------------------------------------------------------------------------


def test_damaged_jpeg_data_are_an_error(shared, real_data):
    folder = shared / "cases" / "fuzz-jpeg-damage"
    assert whole(folder / "whole.jpg").mean() > 50
    with pytest.raises(InputError, match="Corrupt JPEG data"):
        whole(folder / "a.jpg")


def test_damaged_bytes_inside_a_jpeg_are_noticed(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(side=512)).save(path, quality=90)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 512] = b"\0" * 512
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read to its end"):
        whole(path)


def test_sizes_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "LARGEST_UNTILED", 1000)
    with pytest.raises(InputError, match="without tiles, more than is decoded at once"):
        open_image(tmp_path / "a.png")


def test_an_empty_file_and_a_foreign_one_are_named(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        open_image(tmp_path / "a.tif")
    (tmp_path / "a.jpg").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="in no known format"):
        open_image(tmp_path / "a.jpg")


def extract(tmp_path, image, **options):
    source = write_cohort(tmp_path / "in", slides=("a",))
    shutil.copy(image, source / "a.png")
    out = tmp_path / "out"
    run_extract.main(
        run_extract.Options(source=str(source), out=str(out), encoder="hed", **options)
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [("black", "% of the pixels at the spots are black"), ("gray", "the image is gray"),
     ("white", "% of the pixels at the spots are white"),
     ("turned", "the orientation 6")],
)  # fmt: skip
def test_what_no_stained_slide_looks_like_stops_extraction(tmp_path, kind, said):
    pixels = {
        "black": np.zeros((400, 400, 3), np.uint8),
        "white": np.full((400, 400, 3), 255, np.uint8),
        "gray": np.repeat(picture()[..., :1], 3, axis=2),
        "turned": picture(),
    }[kind]
    exif = Image.Exif()
    if kind == "turned":
        exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    with pytest.raises(InputError, match=said):
        extract(tmp_path, tmp_path / "image.png")
    extract(tmp_path, tmp_path / "image.png", allow_misfit=True)


def test_shares_of_black_white_and_gray_are_counted():
    patches = np.zeros((4, 10, 10, 3), np.uint8)
    patches[1:] = 255
    patches[2:] = (200, 100, 150)
    patches[3, :5] = 128
    seen = PixelStatistics()
    for patch in patches:
        seen.add(patch[None])
    assert seen.shares() == {"black": 0.25, "white": 0.25, "gray": 0.625}
    assert seen.faults() == []
    assert seen.findings() == [
        "25% of the pixels at the spots are black", "62% of the pixels at the spots are gray",
    ]  # fmt: skip
