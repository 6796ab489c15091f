import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import zarr
from samples_stores import visium_spots, write_visium_store, write_xenium
from tiny_slides import counts_table, picture

from histokit.core.errors import InputError
from histokit.data.join import join_spots
from histokit.data.sources import Ask
from histokit.data.spatialdata_store import detect_spatialdata, read_spatialdata
from histokit.extract.zarr_image import ZarrImage

pytest.importorskip("spatialdata")
pytestmark = pytest.mark.filterwarnings("ignore")


def only(path, ask=None):
    (slide,) = read_spatialdata(path, ask or Ask())
    return slide


@pytest.mark.parametrize("version", [2, 3])
def test_visium_store(tmp_path, version):
    path = tmp_path / "S.zarr"
    spots = write_visium_store(path, version)
    assert (path / ".zattrs").exists() == (version == 2)
    assert detect_spatialdata(path)
    slide = only(path, Ask(cancer="IDC"))
    assert (slide.slide_id, slide.cancer, slide.technology) == ("S", "IDC", "Visium")
    assert slide.image == path / "images" / "D_full_image"
    assert (slide.mpp, slide.mpp_source) == (pytest.approx(2.5), "spot pitch 100 um")
    assert slide.notes == ()  # circles of 26 px are 65 um
    assert all(file.is_file() for file in slide.inputs)
    image = ZarrImage(slide.image)
    joined, row = join_spots(slide, image.width, image.height)
    assert (row["spots_listed"], row["joined"]) == (12, 11)  # one is off the tissue
    expected = spots.loc[joined.obs_names]
    np.testing.assert_allclose(joined.obsm["spatial"], expected[["x", "y"]])
    assert joined.obs["array_col"].tolist() == expected["array_col"].tolist()
    numbers = [int(name[4:-2]) for name in joined.obs_names]
    np.testing.assert_array_equal(joined.X.toarray(), counts_table().to_numpy()[numbers])
    assert joined.var["gene_id"].tolist()[:2] == ["ENSG00000000100", "ENSG00000000101"]


@pytest.mark.parametrize("version", [2, 3])
def test_image_of_a_store(tmp_path, version):
    path = tmp_path / "S.zarr"
    write_visium_store(path, version)
    image, pixels = ZarrImage(path / "images" / "D_full_image"), picture(side=400)
    assert (image.width, image.height, image.orientation) == (400, 400, 1)
    for x, y, width, height in [(0, 0, 400, 400), (100, 130, 150, 20), (399, 399, 1, 1)]:
        window = image.read(x, y, width, height)
        assert window.dtype == np.uint8
        np.testing.assert_array_equal(window, pixels[y : y + height, x : x + width])
    for longest, size in [(1600, 400), (200, 200), (90, 90)]:
        small = image.thumbnail(longest)
        assert small.size == (size, size)
        wide = np.asarray(small.resize((20, 20)), float)
        whole = pixels.reshape(20, 20, 20, 20, 3).mean(axis=(1, 3))
        assert np.abs(wide - whole).mean() < 12


def write_image(path, pixels, version=3, axes=("c", "y", "x"), chunks=None):
    """A multiscale image of one level, by hand."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    name = "0" if version == 2 else "s0"
    array = group.create_array(
        name, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks or pixels.shape
    )
    array[:] = pixels
    scales = [{"axes": [{"name": a} for a in axes], "datasets": [{"path": name}]}]
    known = {"multiscales": scales}
    group.attrs.update(known if version == 2 else {"ome": known})


@pytest.mark.parametrize("version", [2, 3])
def test_image_of_sixteen_bits_and_of_split_channels(tmp_path, version):
    pixels = np.moveaxis(picture(side=80), -1, 0)
    deep = pixels.astype(np.uint16) * 16
    deep[:, 0, 0] = 4095  # glass tells the depth
    write_image(tmp_path / "deep", deep, version, chunks=(1, 32, 48))
    window = ZarrImage(tmp_path / "deep").read(10, 20, 60, 50)
    np.testing.assert_array_equal(window, picture(side=80)[20:70, 10:70])
    assert ZarrImage(tmp_path / "deep").thumbnail(20).size == (20, 20)


def test_image_with_alpha_lies_on_glass(tmp_path):
    pixels = np.full((4, 8, 8), 100, np.uint8)
    pixels[3, :4], pixels[3, 4:] = 0, 255
    write_image(tmp_path / "alpha", pixels)
    window = ZarrImage(tmp_path / "alpha").read(0, 0, 8, 8)
    assert (window[:4] == 255).all()
    assert (window[4:] == 100).all()


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_was_lost_is_refused(tmp_path, version, colors):
    pixels = np.full((3, 64, 64), 120, np.uint8)
    write_image(tmp_path / "plain", pixels, version, chunks=(colors, 32, 32))
    (tmp_path / "plain" / ("0/0.1.1" if version == 2 else "s0/c/0/1/1")).unlink()
    image = ZarrImage(tmp_path / "plain")
    assert (image.read(0, 0, 32, 64) == 120).all()
    with pytest.raises(InputError, match="pixels from 32, 32 to 64, 64 are all 0, in one color"):
        image.read(31, 31, 4, 4)


def test_images_that_are_no_slide(tmp_path):
    write_image(tmp_path / "stains", np.zeros((5, 8, 8), np.uint8))
    with pytest.raises(InputError, match="5 channels"):
        ZarrImage(tmp_path / "stains")
    write_image(tmp_path / "stack", np.zeros((3, 8, 8), np.uint8), axes=("z", "y", "x"))
    with pytest.raises(InputError, match="axes z, y, x"):
        ZarrImage(tmp_path / "stack")
    zarr.open_group(tmp_path / "none", mode="w")
    with pytest.raises(InputError, match="no multiscales"):
        ZarrImage(tmp_path / "none")


def test_places_go_through_the_transformations_of_the_store(tmp_path):
    spots = write_visium_store(tmp_path / "S.zarr", shift=(15.0, -5.0))
    table = only(tmp_path / "S.zarr").load_spots().set_index("barcode")
    np.testing.assert_allclose(table["x"], spots.loc[table.index, "x"] - 15)
    np.testing.assert_allclose(table["y"], spots.loc[table.index, "y"] + 5)


def test_store_without_the_array(tmp_path):
    write_visium_store(tmp_path / "S.zarr", array=False)
    slide = only(tmp_path / "S.zarr")
    assert slide.mpp == pytest.approx(2.5)
    assert "array_row" not in slide.load_spots()


def test_store_without_circles(tmp_path):
    spots = write_visium_store(tmp_path / "S.zarr", circles=False)
    slide = only(tmp_path / "S.zarr")
    assert "obsm spatial is taken" in slide.notes[0]
    table = slide.load_spots().set_index("barcode")
    np.testing.assert_allclose(table[["x", "y"]], spots.loc[table.index, ["x", "y"]])


def test_circles_of_another_width_are_said(tmp_path):
    write_visium_store(tmp_path / "S.zarr", radius=11.0)
    slide = only(tmp_path / "S.zarr")
    assert slide.mpp == pytest.approx(2.5)
    assert "circles are 55.0 um wide" in slide.notes[0]


def test_image_of_its_own(tmp_path):
    spots = write_visium_store(tmp_path / "S.zarr", full=False)
    with pytest.raises(InputError, match=r"0 full images for D .*D_hires_image.*--image"):
        only(tmp_path / "S.zarr")
    image = tmp_path / "full.tif"
    image.write_bytes(b"x")
    slide = only(tmp_path / "S.zarr", Ask(image=image))
    assert slide.image == image
    assert image in slide.inputs
    table = slide.load_spots().set_index("barcode")
    np.testing.assert_allclose(table[["x", "y"]], spots.loc[table.index, ["x", "y"]])


def test_several_slides_in_a_store(tmp_path):
    import spatialdata

    write_visium_store(tmp_path / "a.zarr", name="D")
    other = counts_table().to_numpy() + 1
    write_visium_store(tmp_path / "b.zarr", name="E", counts=other, shift=(15.0, -5.0))
    parts = [spatialdata.read_zarr(tmp_path / name) for name in ("a.zarr", "b.zarr")]
    spatialdata.concatenate(parts, concatenate_tables=True).write(tmp_path / "S.zarr")
    slides = read_spatialdata(tmp_path / "S.zarr", Ask())
    assert [slide.slide_id for slide in slides] == ["S-D", "S-E"]
    assert [slide.image.name for slide in slides] == ["D_full_image", "E_full_image"]
    first, second = (slide.load_spots() for slide in slides)
    np.testing.assert_allclose(first["x"] - second["x"], 15)
    joined, _ = join_spots(slides[1], 400, 400)  # whose barcodes are those of two slides
    np.testing.assert_array_equal(joined.X.toarray(), other[::-1][1:])
    assert [s.slide_id for s in read_spatialdata(tmp_path / "S.zarr", Ask(only={"S-E"}))] == ["S-E"]
    with pytest.raises(InputError, match="holds 2 slides"):
        read_spatialdata(tmp_path / "S.zarr", Ask(image=tmp_path / "full.tif"))


def test_counts_that_are_not_raw_name_the_store(tmp_path):
    path = tmp_path / "S.zarr"
    write_visium_store(path, counts=np.log1p(counts_table().to_numpy()))
    with pytest.raises(InputError, match=r"slide S: .*S\.zarr/tables/table.* raw counts"):
        only(path).load_counts()
    with pytest.raises(InputError, match="no layer 'raw'"):
        only(path).load_counts(layer="raw")


def test_stores_of_other_assays(tmp_path):
    import anndata
    import spatialdata
    from spatialdata.models import ShapesModel, TableModel

    rng = np.random.default_rng(0)
    places = rng.uniform(0, 400, (30, 2))
    cells = anndata.AnnData(rng.poisson(2, (30, 4)).astype(np.float32))
    cells.obs["region"] = pd.Categorical(["cell_circles"] * 30)
    cells.obs["cell_id"] = np.arange(30)
    cells.obsm["spatial"] = places
    table = TableModel.parse(
        cells, region="cell_circles", region_key="region", instance_key="cell_id"
    )
    circles = ShapesModel.parse(places, geometry=0, radius=rng.uniform(3, 9, 30))
    store = spatialdata.SpatialData(shapes={"cell_circles": circles}, tables={"table": table})
    store.write(tmp_path / "X.zarr")
    with pytest.raises(InputError, match=r"no Visium spots .*Xenium and Visium HD"):
        read_spatialdata(tmp_path / "X.zarr", Ask())


def test_bins_of_visium_hd_are_no_visium_spots(tmp_path, monkeypatch):
    square = visium_spots().assign(array_col=np.tile(np.arange(4), 3))
    monkeypatch.setattr("samples_stores.visium_spots", lambda: square)
    write_visium_store(tmp_path / "S.zarr")
    with pytest.raises(InputError, match="no Visium spots"):
        read_spatialdata(tmp_path / "S.zarr", Ask())


def test_damaged_store(tmp_path):
    path = tmp_path / "S.zarr"
    write_visium_store(path)
    (path / "shapes" / "D" / "shapes.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a whole SpatialData store"):
        read_spatialdata(path, Ask())


def test_without_the_package(tmp_path, monkeypatch):
    write_visium_store(tmp_path / "S.zarr")
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(InputError, match="pip install spatialdata"):
        read_spatialdata(tmp_path / "S.zarr", Ask())


def test_other_folders_are_no_store(tmp_path):
    assert not detect_spatialdata(tmp_path)
    assert not detect_spatialdata(tmp_path / "absent")
    assert not detect_spatialdata(write_xenium(tmp_path / "run"))
    path = tmp_path / "S.zarr"
    write_visium_store(path)
    assert not detect_spatialdata(path / "images" / "D_full_image")
    shutil.rmtree(path / "tables")
    assert not detect_spatialdata(path)
