"""Files that a predicted map is written into, as their readers take them."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import anndata
import h5py
import matplotlib
import numpy as np
import pytest
from map_samples import NAMES, UNIT, bare_map, block_of, gene_table, slide_map
from PIL import Image

from histokit.core.errors import InputError
from histokit.maps import anndata_file, overlays, spatialdata_file
from histokit.maps.anndata_file import write_anndata
from histokit.maps.overlays import write_overlays
from histokit.maps.qupath import write_geojson
from histokit.maps.spatialdata_file import write_spatialdata

matplotlib.use("Agg")


def all_values(slide):
    return slide.block(0, len(slide.genes))


def many_patches(count, genes, **replaced):
    """A map of many patches in one row, with values that are made when they are asked for."""

    def block(start, stop):
        return np.random.default_rng(start).random((count, stop - start), np.float32)

    names = [f"G{i}" for i in range(genes)]
    centers = np.stack([np.arange(count) * 10.0, np.full(count, 50.0)], axis=1)
    made = {
        "barcodes": [f"p{i}" for i in range(count)],
        "centers": centers,
        "block": block,
        "genes": gene_table(names),
        "side": 10.0,
    }
    return bare_map(names, **(made | replaced))


# .h5ad


def test_h5ad_holds_the_whole_map(tmp_path):
    slide = slide_map()
    write_anndata(slide, tmp_path / "new" / "s.h5ad")
    data = anndata.read_h5ad(tmp_path / "new" / "s.h5ad")
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, all_values(slide))
    assert list(data.obs_names) == slide.barcodes
    assert list(data.var_names) == NAMES
    assert list(data.var.columns) == list(slide.genes.columns)
    np.testing.assert_array_equal(data.var["pcc"], slide.genes["pcc"])
    assert list(data.var["trusted"]) == [True, True, True, False, False]
    np.testing.assert_array_equal(data.obs["novelty"], slide.novelty)
    np.testing.assert_array_equal(data.layers["spread"], slide.spread(0, 5))
    assert (data.layers["measured"] != slide.measured).nnz == 0
    assert data.layers["measured"].format == "csr"
    assert list(data.obsm["scores"]) == ["HALLMARK_HYPOXIA", "T_B cells"]
    np.testing.assert_array_equal(data.obsm["scores"]["T_B cells"], slide.scores["T/B cells"])


def test_h5ad_centers_are_x_then_y_of_level_0(tmp_path):
    slide = slide_map()
    write_anndata(slide, tmp_path / "s.h5ad")
    data = anndata.read_h5ad(tmp_path / "s.h5ad")
    assert data.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(data.obsm["spatial"], slide.centers)
    np.testing.assert_allclose(data.obsm["spatial"][1], [200.128, 100.128])
    (library,) = data.uns["spatial"]
    assert library == "S 1"
    found = data.uns["spatial"]["S 1"]
    assert found["images"]["hires"].shape == (120, 120, 3)
    # the side, and what a pixel is: no reader has to take it for the 65 um of a Visium spot
    assert found["scalefactors"] == {
        "tissue_hires_scalef": 0.25,
        "spot_diameter_fullres": 100.0,
        "microns_per_pixel": 0.5,
    }
    assert found["metadata"]["source_image_path"] == "slides/S 1.tif"


def test_h5ad_says_what_its_values_are(tmp_path):
    write_anndata(slide_map(), tmp_path / "s.h5ad")
    about = anndata.read_h5ad(tmp_path / "s.h5ad").uns["histokit"]
    assert about["unit"] == UNIT
    assert about["run"] == "runs/r1"
    assert json.loads(about["folds"]) == 5
    assert json.loads(about["side"]) == 100
    assert json.loads(about["said"]) == ["Trust ranks, not values."]


def test_h5ad_arrays_are_encoded_as_anndata_encodes_them(tmp_path):
    slide = slide_map()
    write_anndata(slide, tmp_path / "ours.h5ad")
    anndata.AnnData(all_values(slide)).write_h5ad(tmp_path / "theirs.h5ad")
    with h5py.File(tmp_path / "ours.h5ad") as ours, h5py.File(tmp_path / "theirs.h5ad") as theirs:
        assert dict(ours["X"].attrs) == dict(theirs["X"].attrs)
        assert dict(ours.attrs) == dict(theirs.attrs)
        assert dict(ours["layers/spread"].attrs) == dict(theirs["X"].attrs)
    backed = anndata.read_h5ad(tmp_path / "ours.h5ad", backed="r")
    np.testing.assert_array_equal(backed[:, "a/b"].X[:, 0], slide.columns(["a/b"])[:, 0])
    backed.file.close()


def test_float16_halves_the_file_and_keeps_three_digits(tmp_path):
    slide = many_patches(200, 300)
    write_anndata(slide, tmp_path / "16.h5ad", "float16")
    write_anndata(slide, tmp_path / "32.h5ad")
    half = anndata.read_h5ad(tmp_path / "16.h5ad").X
    assert half.dtype == np.float16
    np.testing.assert_allclose(
        half, anndata.read_h5ad(tmp_path / "32.h5ad").X, rtol=1e-3, atol=1e-4
    )
    sizes = [(tmp_path / f"{bits}.h5ad").stat().st_size for bits in (16, 32)]
    assert sizes[1] - sizes[0] > 200 * 300 * 2 * 0.9


def test_values_too_large_for_float16_are_refused_and_leave_no_file(tmp_path):
    values = np.ones((16, 5), np.float32)
    values[3, 2] = 70_000
    with pytest.raises(InputError, match=r"gene a/b .*too large for float16.*float32"):
        write_anndata(slide_map(block=block_of(values)), tmp_path / "s.h5ad", "float16")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="float32 or float16, not as 'int8'"):
        write_anndata(slide_map(), tmp_path / "s.h5ad", "int8")


def test_a_failure_keeps_the_file_that_was_there(tmp_path):
    write_anndata(slide_map(), tmp_path / "s.h5ad")
    before = (tmp_path / "s.h5ad").read_bytes()

    def broken(start, stop):
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_anndata(slide_map(block=broken), tmp_path / "s.h5ad")
    assert (tmp_path / "s.h5ad").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_h5ad_is_written_in_blocks_of_whole_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(anndata_file, "_BLOCK", 50 * 64)
    monkeypatch.setattr(anndata_file, "_CHUNK", 256)
    asked, slide = [], many_patches(50, 1000)

    def block(start, stop):
        asked.append((start, stop))
        return slide.block(start, stop)

    write_anndata(many_patches(50, 1000, block=block), tmp_path / "s.h5ad")
    with h5py.File(tmp_path / "s.h5ad") as file:
        chunks = file["X"].chunks
    assert max(stop - start for start, stop in asked) <= max(64, chunks[1])
    assert all(start % chunks[1] == 0 for start, _ in asked)
    assert [start for start, _ in asked[1:]] == [stop for _, stop in asked[:-1]]
    found = anndata.read_h5ad(tmp_path / "s.h5ad").X
    for start, stop in asked:
        np.testing.assert_array_equal(found[:, start:stop], slide.block(start, stop))


@pytest.mark.parametrize("shape", [(1, 1), (100_000, 38_982), (3, 38_982), (5_000_000, 20)])
def test_chunks_serve_one_gene_and_one_patch(shape):
    patches, genes = anndata_file._chunks(*shape)
    assert 1 <= patches <= shape[0]
    assert 1 <= genes <= shape[1]
    assert patches * genes <= 1 << 16
    # bytes that are read for a gene and for a patch
    assert 4 * shape[0] * genes <= 64 << 20
    assert 4 * shape[1] * patches <= 64 << 20


SIZE = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from test_exports import anndata_file, many_patches, slide_map, write_anndata
anndata_file._BLOCK = 1 << 20
write_anndata(slide_map(), sys.argv[1])  # what is imported counts before
slide = many_patches(2000, 12000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_anndata(slide, sys.argv[1], "float16")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_genes(tmp_path):
    here = Path(__file__).parent
    paths = [here, here.parent, here.parents[1]]
    command = [sys.executable, "-c", SIZE, tmp_path / "s.h5ad", *paths]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 40  # MiB; a block is 4, all values are 92


def test_squidpy_draws_a_gene(tmp_path):
    import squidpy

    write_anndata(slide_map(), tmp_path / "s.h5ad")
    data = anndata.read_h5ad(tmp_path / "s.h5ad")
    squidpy.pl.spatial_scatter(data, color=["HLA-A", "novelty"], save=str(tmp_path / "s.png"))
    assert (tmp_path / "s.png").stat().st_size > 10_000
    matplotlib.pyplot.close("all")


# SpatialData


def test_spatialdata_reads_the_map_back(tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    slide = slide_map()
    write_spatialdata(slide, tmp_path / "s.zarr")
    store = spatialdata.read_zarr(tmp_path / "s.zarr")
    table = store["predictions"]
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X, all_values(slide))
    assert list(table.var_names) == NAMES
    np.testing.assert_array_equal(table.obs["novelty"], slide.novelty)
    np.testing.assert_array_equal(table.obsm["spatial"], slide.centers)
    assert store.attrs["histokit"]["unit"] == UNIT
    assert store.coordinate_systems == ["S 1"]
    shapes, joined = spatialdata.join_spatialelement_table(
        sdata=store, spatial_element_names="S-1_tiles", table_name="predictions"
    )
    assert list(joined.obs_names) == slide.barcodes
    np.testing.assert_array_equal(shapes["S-1_tiles"].geometry.x, slide.centers[:, 0])
    assert set(shapes["S-1_tiles"]["radius"]) == {50.0}


def test_spatialdata_tiles_lie_on_their_place_in_the_image(tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.transformations import get_transformation

    plain, slide = np.full((200, 120, 3), 255, np.uint8), slide_map()
    x, y = (slide.centers[6] * slide.scale).astype(int)
    assert x != y
    plain[y, x] = (1, 2, 3)  # the only dark pixel
    write_spatialdata(slide_map(picture=Image.fromarray(plain)), tmp_path / "s.zarr")
    store = spatialdata.read_zarr(tmp_path / "s.zarr")
    tile = store["S-1_tiles"].geometry[6]
    axes = {"input_axes": ("x", "y"), "output_axes": ("x", "y")}
    of_tiles = get_transformation(store["S-1_tiles"], "S 1").to_affine_matrix(**axes)
    of_image = get_transformation(store["S-1_image"], "S 1").to_affine_matrix(**axes)
    pixel = np.linalg.inv(of_image) @ of_tiles @ [tile.x, tile.y, 1]
    image = store["S-1_image"]
    assert image.dims == ("c", "y", "x")
    found = image.to_numpy()[:, int(pixel[1]), int(pixel[0])]
    np.testing.assert_array_equal(found, [1, 2, 3])


def test_spatialdata_takes_chosen_genes_in_their_order(tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    slide = slide_map()
    write_spatialdata(slide, tmp_path / "s.zarr", ["CD3E", "EPCAM", "HLA-A"])
    write_spatialdata(slide, tmp_path / "s.zarr", ["CD3E", "EPCAM"])  # ours: replaced
    table = spatialdata.read_zarr(tmp_path / "s.zarr")["predictions"]
    assert list(table.var_names) == ["CD3E", "EPCAM"]
    np.testing.assert_array_equal(table.X, all_values(slide)[:, [4, 0]])


def test_spatialdata_values_are_written_in_chunks(tmp_path, monkeypatch):
    spatialdata = pytest.importorskip("spatialdata")
    monkeypatch.setattr(spatialdata_file, "_CHUNK", 32)  # two genes of 16 patches
    slide = slide_map()
    write_spatialdata(slide, tmp_path / "s.zarr")
    table = spatialdata.read_zarr(tmp_path / "s.zarr")["predictions"]
    np.testing.assert_array_equal(table.X, all_values(slide))


def test_a_table_too_large_for_spatialdata_names_the_h5ad(tmp_path, monkeypatch):
    pytest.importorskip("spatialdata")
    monkeypatch.setattr(spatialdata_file, "LARGEST", 4 * 16 * 5 - 1)
    with pytest.raises(InputError, match=r"5 genes of 16 patches .*\.h5ad"):
        write_spatialdata(slide_map(), tmp_path / "s.zarr")
    write_spatialdata(slide_map(), tmp_path / "s.zarr", NAMES[:4])
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_spatialdata_leaves_foreign_folders_and_nothing_half_written(tmp_path):
    pytest.importorskip("spatialdata")
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"s\.zarr"):
        write_spatialdata(slide_map(), tmp_path / "s.zarr")
    assert (tmp_path / "s.zarr" / "mine.txt").read_text() == "mine"

    def broken(start, stop):
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_spatialdata(slide_map(block=broken), tmp_path / "t.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_without_the_package_spatialdata_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(InputError, match="pip install spatialdata"):
        write_spatialdata(slide_map(), tmp_path / "s.zarr")


# QuPath


def features_of(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        collection = json.load(file, parse_constant=pytest.fail)
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


@pytest.mark.parametrize("name", ["s.geojson", "s.geojson.gz"])
def test_geojson_tiles_are_closed_squares_with_the_map_s_values(tmp_path, name):
    slide = slide_map()
    write_geojson(slide, tmp_path / name, ["a/b", "Gén-β"])
    features = features_of(tmp_path / name)
    assert len(features) == 16
    (ring,) = features[1]["geometry"]["coordinates"]
    # the center is 200.128, 100.128; origin top left, to hundredths
    left, right, top, bottom = 150.13, 250.13, 50.13, 150.13
    assert ring == [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    assert features[1]["geometry"]["type"] == "Polygon"
    told = features[1]["properties"]
    assert told["objectType"] == "tile"
    assert told["name"] == "patch1"
    values = told["measurements"]
    assert list(values) == ["a/b", "Gén-β", "novelty", "score:HALLMARK_HYPOXIA", "score:T/B cells"]
    for gene in ("a/b", "Gén-β"):
        assert np.float32(values[gene]) == slide.columns([gene])[1, 0]
    assert np.float32(values["novelty"]) == slide.novelty[1]
    assert np.float32(values["score:T/B cells"]) == slide.scores["T/B cells"][1]


def test_geojson_leaves_out_what_is_no_number(tmp_path):
    values, novelty = np.ones((16, 5), np.float32), np.ones(16, np.float32)
    values[2, 0], values[3, 0], novelty[2] = np.nan, np.inf, np.nan
    slide = slide_map(block=block_of(values), novelty=novelty, scores={})
    write_geojson(slide, tmp_path / "s.geojson", ["EPCAM", "CD3E"])
    told = [f["properties"]["measurements"] for f in features_of(tmp_path / "s.geojson")]
    assert told[1] == {"EPCAM": 1, "CD3E": 1, "novelty": 1}
    assert told[2] == {"CD3E": 1}
    assert told[3] == {"CD3E": 1, "novelty": 1}


def test_geojson_subtracts_bounds_in_x_and_y(tmp_path):
    write_geojson(slide_map(), tmp_path / "s.geojson", ["EPCAM"], bounds=(10, 40))
    ring = features_of(tmp_path / "s.geojson")[0]["geometry"]["coordinates"][0]
    assert ring[0] == [40.13, 10.13]


def test_geojson_names_are_escaped(tmp_path):
    name = 'a"b\\c\n'
    slide = bare_map([name], barcodes=['p"1'])
    write_geojson(slide, tmp_path / "s.geojson", [name])
    (feature,) = features_of(tmp_path / "s.geojson")
    assert list(feature["properties"]["measurements"]) == [name]
    assert feature["properties"]["name"] == 'p"1'


def test_geojson_is_streamed(tmp_path):
    slide = many_patches(20_000, 10)
    tracemalloc.start()
    write_geojson(slide, tmp_path / "s.geojson", list(slide.genes.index))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "s.geojson").stat().st_size
    assert size > 7_000_000
    assert peak < 5_000_000  # the values twice are 1.6 million bytes
    with open(tmp_path / "s.geojson") as file:
        assert sum(1 for _ in file) == 20_002  # a line a tile


# pictures


def test_overlays_are_a_picture_a_gene_and_a_sheet(tmp_path):
    paths = write_overlays(slide_map(), tmp_path / "maps", ["EPCAM", "a/b", "Gén-β"])
    assert len(paths) == 5
    assert sorted(paths) == sorted((tmp_path / "maps").iterdir())
    assert {"EPCAM.png", "novelty.png", "genes.png"} < {path.name for path in paths}
    for path in paths:
        assert path.name.isascii()
        assert np.ptp(np.asarray(Image.open(path).convert("L"))) > 100


def drawn_texts(monkeypatch, tmp_path, slide, genes):
    """All texts of every figure, by file name."""
    texts, save = {}, overlays.plots.save

    def noted(figure, path):
        texts[path.name] = "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))
        save(figure, path)

    monkeypatch.setattr(overlays.plots, "save", noted)
    write_overlays(slide, tmp_path, genes)
    return texts


def test_overlays_say_how_far_a_gene_is_trusted(tmp_path, monkeypatch):
    texts = drawn_texts(monkeypatch, tmp_path, slide_map(), ["EPCAM", "CD3E"])
    assert "held-out PCC 0.60 (0.50 to 0.70)" in texts["EPCAM.png"]
    assert "not trusted" not in texts["EPCAM.png"]
    assert UNIT in texts["EPCAM.png"]
    assert "µm" in texts["EPCAM.png"]
    assert "not trusted (gray) · held-out PCC not evaluated" in texts["CD3E.png"]
    assert "genes in gray are not trusted" in texts["genes.png"]


def test_overlays_name_genes_with_their_ids_where_they_are_known(tmp_path, monkeypatch):
    names = ["EPCAM", "ENSG00000110651", "HIST1H2BK", "a/b"]
    slide = slide_map(names=names)
    slide.genes["symbol"] = ["EPCAM", "CD81", "HIST1H2BK", np.nan]
    slide.genes["gene_id"] = ["ENSG00000119888", "ENSG00000110651", "ENSG00000197903", np.nan]
    texts = drawn_texts(monkeypatch, tmp_path, slide, names)
    shown = [
        "EPCAM (ENSG00000119888)",
        "CD81 (ENSG00000110651)",
        "HIST1H2BK (ENSG00000197903)",
        "a/b",
    ]
    drawn = (texts[f"{name}.png"] for name in ("EPCAM", "ENSG00000110651", "HIST1H2BK"))
    for name, text in zip(shown, drawn, strict=False):
        assert name in text.splitlines()
    assert set(shown) < set(texts["genes.png"].splitlines())


def test_overlays_color_trusted_genes_alone(tmp_path):
    def colorful(path):  # right half: the tissue on the left has colors of its own
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        right = pixels[:, pixels.shape[1] // 2 :]
        return (np.ptp(right, axis=2) > 40).mean()

    write_overlays(slide_map(), tmp_path, ["EPCAM", "CD3E"])
    assert colorful(tmp_path / "EPCAM.png") > 0.2
    assert colorful(tmp_path / "CD3E.png") == 0


def test_patches_are_drawn_at_their_place():
    slide = slide_map(centers=np.array([[100.0, 50.0], [400.0, 250.0]]), barcodes=["p", "q"])
    canvas = overlays._canvas(slide)
    left, right, bottom, top = canvas.window
    assert (left, right, bottom, top) == (-50, 550, 400, -100)
    height, width = canvas.patch.shape
    assert width / height == pytest.approx(600 / 500, rel=0.01)
    for k, (x, y) in enumerate(slide.centers):
        own = np.argwhere(canvas.patch == k)
        middle = own.mean(axis=0) + 0.5
        np.testing.assert_allclose(
            middle, [(y - top) * width / 600, (x - left) * width / 600], atol=1
        )
        assert len(own) == pytest.approx((100 * width / 600) ** 2, rel=0.02)


def test_novelty_says_how_many_patches_are_unlike_training(tmp_path, monkeypatch):
    novelty = np.array([0.5] * 12 + [1.5] * 4, np.float32)
    texts = drawn_texts(monkeypatch, tmp_path, slide_map(novelty=novelty), ["EPCAM"])
    assert "25% of patches above 1" in texts["novelty.png"]


def test_a_sheet_of_too_many_genes_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(overlays, "_MOST", 2)
    texts = drawn_texts(monkeypatch, tmp_path, slide_map(), NAMES[:3])
    assert "the first 2 of 3" in texts["genes.png"]


# every writer


def write_all(slide, folder, genes):
    write_anndata(slide, folder / "s.h5ad")
    write_geojson(slide, folder / "s.geojson", genes)
    write_spatialdata(slide, folder / "s.zarr")
    return write_overlays(slide, folder / "maps", genes)


@pytest.mark.parametrize("name", ["HLA-A", "a/b", "Gén-β", "2-Sep", "$x$", ".."])
def test_one_patch_and_one_gene_of_any_name(tmp_path, name):
    spatialdata = pytest.importorskip("spatialdata")
    slide = bare_map([name])
    write_all(slide, tmp_path, [name])
    data = anndata.read_h5ad(tmp_path / "s.h5ad")
    assert list(data.var_names) == [name]
    assert np.isnan(data.var["pcc"]).all()
    np.testing.assert_array_equal(data.X, all_values(slide))
    assert "microns_per_pixel" not in data.uns["spatial"]["S 1"]["scalefactors"]
    assert spatialdata.read_zarr(tmp_path / "s.zarr")["predictions"].shape == (1, 1)
    (feature,) = features_of(tmp_path / "s.geojson")
    assert list(feature["properties"]["measurements"]) == [name]


@pytest.mark.parametrize("write", [write_geojson, write_spatialdata, write_overlays])
def test_an_unknown_gene_is_named(tmp_path, write):
    with pytest.raises(InputError, match=r"1 of 2 genes .*'Epcam'.*such as 'EPCAM'"):
        write(slide_map(), tmp_path / "new" / "s", ["EPCAM", "Epcam"])
    assert list(tmp_path.iterdir()) == []
