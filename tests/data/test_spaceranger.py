import json
from pathlib import Path

import numpy as np
import pytest
from samples_10x import (
    COLUMNS,
    GENES,
    IDS,
    MPP,
    counts_of,
    visium_spots,
    write_h5,
    write_image,
    write_mex,
    write_spatial,
    write_visium,
)
from tiny_slides import write_cohort, write_hest

from histokit.core.errors import InputError
from histokit.data.array_scale import fit_scale, read_positions
from histokit.data.counts import read_counts
from histokit.data.join import join_spots
from histokit.data.sources import Ask
from histokit.data.spaceranger import detect_spaceranger, read_spaceranger

WIDE = 1_000_000


def read(source, **ask):
    assert detect_spaceranger(source)
    (slide,) = read_spaceranger(source, Ask(**ask))
    return slide


def check(slide, spots, counts, scale=1.0):
    """The spots lie where they were put, in x and y, and the counts are theirs."""
    assert slide.mpp == pytest.approx(MPP / scale, rel=1e-6)
    joined, row = join_spots(slide, WIDE, WIDE)
    assert row["joined"] == len(counts) == 56
    np.testing.assert_array_equal(joined[counts.index].X.toarray(), counts)
    expected = spots.set_index("barcode").loc[joined.obs_names]
    centers = expected[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy() * scale
    np.testing.assert_allclose(joined.obsm["spatial"], centers, rtol=1e-12)
    # array row 1, column 3: 150 um to the right of the origin and 86.6 um below it
    place = np.flatnonzero((joined.obs["array_row"] == 1) & (joined.obs["array_col"] == 3))
    there = np.array([5000 + 150 / MPP, 6000 + 86.60254 / MPP]) * scale
    np.testing.assert_allclose(joined.obsm["spatial"][place[0]], there, rtol=1e-7)


@pytest.mark.parametrize("source", ["run", "run/outs", "run/outs/spatial"])
@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("tissue_positions_list.csv", False),
        ("tissue_positions_list.csv", True),
        ("tissue_positions.csv", True),
        ("tissue_positions.csv", False),
        ("tissue_positions.parquet", True),
    ],
)
def test_every_place_and_table_of_positions(tmp_path, source, name, header):
    made = write_visium(tmp_path / "run" / "outs", name=name, header=header)
    slide = read(tmp_path / source, cancer="IDC")
    check(slide, *made)
    assert (slide.slide_id, slide.patient, slide.technology) == ("run", "run", "Visium")
    assert (slide.cancer, slide.mpp_source, slide.notes) == ("IDC", "spot pitch 100 um", ())
    assert slide.image == tmp_path / "run/outs/he.tif"
    assert len(slide.inputs) == 4
    assert all(path.is_file() for path in slide.inputs)
    assert len(slide.load_spots()) == 64  # the first spot is not taken for a header
    columns = ["barcode", "x", "y", "in_tissue", "array_row", "array_col"]
    assert slide.load_spots().columns.tolist() == columns


def test_counts_inside_the_spatial_folder(tmp_path):
    spots, counts = write_visium(tmp_path / "S1")
    (tmp_path / "S1" / "filtered_feature_bc_matrix.h5").rename(
        tmp_path / "S1" / "spatial" / "filtered_feature_bc_matrix.h5"
    )
    slide = read(tmp_path / "S1" / "spatial")
    check(slide, spots, counts)
    assert (slide.slide_id, slide.image.name) == ("S1", "he.tif")


def test_files_with_the_prefix_of_a_data_set(tmp_path):
    spots, counts = write_visium(tmp_path / "download")
    (tmp_path / "download" / "filtered_feature_bc_matrix.h5").rename(
        tmp_path / "download" / "V1_Breast_filtered_feature_bc_matrix.h5"
    )
    slide = read(tmp_path / "download")
    check(slide, spots, counts)
    assert slide.slide_id == "V1_Breast"
    write_h5(tmp_path / "download" / "V2_filtered_feature_bc_matrix.h5", counts)
    with pytest.raises(InputError, match=r"V1_Breast_filtered.* and .*V2_filtered.* are both"):
        read_spaceranger(tmp_path / "download", Ask())


def test_files_of_two_data_sets_do_not_mix(tmp_path):
    write_visium(tmp_path, name="A_tissue_positions.csv")
    (tmp_path / "filtered_feature_bc_matrix.h5").rename(
        tmp_path / "B_filtered_feature_bc_matrix.h5"
    )
    with pytest.raises(InputError, match=r"different data sets \(A, B\)"):
        read(tmp_path)


def test_an_archive_is_to_be_unpacked(tmp_path):
    write_h5(tmp_path / "V1_X_filtered_feature_bc_matrix.h5", counts_of(["a-1"]))
    (tmp_path / "V1_X_spatial.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"unpack V1_X_spatial\.tar\.gz there"):
        read(tmp_path)


def test_of_a_raw_matrix_only_spots_in_tissue_are_joined(tmp_path):
    spots, counts = write_visium(tmp_path)
    everything = counts_of(spots["barcode"])
    everything.loc[counts.index] = counts
    (tmp_path / "filtered_feature_bc_matrix.h5").unlink()
    write_h5(tmp_path / "raw_feature_bc_matrix.h5", everything)
    slide = read(tmp_path)
    check(slide, spots, counts)
    assert slide.notes == ("counts of raw_feature_bc_matrix.h5: only its spots in tissue are used",)


def test_the_filtered_matrix_comes_before_the_raw_one(tmp_path):
    made = write_visium(tmp_path)
    write_h5(tmp_path / "raw_feature_bc_matrix.h5", counts_of(made[0]["barcode"], seed=9))
    (tmp_path / "filtered_feature_bc_matrix.h5").unlink()
    write_mex(tmp_path / "filtered_feature_bc_matrix", made[1])
    check(read(tmp_path), *made)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_mex_folder(tmp_path, old, zipped):
    made = write_visium(tmp_path)
    (tmp_path / "filtered_feature_bc_matrix.h5").unlink()
    write_mex(tmp_path / "X_filtered_feature_bc_matrix", made[1], old, zipped)
    slide = read(tmp_path)
    check(slide, *made)
    assert slide.slide_id == "X"
    assert slide.load_counts().var["gene_id"].tolist() == IDS
    assert len(slide.inputs) == 6
    assert all(path.is_file() for path in slide.inputs)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("matrix.mtx", lambda text: text[:-8], "not a whole Matrix Market file"),
        ("matrix.mtx", lambda text: text.replace("integer", "pattern"), "pattern"),
        ("barcodes.tsv", lambda text: text[17:], "6 features and 2 barcodes"),
        ("features.tsv", lambda text: text.replace("\tGene Expression", ""), "has 2 fields"),
        ("matrix.mtx", lambda text: text.replace("\n2 1 ", "\n1 1 "), "twice"),
    ],
)
def test_mex_folders_that_are_damaged(tmp_path, name, change, said):
    counts = counts_of(["ACGTACGTACGTAC-1", "CCGTACGTACGTAC-1", "GCGTACGTACGTAC-1"]) + 1
    write_mex(tmp_path, counts, zipped=False)
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    with pytest.raises(InputError, match=f"slide S: .*{said}"):
        read_counts(tmp_path, "S")


def test_a_folder_that_holds_no_matrix(tmp_path):
    with pytest.raises(InputError, match=r"a folder without barcodes\.tsv"):
        read_counts(tmp_path, "S")


def test_other_features_are_counted(tmp_path):
    kinds = ["Gene Expression"] * 4 + ["Antibody Capture"] * 2
    counts = counts_of(["a-1", "b-1"])
    write_h5(tmp_path / "a.h5", counts, kinds=kinds)
    write_mex(tmp_path / "a", counts, kinds=kinds)
    for name in ("a.h5", "a"):
        found = read_counts(tmp_path / name, "S")
        assert found.var_names.tolist() == GENES[:4]
        assert found.uns["other_features"] == 2
        np.testing.assert_array_equal(found.X.toarray(), counts.iloc[:, :4])


def test_several_genomes(tmp_path):
    names = ["GRCh38_TP53", "GRCh38_C3", "GRCh38_ACTB", "mm10___Trp53", "mm10___C3", "mm10___Actb"]
    ids = ["GRCh38_" + i for i in IDS[:3]] + [f"mm10___ENSMUSG{i:011d}" for i in range(3)]
    counts = counts_of(["a-1", "b-1"], names)
    write_h5(tmp_path / "a.h5", counts, ids, genomes=["GRCh38"] * 3 + ["mm10"] * 3)
    write_mex(tmp_path / "a", counts, ids=ids)
    for name in ("a.h5", "a"):
        found = read_counts(tmp_path / name, "S")
        assert found.var_names.tolist() == names
        assert found.var["gene_id"].tolist() == IDS[:3] + [f"ENSMUSG{i:011d}" for i in range(3)]
        assert "genome" in found.uns["note"]
        assert "(2): GRCh38 (3 genes), mm10 (3 genes)" in found.uns["note"]


@pytest.mark.parametrize(
    ("how", "turn", "mirrored"),
    [
        ({"turn": 30}, 30, False),
        ({"turn": -90}, -90, False),
        ({"mirror": True, "turn": 10}, -170, True),
    ],
)
def test_turned_and_mirrored_arrays_have_the_same_mpp(tmp_path, how, turn, mirrored):
    write_visium(tmp_path, visium_spots(origin=(9000.0, 9000.0), **how))
    slide = read(tmp_path)
    assert slide.mpp == pytest.approx(MPP, rel=1e-6)
    fit = fit_scale(slide.load_spots(), (50.0, 86.6025))
    assert (fit.turn_deg, fit.mirrored) == (pytest.approx(turn), mirrored)
    assert fit.residual_um < 1e-3
    assert ["mirrored" in note for note in slide.notes] == [True] * mirrored


def test_swapped_axes_are_said(tmp_path):
    spots = visium_spots()
    swap = {"pxl_row_in_fullres": "pxl_col_in_fullres", "pxl_col_in_fullres": "pxl_row_in_fullres"}
    write_visium(tmp_path, spots.rename(columns=swap)[list(spots)])
    assert "x and y are swapped" in read(tmp_path).notes[0]


def test_positions_in_another_order_are_said(tmp_path):
    spots = visium_spots()
    shuffled = spots.sample(frac=1, random_state=0)
    spots[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = shuffled[
        ["pxl_row_in_fullres", "pxl_col_in_fullres"]
    ].to_numpy()
    write_visium(tmp_path, spots)
    with pytest.raises(InputError, match=r"um off the array's rows and columns.*give the true"):
        read(tmp_path)
    assert any("um off the array" in note for note in read(tmp_path, mpp=MPP).notes)


def rescale(outs: Path, **factors) -> None:
    path = outs / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | factors))


def test_a_diameter_of_55_um_is_refused_unless_the_mpp_is_given(tmp_path):
    made = write_visium(tmp_path)
    rescale(tmp_path, spot_diameter_fullres=55 / MPP)
    with pytest.raises(InputError, match=r"0\.4321 um \(spot pitch.*0\.5107 um.*as HEST.*--mpp"):
        read(tmp_path)
    slide = read(tmp_path, mpp=MPP)
    check(slide, *made)
    assert slide.mpp_source == "--mpp"
    assert "disagree" in slide.notes[0]
    rescale(tmp_path, spot_diameter_fullres=65 / MPP * 1.02)
    check(read(tmp_path), *made)


def test_a_users_mpp_that_differs_is_used_and_said(tmp_path):
    write_visium(tmp_path)
    slide = read(tmp_path, mpp=0.5)
    assert (slide.mpp, slide.mpp_source) == (0.5, "--mpp")
    assert slide.notes == ("--mpp 0.5 is used, where the array says 0.4321 um (spot pitch 100 um)",)


def test_what_is_left_of_two_sources_of_mpp_is_used(tmp_path):
    line = visium_spots(rows=1).assign(in_tissue=1)
    write_visium(tmp_path, line)
    slide = read(tmp_path)
    assert slide.mpp == pytest.approx(MPP)
    assert slide.mpp_source == "65 um / spot_diameter_fullres"
    (tmp_path / "spatial" / "scalefactors_json.json").unlink()
    assert (read(tmp_path).mpp, read(tmp_path).mpp_source) == (None, "")
    write_visium(tmp_path)
    (tmp_path / "spatial" / "scalefactors_json.json").unlink()
    assert read(tmp_path).mpp == pytest.approx(MPP, rel=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("hires", 0.15), ("lowres", 0.045)])
def test_a_small_copy_scales_coordinates_and_mpp(tmp_path, name, scale):
    made = write_visium(tmp_path)
    image = tmp_path / "spatial" / f"tissue_{name}_image.png"
    slide = read(tmp_path, image=image)
    check(slide, *made, scale)
    assert slide.image == image
    assert slide.notes == (
        f"tissue_{name}_image.png is a small copy of the slide, {MPP / scale:.3g} um per pixel: "
        "too coarse for cells",
    )
    rescale(tmp_path, **{f"tissue_{name}_scalef": 0})
    with pytest.raises(InputError, match="must be a positive number"):
        read(tmp_path, image=image)
    (tmp_path / "spatial" / "scalefactors_json.json").unlink()
    with pytest.raises(InputError, match=f"with tissue_{name}_scalef to place"):
        read(tmp_path, image=image)


def test_the_image_beside_the_outputs(tmp_path):
    write_visium(tmp_path / "run" / "outs")
    (tmp_path / "run" / "outs" / "he.tif").unlink()
    with pytest.raises(InputError, match=r"no full-resolution image; .*tissue_hires_image\.png"):
        read(tmp_path / "run")
    image = write_image(tmp_path / "run" / "image" / "scan.png")
    for source in ("run", "run/outs", "run/outs/spatial"):
        assert read(tmp_path / source).image == image
    other = write_image(tmp_path / "run" / "scan.jpg")
    with pytest.raises(InputError, match=r"2 images \(scan\.jpg, scan\.png\).*--image"):
        read(tmp_path / "run")
    assert read(tmp_path / "run", image=other).image == other
    with pytest.raises(InputError, match=r"absent\.tif does not exist; check --image"):
        read(tmp_path / "run", image=tmp_path / "absent.tif")


def test_positions_on_a_cytassist_image_are_said(tmp_path):
    spots = visium_spots(origin=(50.0, 100.0))
    spots[["pxl_row_in_fullres", "pxl_col_in_fullres"]] *= 0.2
    write_visium(tmp_path, spots)
    (tmp_path / "spatial" / "scalefactors_json.json").unlink()
    slide = read(tmp_path)
    assert slide.mpp == pytest.approx(5 * MPP)
    assert "image of about 357 x 301 px such as the CytAssist image" in slide.notes[0]


def test_a_small_part_of_an_array_is_not_coarse(tmp_path):
    write_visium(tmp_path, visium_spots(origin=(10.0, 20.0)))
    assert read(tmp_path).notes == ()


def test_ids_of_slides(tmp_path):
    write_visium(tmp_path / "Brust Ä1" / "outs")
    source = tmp_path / "Brust Ä1"
    assert read(source).slide_id.startswith("Brust-1-")
    assert read_spaceranger(source, Ask(only=frozenset({"other"}))) == []
    (slide,) = read_spaceranger(source, Ask(only=frozenset({"S7"})), slide_id="S7")
    assert (slide.slide_id, slide.patient) == ("S7", "S7")


def test_other_folders_are_not_taken(tmp_path):
    assert not detect_spaceranger(tmp_path / "absent")
    assert not detect_spaceranger(tmp_path)
    write_visium(tmp_path / "cohort")
    write_cohort(tmp_path / "cohort")
    assert not detect_spaceranger(tmp_path / "cohort")
    write_hest(tmp_path / "hest")
    assert not detect_spaceranger(tmp_path / "hest")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (",".join(COLUMNS) + "\n", "lists no spot"),
        ("a-1,1,0,0,5\n", "row 1 of .* has 5 fields"),
        ("a-1,1,0,0,5,x\n", "pxl_col_in_fullres of the spot a-1 is no number"),
        ("barcode,in_tissue,array_row\na-1,1,0\n", "no column 'array_col'"),
    ],
)
def test_bad_positions(tmp_path, text, said):
    (tmp_path / "tissue_positions.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_positions(tmp_path / "tissue_positions.csv")


def test_positions_without_counts(tmp_path):
    write_spatial(tmp_path / "spatial", visium_spots())
    with pytest.raises(InputError, match=r"no counts; expected filtered_feature_bc_matrix\.h5"):
        read(tmp_path)


REAL = [
    ("scanpy_visium", 4992, 4235, 100, 932),
    ("visiumio_visium/section1", 50, 22, 22, 607),
    ("seurat_visium", 4992, 2695, 2695, 132231),
]


@pytest.mark.real
@pytest.mark.parametrize(("name", "listed", "tissue", "joined", "total"), REAL)
def test_real_folders(real_data, name, listed, tissue, joined, total):
    source = real_data / "spaceranger" / name
    slide = read(source, image=source / "spatial" / "tissue_lowres_image.png")
    factors = json.loads((source / "spatial/scalefactors_json.json").read_text())
    by_diameter = 65 / factors["spot_diameter_fullres"] / factors["tissue_lowres_scalef"]
    assert slide.mpp == pytest.approx(by_diameter, rel=0.004)
    found, row = join_spots(slide, 600, 600)
    assert (row["spots_listed"], row["spots_selected"]) == (listed, tissue)
    assert (row["joined"], row["outside_image"]) == (joined, 0)
    assert slide.load_counts().X.sum() == total
    assert name == "visiumio_visium/section1" or found.X.sum() == total
    assert [note for note in slide.notes if "small copy" in note]


@pytest.mark.real
@pytest.mark.parametrize(("name", "joined"), [("scanpy_visium", 100), ("seurat_visium", 2695)])
def test_spots_are_read_whatever_the_image_shows(real_data, name, joined):
    source = real_data / "spaceranger" / name
    slide = read(source, image=source / "spatial" / "tissue_hires_image.png")
    assert join_spots(slide, 2000, 2000)[1]["joined"] == joined
