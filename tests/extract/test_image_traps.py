"""Images as people have them: one rule for each kind of pixel, no tile black by accident."""

import shutil
import tracemalloc

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from PIL import Image, ImageOps
from tiny_slides import picture, write_cohort

import run_extract
from histokit.core.errors import InputError
from histokit.extract import images, tiffs
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


PLANES = np.moveaxis(PIXELS, 2, 0)
GRAY = np.repeat(PIXELS[..., :1], 3, axis=2)
PAGES = {"photometric": "minisblack", "tile": (64, 64), "ome": True}


@pytest.mark.parametrize(
    ("pixels", "axes", "meant"),
    [
        (PLANES, "CYX", PIXELS), (PIXELS, "YXS", PIXELS), (PLANES[None, :, None], "TCZYX", PIXELS),
        (PIXELS[None, None], "TZYXS", PIXELS), (PIXELS[None, None, ..., 0], "CZYX", GRAY),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bigtiff", [False, True])
def test_axes_of_ome_files_keep_their_colors(tmp_path, pixels, axes, meant, bigtiff):
    options = PAGES | ({"photometric": "rgb"} if axes.endswith("S") else {})
    about = {"axes": axes}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=about, bigtiff=bigtiff, **options)
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.tif"), meant)


def test_planar_tiles_of_an_ome_file_which_libvips_refuses(tmp_path):
    path, about = tmp_path / "a.ome.tif", {"axes": "SYX"}
    options = TILED | {"planarconfig": "separate"}
    tifffile.imwrite(path, PLANES, ome=True, metadata=about, **options)
    with pytest.raises(pyvips.Error):
        pyvips.Image.new_from_file(str(path)).numpy()
    np.testing.assert_array_equal(whole(path), PIXELS)


@pytest.mark.parametrize("kind", ["pages", "pixels"])
def test_levels_in_sub_directories_are_levels(tmp_path, kind):
    path = tmp_path / "a.ome.tif"
    pixels, options = (PLANES, PAGES) if kind == "pages" else (PIXELS, TILED)
    options = {key: value for key, value in options.items() if key != "ome"}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        axes = "CYX" if kind == "pages" else "YXS"
        file.write(pixels, subifds=2, metadata={"axes": axes}, **options)
        for step in (2, 4):
            half = pixels[:, ::step, ::step] if kind == "pages" else pixels[::step, ::step]
            file.write(half, subfiletype=1, **options)
    np.testing.assert_array_equal(whole(path), PIXELS)
    small = np.asarray(open_image(path).thumbnail(64))
    np.testing.assert_array_equal(small, PIXELS[::4, ::4])


def test_the_largest_image_is_read_and_not_the_macro(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, pixels in (("label", 255 - PIXELS), ("slide", PIXELS[:192]), ("map", GRAY[:64])):
            file.write(pixels, metadata={"axes": "YXS", "Name": name}, photometric="rgb")
    np.testing.assert_array_equal(whole(path), PIXELS[:192])


def test_colors_in_several_files_are_refused(tmp_path):
    names = ("a.ome.tif", "b.ome.tif", "c.ome.tif")
    text = '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
    text += 'Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="Image:0"><Pixels ID="Pixels:0" '
    text += 'DimensionOrder="XYCZT" Type="uint8" SizeX="256" SizeY="256" SizeC="3" SizeZ="1" '
    text += 'SizeT="1">' + "".join(f'<Channel ID="Channel:0:{c}"/>' for c in range(3))
    for c, name in enumerate(names):
        text += f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        text += f"urn:uuid:{c}</UUID></TiffData>"
    text += "</Pixels></Image></OME>"
    for c, name in enumerate(names):
        about = text.replace('UUID="urn:uuid:0"', f'UUID="urn:uuid:{c}"')
        options = {"photometric": "minisblack", "metadata": None, "description": about}
        tifffile.imwrite(tmp_path / name, PLANES[c], **options)
    with pytest.raises(InputError, match="one of several files that hold the colors"):
        open_image(tmp_path / "a.ome.tif")
    (tmp_path / "c.ome.tif").unlink()
    with pytest.raises(InputError, match="lacks some of its color pages"):
        open_image(tmp_path / "a.ome.tif")


@pytest.mark.parametrize(
    "names",
    [("DAPI", "FITC", "Cy3"), ("Hoechst 33342", "Alexa Fluor 488", "Cy5.5"), ("Opal 520", "af647",
      "TRITC")],
)  # fmt: skip
def test_fluorescence_is_refused_by_its_channels(tmp_path, names):
    about = {"axes": "CYX", "Channel": {"Name": list(names)}}
    tifffile.imwrite(tmp_path / "a.ome.tif", PLANES, metadata=about, **PAGES)
    with pytest.raises(InputError, match=f"fluorescence channels {', '.join(names)}; give the bri"):
        open_image(tmp_path / "a.ome.tif")


def test_color_pages_with_names_of_colors_are_read(tmp_path):
    about = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", PLANES, metadata=about, **PAGES)
    np.testing.assert_array_equal(whole(tmp_path / "a.ome.tif"), PIXELS)


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_channels_of_one_page_that_are_no_colors_are_refused(tmp_path, channels, tile):
    pixels = np.repeat(PIXELS[..., :1], channels, axis=2)
    options = {"photometric": "minisblack", "planarconfig": "contig", "tile": tile}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(InputError, match=f"{channels} channels that are not said to be RGB"):
        open_image(tmp_path / "a.tif")


# ---- color spaces ------------------------------------------------------------------------------


def palette(side=256):
    """Palette pixels (side, side), the map (3, 256) of 16 bits, and the colors that they mean."""
    image = Image.fromarray(PIXELS).quantize(64)
    colors = np.zeros((256, 3), np.uint16)
    listed = np.array(image.getpalette()).reshape(-1, 3)
    colors[: len(listed)] = listed
    return np.asarray(image), colors.T * 257, np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [{}, {"tile": (64, 64)}, {"compression": "zstd"}, {"compression": "lzma", "tile": (64, 64)}],
)
@pytest.mark.parametrize("low", [False, True])
def test_palettes_are_looked_up(tmp_path, options, low):
    stored, colors, meant = palette()
    colors = colors // 257 if low else colors  # some writers fill eight bits alone
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="palette", colormap=colors, **options)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), meant)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palettes_of_pillow_are_looked_up(tmp_path, suffix):
    image = Image.fromarray(PIXELS).quantize(64)
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(whole(tmp_path / f"a.{suffix}"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}, {"compression": "zstd"}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_that_is_zero_is_inverted(tmp_path, options, dtype):
    most = np.iinfo(dtype).max
    stored = most - PIXELS[..., 0].astype(dtype) * (most // 255)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", **options)
    assert np.abs(whole(tmp_path / "a.tif").astype(int) - GRAY).max() <= 1


@pytest.mark.parametrize("kind", ["a.png", "a.tif", "tiled.tif", "white.tif"])
def test_one_bit_is_black_or_white(tmp_path, kind):
    bits = PIXELS[..., 0] > 150
    if kind.startswith("a."):
        Image.fromarray(bits).save(tmp_path / kind)
    elif kind == "white.tif":
        tifffile.imwrite(tmp_path / kind, ~bits, photometric="miniswhite", tile=(64, 64))
    else:
        tifffile.imwrite(tmp_path / kind, bits, photometric="minisblack", tile=(64, 64))
    np.testing.assert_array_equal(whole(tmp_path / kind)[..., 1], bits * 255)


def test_gray_stays_gray_and_sixteen_bits_of_a_png_become_eight(tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(whole(tmp_path / "gray.png"), GRAY)
    alpha = np.dstack([PIXELS[..., 0], np.full((256, 256), 255, np.uint8)])
    for suffix in ("png", "tif"):
        Image.fromarray(alpha, "LA").save(tmp_path / f"la.{suffix}")
        np.testing.assert_array_equal(whole(tmp_path / f"la.{suffix}"), GRAY)
    wide = pyvips.Image.new_from_array(PIXELS.astype(np.uint16) * 257)
    wide.copy(interpretation="rgb16").pngsave(str(tmp_path / "wide.png"))
    np.testing.assert_array_equal(whole(tmp_path / "wide.png"), PIXELS)


def test_colors_that_were_multiplied_by_alpha_are_not_again(tmp_path):
    alpha = np.full((256, 256, 1), 128, np.uint8)
    stored = np.concatenate([(PIXELS * (128 / 255)).astype(np.uint8), alpha], axis=2)
    for extra in ("assocalpha", "unassalpha"):
        options = TILED | {"extrasamples": [extra]}
        pixels = stored if extra == "assocalpha" else np.concatenate([PIXELS, alpha], axis=2)
        tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
        half = PIXELS * (128 / 255) + 127
        assert np.abs(whole(tmp_path / "a.tif").astype(int) - half).max() <= 2


@pytest.mark.parametrize("kind", ["a.jpg", "a.tif", "tiled.tif"])
def test_inks_are_refused(tmp_path, kind):
    inks = Image.fromarray(PIXELS).convert("CMYK")
    if kind == "tiled.tif":
        tifffile.imwrite(tmp_path / kind, np.asarray(inks), photometric="separated", tile=(64, 64))
    else:
        inks.save(tmp_path / kind)
    with pytest.raises(InputError, match="holds CMYK colors; save it as 8-bit RGB"):
        open_image(tmp_path / kind)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"photometric": "cielab"}, "holds CIELAB colors"),
        ({"photometric": "ycbcr", "compression": "zlib"}, "holds YCbCr pixels without JPEG"),
        ({"photometric": "rgb", "compression": 33003}, "holds YCbCr pixels without JPEG"),
    ],
)
def test_other_color_spaces_are_refused(tmp_path, options, said):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, tile=(64, 64), **options)
    with pytest.raises(InputError, match=said):
        open_image(tmp_path / "a.tif")


def test_gray_of_four_bits_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS[:, :128, 0])
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["ImageWidth"].overwrite(256)
        file.pages[0].tags["BitsPerSample"].overwrite(4)
    with pytest.raises(InputError, match="gray levels of 4 bits"):
        open_image(tmp_path / "a.tif")


# ---- orientation -------------------------------------------------------------------------------


def turned_file(path, orientation, pixels):
    """An image with an orientation tag; suffixes ``tiled.tif`` and ``strips.tif`` tell layouts."""
    if path.name == "tiled.tif":
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), extratags=tag)
    elif path.name == "strips.tif":
        Image.fromarray(pixels).save(path, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        lossless = {"lossless": True} if path.suffix == ".webp" else {}
        Image.fromarray(pixels).save(path, exif=exif, **lossless)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "tiled.tif", "strips.tif"])
def test_images_are_turned_as_viewers_do(tmp_path, name, orientation):
    path = turned_file(tmp_path / name, orientation, PIXELS[:200, :240])
    with Image.open(path) as viewed:
        assert viewed.getexif()[274] == orientation
        upright = np.asarray(ImageOps.exif_transpose(viewed))
    image = open_image(path)
    assert (image.orientation, image.turned_from) == (1, orientation)
    height, width = upright.shape[:2]
    assert (image.width, image.height) == (width, height)
    allowed = 6 if name == "a.jpg" else 0  # two decoders of JPEG
    corners = [(0, 0), (width - 50, 0), (0, height - 30), (width - 50, height - 30), (61, 67)]
    for x, y in corners:
        window = image.read(x, y, 50, 30)
        assert window.shape == (30, 50, 3)
        difference = np.abs(window.astype(int) - upright[y : y + 30, x : x + 50])
        assert difference.max() <= allowed
    small = image.thumbnail(60)
    assert small.size == ((60, 50) if orientation < 5 else (50, 60))
    expected = np.asarray(Image.fromarray(upright).resize(small.size, Image.Resampling.BOX))
    assert np.abs(np.asarray(small).astype(int) - expected).mean() < 6


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_means_nothing_turns_nothing(tmp_path, orientation):
    path = turned_file(tmp_path / "tiled.tif", orientation, PIXELS)
    np.testing.assert_array_equal(whole(path), PIXELS)


def test_spots_lie_on_the_turned_image(tmp_path):
    turned_file(tmp_path / "a.png", 6, picture())
    extract(tmp_path, tmp_path / "a.png")


# ---- names that lie ----------------------------------------------------------------------------


def aperio(path, pixels=PIXELS, **options):
    text = "Aperio Image Library v11.2.1 \r\n256x256 [0,0 256x256] (64x64) JPEG/RGB Q=30|MPP = 0.5"
    return save(path, pixels, description=text, metadata=None, software=False, **options)


@pytest.mark.parametrize("name", ["a.svs", "a.tif"])
def test_jpeg_2000_of_aperio_is_read_by_openslide_whatever_the_name(tmp_path, name):
    code = {"reversible": True, "level": 0}
    path = aperio(tmp_path / name, compression=33005, compressionargs=code)
    assert openslide.OpenSlide.detect_format(str(path)) == "aperio"
    np.testing.assert_array_equal(whole(path), PIXELS)
    coded = np.asarray(Image.fromarray(PIXELS).convert("YCbCr"))
    path = aperio(tmp_path / name, coded, compression=33003, compressionargs=code | {"mct": False})
    assert np.abs(whole(path).astype(int) - PIXELS).max() <= 3


@pytest.mark.parametrize("name", ["a.tif", "a.svs", "a.dcm", "a.bmp", "a.ndpi", "a.jp2"])
@pytest.mark.parametrize("kind", ["png", "tiles", "strips", "jp2", "bmp"])
def test_the_content_tells_the_format(tmp_path, name, kind):
    path = tmp_path / name
    if kind in ("tiles", "strips"):
        tifffile.imwrite(
            path, PIXELS, photometric="rgb", tile=(64, 64) if kind == "tiles" else None
        )
    else:
        options = {"irreversible": False} if kind == "jp2" else {}
        Image.fromarray(PIXELS).save(tmp_path / f"true.{kind}", **options)
        shutil.copy(tmp_path / f"true.{kind}", path)
    np.testing.assert_array_equal(whole(path), PIXELS)


def test_what_is_no_image_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "slide.dcm").mkdir()
    with pytest.raises(InputError, match=r"is a folder where an image was expected; of a DICOM"):
        open_image(tmp_path / "slide.dcm")
    (tmp_path / "a.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "a.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    )
    Image.fromarray(PIXELS).save(tmp_path / "a.gif")
    for name in ("a.csv", "a.svg", "a.gif"):
        with pytest.raises(InputError, match=r"in no (known format|format that is read)"):
            open_image(tmp_path / name)


# ---- thumbnails --------------------------------------------------------------------------------


def unwritten(side):
    """Tiles without bytes."""
    return (b"" for _ in range((-(-side // 256)) ** 2))


def test_the_thumbnail_of_a_huge_image_comes_from_a_small_level(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    options = {"dtype": np.uint8, "photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    small = np.asarray(Image.fromarray(PIXELS).resize((3750, 3750)))
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(unwritten(60_000), shape=(60_000, 60_000, 3), subifds=2, **options)
        file.write(unwritten(15_000), shape=(15_000, 15_000, 3), subfiletype=1, **options)
        del options["dtype"]
        file.write(small, subfiletype=1, **options)
    image = open_image(path)
    assert (image.width, image.height) == (60_000, 60_000)
    read, read_from = tiffs._Level.read, set()

    def noted(level, *window):
        read_from.add(level.width)
        return read(level, *window)

    monkeypatch.setattr(tiffs._Level, "read", noted)
    found = np.asarray(image.thumbnail(1600)).astype(int)
    assert read_from == {3750}
    expected = np.asarray(Image.fromarray(small).resize((1600, 1600)))
    assert np.abs(found - expected).mean() < 3


def test_the_thumbnail_of_an_image_without_levels_takes_little_memory(tmp_path):
    options = {"dtype": np.uint8, "photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    side = 12_000  # 432 MB of pixels
    tifffile.imwrite(tmp_path / "a.tif", unwritten(side), shape=(side, side, 3), **options)
    image = open_image(tmp_path / "a.tif")
    tracemalloc.start()
    try:
        assert image.thumbnail(800).size == (800, 800)
        assert tracemalloc.get_traced_memory()[1] < 110e6
    finally:
        tracemalloc.stop()


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
     ("white", "% of the pixels at the spots are white")],
)  # fmt: skip
def test_what_no_stained_slide_looks_like_stops_extraction(tmp_path, kind, said):
    pixels = {
        "black": np.zeros((400, 400, 3), np.uint8),
        "white": np.full((400, 400, 3), 255, np.uint8),
        "gray": np.repeat(picture()[..., :1], 3, axis=2),
    }[kind]
    Image.fromarray(pixels).save(tmp_path / "image.png")
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
