import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from samples_stores import write_bench, write_hest_metadata, write_hest_slide
from tiny_slides import counts_table, write_hest

from histokit.core.errors import InputError
from histokit.data.hest import detect_hest, read_hest, stored_mpp, stored_side
from histokit.data.hest_bench import detect_bench, read_bench
from histokit.data.join import join_spots
from histokit.data.sources import Ask


def test_whole_slides_without_patches(tmp_path):
    spots = write_hest_slide(tmp_path)
    assert detect_hest(tmp_path)
    (slide,) = read_hest(tmp_path, Ask())
    assert slide.image == tmp_path / "wsis" / "TENX9.tif"
    assert (slide.mpp, slide.patient, slide.cancer) == (0.274, "Study / 7", "IDC")
    assert slide.notes == ()
    joined, row = join_spots(slide, 400, 400)
    # in_tissue is 0 everywhere, which HEST's files are not to be believed about
    assert row["joined"] == 12
    np.testing.assert_allclose(joined.obsm["spatial"], spots[["x", "y"]])
    assert joined.obs["array_col"].tolist() == spots["array_col"].tolist()
    np.testing.assert_array_equal(joined.X.toarray(), counts_table())


def test_pseudo_spots_have_no_array(tmp_path):
    write_hest_slide(tmp_path, technology="Xenium")
    (slide,) = read_hest(tmp_path, Ask())
    assert set(slide.load_spots()) == {"barcode", "x", "y"}


@pytest.mark.parametrize(
    ("tag", "tenth"), [(0.0274, True), (0.02755, True), (0.0282, False), (0.3528, False)]
)
def test_pixel_size_of_the_metadata_is_used_and_a_tenth_said(tmp_path, tag, tenth):
    write_hest_slide(tmp_path, tag=tag)
    (slide,) = read_hest(tmp_path, Ask())
    assert slide.mpp == 0.274
    said = f"TENX9.tif says {tag:.4g} um per pixel and 0.274 is used: the factor of ten"
    assert [note.startswith(said) for note in slide.notes] == [True] * tenth


def test_a_pixel_size_of_the_user_against_that_of_the_patches(tmp_path):
    write_bench(tmp_path, slides=("A",), attributes={"pixel_size": 0.25, "downsample": 2.0})
    (slide,) = read_bench(tmp_path, Ask(mpp=0.4))
    assert slide.mpp == 0.4
    assert "A.h5 says 0.25 um per pixel and 0.4 is used" in slide.notes
    assert not any("is used" in note for note in read_bench(tmp_path, Ask())[0].notes)


@pytest.mark.parametrize(
    ("attributes", "mpp", "side"),
    [
        ({"pixel_size": 0.25, "downsample": 2.0}, None, 448.0),
        (
            {"pixel_size": 0.25, "downsample": 2.0},
            0.4,
            448.0,
        ),  # the file's own is what they were cut by
        ({"pixel_size": 0.2, "downsample": 4.0}, None, 896.0),
        ({}, 0.28, 400.0),
        ({}, None, None),
    ],
)
def test_the_side_of_stored_patches_on_level_0(tmp_path, attributes, mpp, side):
    write_bench(tmp_path, slides=("A",), attributes=attributes)
    found = stored_side(tmp_path / "patches" / "A.h5", mpp)
    assert found == (None if side is None else pytest.approx(side))


def test_whole_slide_without_places(tmp_path):
    write_hest_slide(tmp_path)
    with h5py.File(tmp_path / "st" / "TENX9.h5ad", "a") as file:
        del file["obsm/spatial"]
    with pytest.raises(InputError, match="no place for every spot"):
        read_hest(tmp_path, Ask())[0].load_spots()


def test_whole_slide_that_is_cut(tmp_path):
    write_hest_slide(tmp_path)
    (tmp_path / "wsis" / "TENX9.tif").write_bytes(b"II*\0abcd")
    with pytest.raises(InputError, match=r"TENX9\.tif is not a whole TIFF image"):
        read_hest(tmp_path, Ask())


def test_patches_come_before_whole_slides(tmp_path):
    write_hest(tmp_path)
    (tmp_path / "wsis").mkdir()
    (slide,) = read_hest(tmp_path, Ask())
    assert slide.image.suffix == ".h5"


def set_sizes(path, level0, downsample):
    with h5py.File(path, "a") as file:
        file["img"].attrs["pixel_size"] = level0
        file["img"].attrs["downsample"] = downsample


@pytest.mark.parametrize(("level0", "downsample"), [(0.25, 2.0), (0.25, 4.0), (0.2738, 3.6523)])
def test_patches_of_another_pixel_size(tmp_path, level0, downsample):
    write_hest(tmp_path, spatial=False)
    path = tmp_path / "patches" / "TENX1.h5"
    assert stored_mpp(path) == 0.5
    set_sizes(path, level0, downsample)
    assert stored_mpp(path) == pytest.approx(level0 * downsample)
    (slide,) = read_hest(tmp_path, Ask())
    corners = np.arange(24).reshape(12, 2) * 100
    # 224 stored pixels are 224 x downsample of level 0, whatever the metadata says of these
    centers = slide.load_spots()[["x", "y"]]
    np.testing.assert_allclose(centers, corners + 112 * downsample)
    assert bool(slide.notes) == (level0 != 0.25)


def test_patches_of_no_possible_pixel_size(tmp_path):
    write_hest(tmp_path)
    set_sizes(tmp_path / "patches" / "TENX1.h5", 0.25, 200.0)
    with pytest.raises(InputError, match=r"pixel_size x downsample.* is 50, which no slide has"):
        read_hest(tmp_path, Ask())


@pytest.mark.parametrize("key", ["barcode", "barcodes"])
@pytest.mark.parametrize("flat", [True, False])
def test_bench_task_with_metadata_above_it(tmp_path, key, flat):
    centers = write_bench(tmp_path / "bench" / "IDC", key=key, flat=flat)
    write_hest_metadata(tmp_path, ["A", "B"], mpp=0.25)
    slides = read_bench(tmp_path / "bench" / "IDC", Ask())
    assert [s.slide_id for s in slides] == ["A", "B"]
    slide = slides[0]
    assert (slide.mpp, slide.mpp_source) == (0.25, "HEST pixel_size_um_estimated")
    assert (slide.patient, slide.cancer, slide.technology) == ("Study / 7", "IDC", "Visium")
    assert "HEST_v1_1_0.csv is used" in slide.notes[0]
    joined, _ = join_spots(slide, np.inf, np.inf)
    np.testing.assert_allclose(joined.obsm["spatial"], centers)
    assert joined.obs["row"].tolist() == list(range(12))
    np.testing.assert_array_equal(joined.X.toarray(), counts_table())


def test_bench_task_alone(tmp_path):
    centers = write_bench(tmp_path)
    assert detect_bench(tmp_path)
    (slide,) = read_bench(tmp_path, Ask(cancer="SKCM", only=frozenset("A")))
    assert (slide.patient, slide.cancer, slide.technology) == ("A", "SKCM", "Unknown")
    assert slide.mpp == pytest.approx(0.25, rel=0.005)
    assert slide.mpp_source == "patch corners and spot centers"
    assert f"the splits in {tmp_path / 'splits'} are by patient" in slide.notes[0]
    np.testing.assert_allclose(slide.load_spots()[["x", "y"]], centers)
    given = read_bench(tmp_path, Ask(mpp=0.26))[0]
    assert (given.mpp, given.mpp_source) == (0.26, "--mpp")


def test_bench_pixel_size_of_the_patches_comes_first(tmp_path):
    write_bench(tmp_path / "IDC", attributes={"pixel_size": 0.2738, "downsample": 0.5 / 0.2738})
    write_hest_metadata(tmp_path, ["A", "B"], mpp=0.25)
    slide = read_bench(tmp_path / "IDC", Ask())[0]
    assert (slide.mpp, slide.mpp_source) == (0.2738, "HEST pixel_size of the patches")


def test_bench_without_any_place_or_pixel_size(tmp_path):
    write_bench(tmp_path, spatial=False)
    slide = read_bench(tmp_path, Ask())[0]
    assert (slide.mpp, slide.mpp_source) == (None, "")
    with pytest.raises(InputError, match=r"no place for every patch .*give --mpp"):
        slide.load_spots()
    centers = read_bench(tmp_path, Ask(mpp=0.25))[0].load_spots()[["x", "y"]]
    with h5py.File(tmp_path / "patches" / "A.h5") as file:
        np.testing.assert_allclose(centers, file["coords"][:] + 224)


def test_bench_patient_of_the_counts(tmp_path):
    write_bench(tmp_path, slides=("A",))
    path = tmp_path / "adata" / "A.h5ad"
    data = anndata.read_h5ad(path)
    data.obs["patient"] = pd.Categorical(["P3"] * 12)
    data.write_h5ad(path)
    slide = read_bench(tmp_path, Ask())[0]
    assert (slide.patient, slide.notes) == ("P3", ())


def test_whole_bench_is_no_source(tmp_path):
    write_bench(tmp_path / "IDC")
    write_bench(tmp_path / "PRAD")
    assert detect_bench(tmp_path)
    with pytest.raises(InputError, match=r"2 tasks of HEST-Bench \(IDC, PRAD\)"):
        read_bench(tmp_path, Ask())


def test_other_folders_are_no_bench(tmp_path):
    write_hest(tmp_path)
    assert not detect_bench(tmp_path)
    assert not detect_bench(tmp_path / "HEST_v1_1_0.csv")
    assert not detect_bench(tmp_path / "absent")
    write_hest_slide(tmp_path / "other")
    assert not detect_bench(tmp_path / "other")
