"""Microns per pixel: which value of an image is right, and which is said to be wrong."""

import h5py
import numpy as np
import openslide
import pytest
import pyvips
import tifffile
from PIL import Image
from tiny_slides import picture

from histokit.core.errors import InputError
from histokit.extract.resolution import image_scale, resolve

PIXELS = picture(side=128)
VENDOR, OME, TAGS = "vendor's key (aperio)", "OME-XML PhysicalSizeX", "TIFF resolution tags"


def tagged(path, x, y=None, unit="CENTIMETER"):
    """A tiled TIFF whose tags hold ``x`` and ``y`` pixels for each unit."""
    options = {"photometric": "rgb", "tile": (64, 64), "resolutionunit": unit}
    tifffile.imwrite(path, PIXELS, resolution=(x, y or x), **options)
    return path


def without(path):
    """The same file with resolutions of 0/0."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for axis in "XY":
            file.pages[0].tags[f"{axis}Resolution"].overwrite((0, 0))
    return path


def ome(path, size, unit=None, y=None, tag_unit="NONE", tag=1):
    """An OME-TIFF of three gray pages."""
    about = {"axes": "CYX", "PhysicalSizeX": size, "PhysicalSizeY": size if y is None else y}
    if unit:
        about |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    planes, options = np.moveaxis(PIXELS, 2, 0), {"photometric": "minisblack", "tile": (64, 64)}
    options |= {"resolution": (tag, tag), "resolutionunit": tag_unit}
    tifffile.imwrite(path, planes, ome=True, metadata=about, **options)
    return path


def aperio(path, mpp, x=None, unit="CENTIMETER"):
    text = "Aperio Image Library v11.2.1 \r\n128x128 [0,0 128x128] (64x64) JPEG/RGB Q=30"
    text += "|AppMag = 20" + (f"|MPP = {mpp}" if mpp else "")
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "jpeg", "metadata": None}
    if x:
        options |= {"resolution": (x, x), "resolutionunit": unit}
    tifffile.imwrite(path, PIXELS, description=text, software=False, **options)
    return path


def vips(path, **options):
    pyvips.Image.new_from_array(PIXELS).write_to_file(str(path), **options)
    return path


def pillow(path, **options):
    Image.fromarray(PIXELS).save(path, **options)
    return path


# how the file is made; then mpp and source if nothing else is known, and why the rest is rejected
CASES = {
    "centimeter": (lambda p: tagged(p / "a.tif", 20_000), 0.5, TAGS, ""),
    "inch": (lambda p: tagged(p / "a.tif", 50_800, unit="INCH"), 0.5, TAGS, ""),
    "a fraction": (lambda p: tagged(p / "a.tif", (80_000, 3)), 0.375, TAGS, ""),
    "no unit": (lambda p: tagged(p / "a.tif", 20_000, unit="NONE"), None, "", ""),
    "zero": (lambda p: tagged(p / "a.tif", (0, 1)), None, "", ""),
    "zero by zero": (lambda p: without(tagged(p / "a.tif", 1)), None, "", ""),
    "72 dpi": (lambda p: tagged(p / "a.tif", 72, unit="INCH"), None, "", "72 dpi, a printing"),
    "96 dpi": (lambda p: tagged(p / "a.tif", 96, unit="INCH"), None, "", "96 dpi, a printing"),
    "300 dpi in cm": (lambda p: tagged(p / "a.tif", 118.11), None, "", "300 dpi, a printing"),
    "600 dpi": (lambda p: tagged(p / "a.tif", 600, unit="INCH"), None, "", "600 dpi, a printing"),
    "1 um": (lambda p: tagged(p / "a.tif", 10_000), None, "", "a placeholder"),
    "10 um": (lambda p: tagged(p / "a.tif", 1_000), None, "", "a placeholder"),
    "0.353": (lambda p: tagged(p / "a.tif", 28_346), None, "", "72 dpi with the inch taken"),
    "0.265": (lambda p: tagged(p / "a.tif", 37_795), None, "", "96 dpi with the inch taken"),
    "a scanner of 0.263": (lambda p: tagged(p / "a.tif", 38_000), 1 / 3.8, TAGS, ""),
    "a tenth": (lambda p: tagged(p / "a.tif", 200_000), None, "", "outside 0.08 to 5 um"),
    "wrong x, good y": (lambda p: tagged(p / "a.tif", 1, 20_000), None, "", "x 0.5 um of"),
    "vips without tags": (lambda p: vips(p / "a.tif", tile=True), None, "", "a placeholder"),
    "vips from a PNG": (
        lambda p: vips(p / "a.tif", tile=True, pyramid=True, xres=72 / 25.4, yres=72 / 25.4),
        None, "", "72 dpi, a printing",
    ),
    "vips for 0.5": (
        lambda p: vips(p / "a.tif", tile=True, xres=2000, yres=2000, resunit="cm"), 0.5, TAGS, "",
    ),
    "Pillow without tags": (lambda p: pillow(p / "a.tif"), None, "", ""),
    "PNG of 72 dpi": (lambda p: pillow(p / "a.png", dpi=(72, 72)), None, "", ""),
    "JPEG of 96 dpi": (lambda p: pillow(p / "a.jpg", dpi=(96, 96)), None, "", ""),
    "OME without unit": (lambda p: ome(p / "a.ome.tif", 0.5), 0.5, OME, ""),
    "OME in nm": (lambda p: ome(p / "a.ome.tif", 273.8, "nm"), 0.2738, OME, ""),
    "OME in mm": (lambda p: ome(p / "a.ome.tif", 0.0005, "mm"), 0.5, OME, ""),
    "OME in um, ASCII": (lambda p: ome(p / "a.ome.tif", 0.5, "um"), 0.5, OME, ""),
    "OME, micro sign": (lambda p: ome(p / "a.ome.tif", 0.25, "\u00b5m"), 0.25, OME, ""),
    "OME, Greek mu": (lambda p: ome(p / "a.ome.tif", 0.25, "\u03bcm"), 0.25, OME, ""),
    "OME of 1 um": (lambda p: ome(p / "a.ome.tif", 1.0), 1.0, OME, ""),
    "OME in pixels": (lambda p: ome(p / "a.ome.tif", 1.0, "pixel"), None, "", "unit is 'pixel'"),
    "OME and a wrong tag": (
        lambda p: ome(p / "a.ome.tif", 0.5, tag=300, tag_unit="INCH"), 0.5, OME, "300 dpi",
    ),
    "OME and another tag": (
        lambda p: ome(p / "a.ome.tif", 0.5, tag=40_000, tag_unit="CENTIMETER"),
        0.5, OME, "0.25 um of the TIFF resolution tags: not the 0.5 um in use",
    ),
    "Aperio": (lambda p: aperio(p / "a.svs", 0.4990), 0.499, VENDOR, ""),
    "Aperio as .tif": (lambda p: aperio(p / "a.tif", 0.4990), 0.499, VENDOR, ""),
    "Aperio of 1 um": (lambda p: aperio(p / "a.svs", 1.0), 1.0, VENDOR, ""),
    "Aperio, 72 dpi": (
        lambda p: aperio(p / "a.svs", 0.25, 72, "INCH"), 0.25, VENDOR, "72 dpi, a printing",
    ),
    "Aperio without MPP": (lambda p: aperio(p / "a.svs", None, 20_000), 0.5, TAGS, ""),
    "Aperio in mm": (lambda p: aperio(p / "a.svs", 0.0005), None, "", "outside 0.08 to 5 um"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_an_image_says_by_itself(tmp_path, case):
    make, mpp, source, rejected = CASES[case]
    found = resolve(make(tmp_path), None, None, "")
    assert found.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
    assert found.source == source
    assert rejected in "; ".join(found.rejected)
    assert bool(rejected) == bool(found.rejected)


def test_openslide_would_take_the_placeholder(tmp_path):
    path = vips(tmp_path / "a.tif", tile=True, pyramid=True)
    stated = openslide.OpenSlide(str(path)).properties["openslide.mpp-x"]
    assert float(stated) == pytest.approx(1000, rel=1e-3)
    assert resolve(path, None, None, "").mpp is None


def test_candidates_come_in_the_order_of_trust(tmp_path):
    found = image_scale(aperio(tmp_path / "a.svs", 0.5, 40_000))
    assert [(one.source, one.mpp_x, one.mpp_y) for one in found] == [
        (VENDOR, 0.5, 0.5), (TAGS, 0.25, 0.25),
    ]  # fmt: skip


def test_the_largest_image_of_an_ome_file_counts(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"photometric": "rgb", "tile": (64, 64)}
        for name, side, size in (
            ("thumbnail", 64, 8.0),
            ("main", 96, 0.5),
            ("macro image", 128, 2.0),
        ):
            about = {"axes": "YXS", "Name": name, "PhysicalSizeX": size, "PhysicalSizeY": size}
            file.write(PIXELS[:side, :side], metadata=about, **options)
    assert [one.mpp_x for one in image_scale(path) if one.source == OME] == [0.5]


def test_what_is_no_image_states_nothing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"] = np.zeros((1, 8, 8, 3), np.uint8)
    (tmp_path / "a.zarr").mkdir()
    assert image_scale(tmp_path / "a.h5") == image_scale(tmp_path / "a.zarr") == []
    with pytest.raises(InputError, match="does not exist"):
        image_scale(tmp_path / "absent.tif")


def test_the_user_comes_first_and_everything_else_is_said(tmp_path):
    path = aperio(tmp_path / "a.svs", 0.25, 72, "INCH")
    found = resolve(path, 0.5, 0.4, "spot pitch")
    assert (found.mpp, found.source) == (0.5, "--mpp")
    assert found.rejected == (
        "0.4 um of the spot pitch: not the 0.5 um in use",
        "352.8 um of the TIFF resolution tags: 72 dpi, a printing resolution",
        f"0.25 um of the {VENDOR}: not the 0.5 um in use",
    )


def test_what_was_measured_comes_before_the_image(tmp_path):
    found = resolve(aperio(tmp_path / "a.svs", 0.51), None, 0.5, "spot pitch")
    assert (found.mpp, found.source, found.rejected) == (0.5, "spot pitch", ())
    found = resolve(tagged(tmp_path / "a.tif", 40_000), None, 0.5, "spot pitch")
    assert (found.mpp, found.source) == (0.5, "spot pitch")
    assert found.rejected == ("0.25 um of the TIFF resolution tags: not the 0.5 um in use",)
    found = resolve(pillow(tmp_path / "a.png"), None, 0.5, "spot pitch")
    assert (found.mpp, found.rejected) == (0.5, ())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: aperio(p / "a.svs", 0.25), r"0\.25 um .*aperio.* spot pitch gives 0\.5: it may"),
        (lambda p: ome(p / "a.ome.tif", 0.52), "0.52 um of the OME-XML.*a smaller copy that kept"),
        (lambda p: ome(p / "a.ome.tif", 5.0), "exactly ten times apart.*give the true value with"),
        (lambda p: ome(p / "a.ome.tif", 50, "nm"), ""),
    ],
)
def test_a_trusted_value_that_contradicts_stops(tmp_path, make, said):
    path = make(tmp_path)
    if not said:  # a tenth that no slide has is rejected by itself
        assert "outside 0.08" in resolve(path, None, 0.5, "spot pitch").rejected[0]
        return
    with pytest.raises(InputError, match=said):
        resolve(path, None, 0.5, "spot pitch")
    assert resolve(path, 0.5, 0.5, "spot pitch").mpp == 0.5


def test_pixels_that_are_not_square_stop(tmp_path):
    paths = [ome(tmp_path / "a.ome.tif", 0.5, y=0.52), tagged(tmp_path / "a.tif", 20_000, 19_000)]
    for path in paths:
        with pytest.raises(InputError, match=r"has pixels of 0\.5 by 0\.52.* um by its .*--mpp"):
            resolve(path, None, None, "")
        given = resolve(path, 0.5, None, "")
        assert given.mpp == 0.5
        assert "not square" in given.rejected[0]
    with pytest.raises(InputError, match="has pixels of"):
        resolve(paths[0], None, 0.5, "spot pitch")
    # tags do not count against what was measured
    assert resolve(paths[1], None, 0.5, "spot pitch").mpp == 0.5
    near = resolve(ome(tmp_path / "b.ome.tif", 0.5, y=0.505), None, None, "")
    assert near.mpp == pytest.approx(0.5025)
