"""Spots on the right slide, at the right scale, and cohorts that change."""

import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from tiny_slides import counts_table, spots_table, write_cohort, write_hest

import run_extract
import run_train
from histokit.audit.leaks import alike_patients
from histokit.audit.slides import judge_slides, measure_slides
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.gene_keys import as_panel
from histokit.data.layouts import read_source
from histokit.data.placement import fit_array, misfits, on_tissue, selected_spots, tissue_mask
from histokit.data.sources import check_spots
from histokit.data.technologies import technology_kind


def extract(source, out, **options):
    options = {"encoder": "hed"} | options
    run_extract.main(run_extract.Options(source=str(source), out=str(out), **options))
    return out


def grid(rows=8, columns=12, pitch=20.0, origin=(60.0, 40.0), hexagonal=False):
    """A spot table with the array's places beside the centers."""
    table = []
    for row in range(rows):
        for column in range(columns):
            place = 2 * column + row % 2 if hexagonal else column
            step = pitch / 2 if hexagonal else pitch
            height = pitch * np.sqrt(3) / 2 if hexagonal else pitch
            table.append((place, row, origin[0] + step * place, origin[1] + height * row))
    frame = pd.DataFrame(table, columns=["array_col", "array_row", "x", "y"])
    return frame.assign(barcode=[f"spot{i}" for i in range(len(frame))])


def tissue(size=(400, 300), box=(40, 20, 320, 210), background=(240, 238, 242)):
    picture = Image.new("RGB", size, background)
    ImageDraw.Draw(picture).rectangle(box, fill=(180, 110, 160))
    return picture


# ---- flags -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yes", "no"),
    [("1", "0"), ("yes", "no"), ("T", "F"), ("True ", "False "), ("ja", "nein"), ("1.0", ""),
     ("TRUE", "NA")],
)  # fmt: skip
@pytest.mark.parametrize("column", ["selected", "in_tissue"])
def test_every_way_to_say_no_leaves_a_spot_out(tmp_path, capsys, column, yes, no):
    spots = spots_table().assign(**{column: [yes, no] * 6})
    source = write_cohort(tmp_path / "in", slides=("a",), spots=spots)
    out = extract(source, tmp_path / "out")
    names = anndata.read_h5ad(out / "expression" / "a.h5ad").obs_names
    assert names.tolist() == [f"spot{i}" for i in range(0, 12, 2)]
    assert "12 spots listed, 6 selected" in capsys.readouterr().out


def test_other_words_are_refused_and_both_flags_count():
    table = spots_table(4).assign(selected=["1", "maybe", "0", "1"])
    with pytest.raises(InputError, match="column selected of spot spot1 is 'maybe'"):
        selected_spots(table, "slide a")
    table = table.assign(selected=["1", "1", "0", "0"], in_tissue=["1", "0", "1", "0"])
    assert selected_spots(table, "a").tolist() == [True, False, False, False]
    with pytest.raises(InputError, match="no spot is selected"):
        selected_spots(table.assign(selected="0"), "slide a")


def test_columns_that_no_h5ad_can_hold_are_renamed_before_any_work(tmp_path):
    spots = spots_table().assign(**{"_index": 1, ".": 2, "a/b": 3, "a_b": 4})
    out = extract(write_cohort(tmp_path / "in", slides=("a",), spots=spots), tmp_path / "out")
    obs = anndata.read_h5ad(out / "expression" / "a.h5ad").obs
    assert {"index_", "column", "a_b", "a_b_"} <= set(obs.columns)
    assert obs["a_b_"].tolist() == [3] * 12


def test_a_spot_without_a_place_is_left_out_and_counted(tmp_path):
    spots = spots_table().astype({"x": object})
    spots.loc[3, "x"] = ""
    out = extract(write_cohort(tmp_path / "in", slides=("a",), spots=spots), tmp_path / "out")
    row = pd.read_csv(out / "reconciliation.csv").iloc[0]
    assert (row["spots_listed"], row["without_position"], row["joined"]) == (12, 1, 11)
    with pytest.raises(InputError, match="spot0 has no usable x and y"):
        check_spots(spots.assign(x="0,5"), "a")


# ---- the array ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hexagonal", [False, True])
def test_the_pitch_of_both_arrays_is_found_however_the_picture_is_turned(hexagonal):
    spots = grid(hexagonal=hexagonal)
    for angle in (0, 30, 90, 200):
        turn = np.deg2rad(angle)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        turned = spots.copy()
        turned[["x", "y"]] = spots[["x", "y"]].to_numpy() @ matrix
        fit = fit_array(turned)
        assert fit.pitch_px == pytest.approx(20, rel=0.01)
        assert fit.residual < 1e-6
        assert not fit.transposed


def test_columns_without_the_half_step_fit_as_well():
    spots = grid(hexagonal=True)
    spots["array_col"] //= 2
    fit = fit_array(spots)
    assert fit.pitch_px == pytest.approx(20, rel=0.01)
    assert fit.residual < 1e-6


def test_swapped_axes_and_mixed_barcodes_are_seen():
    spots = grid()
    swapped = spots.rename(columns={"x": "y", "y": "x"})
    assert fit_array(swapped).transposed
    mixed = spots.assign(x=np.random.default_rng(0).permutation(spots["x"]))
    assert fit_array(mixed).residual > 1
    assert fit_array(spots.drop(columns="array_row")) is None


def test_tissue_is_neither_glass_nor_black_surround():
    for background in ((240, 238, 242), (0, 0, 0), (205, 205, 205)):
        mask = tissue_mask(tissue(background=background))
        assert mask[100, 150]
        assert not mask[280, 380]
        assert mask.mean() == pytest.approx(281 * 191 / 120_000, abs=0.03)
    assert tissue_mask(Image.new("RGB", (100, 100), (180, 110, 160))) is None
    assert tissue_mask(Image.new("RGB", (100, 100), (0, 0, 0))) is None


def test_spots_are_on_the_tissue_or_off_it():
    mask = tissue_mask(tissue())
    centers = np.array([[300.0, 200], [740, 560], [5000, 10], [-3, 5]])
    assert on_tissue(mask, 0.5, centers, 20).tolist() == [True, False, False, False]


def said(spots, technology="Visium", mpp=5.0, scale=1.0):
    return misfits(spots, tissue(), scale, mpp, technology)[0]


def test_spots_that_fit_say_nothing():
    assert said(grid()) == []
    assert misfits(grid(), tissue(), 1.0, 5.0, "Visium")[1] == {
        "off_tissue": 0, "array_pitch_um": 100.0, "array_residual": 0.0,
    }  # fmt: skip


def test_swapped_axes_are_said_by_array_and_tissue():
    long = grid(rows=4, columns=13)
    swapped = long.rename(columns={"x": "y", "y": "x"})
    found = " ".join(said(swapped))
    assert "x and y look swapped" in found
    assert "with x and y swapped only 0 of 52 spots would lie off" in found


@pytest.mark.parametrize("technology", ["visium", "10x Visium", "VISIUM v2"])
def test_another_scale_is_said_whatever_the_technology_is_called(technology):
    (found,) = said(grid(), technology, mpp=0.5)
    assert "10 um apart where" in found


def test_technologies_are_known_by_kind():
    assert technology_kind("Visium HD") == "visium hd"
    assert technology_kind("10x_Visium_HD_3um") == "visium hd"
    assert technology_kind("Spatial Transcriptomics") == "spatial transcriptomics"
    assert technology_kind("ST") == "spatial transcriptomics"
    assert technology_kind("Xenium") == "xenium"
    assert technology_kind("test") == ""


def placed(tmp_path, spots, name="in"):
    """A cohort of one slide with tissue on glass, whose color is not the same everywhere."""
    counts = counts_table(len(spots))
    source = write_cohort(tmp_path / name, slides=("a",), spots=spots, counts=counts)
    pixels = np.array(tissue())
    shade = np.random.default_rng(0).integers(0, 20, pixels.shape[:2], np.uint8)
    pixels[pixels.min(2) < 200] -= shade[pixels.min(2) < 200][:, None]
    Image.fromarray(pixels).save(source / "a.png")
    table = pd.read_csv(source / "cohort.csv").assign(mpp=5.0, technology="visium")
    table.to_csv(source / "cohort.csv", index=False)
    return source


def test_a_slide_whose_spots_do_not_fit_is_refused_with_a_picture_and_may_be_allowed(
    tmp_path, capsys
):
    long = grid(rows=4, columns=13)
    swapped = long.rename(columns={"x": "y", "y": "x"})
    source, out = placed(tmp_path, swapped), tmp_path / "out"
    with pytest.raises(InputError, match=r"x and y look swapped.*overlays/a\.jpg.*--allow-misfit"):
        extract(source, out, patch_um=80.0)
    assert (out / "overlays" / "a.jpg").is_file()
    assert not (out / "features" / "hed" / "a.h5").exists()
    extract(source, out, patch_um=80.0, allow_misfit=True)
    assert "(allowed by --allow-misfit)" in capsys.readouterr().out
    extract(placed(tmp_path, long, "right"), tmp_path / "good", patch_um=80.0)


def test_a_join_that_loses_most_spots_is_an_error_until_it_is_allowed(tmp_path):
    spots = spots_table(40)
    source = write_cohort(tmp_path / "in", slides=("a",), spots=spots, counts=counts_table(8))
    with pytest.raises(InputError, match="32 of 40 spots are lost at the join with the counts"):
        extract(source, tmp_path / "out")
    extract(source, tmp_path / "out", allow_misfit=True)
    outside = spots_table(40).assign(x=np.where(np.arange(40) % 2, 5000.0, 100.0))
    source = write_cohort(tmp_path / "far", slides=("a",), spots=outside, counts=counts_table(40))
    with pytest.raises(InputError, match="20 of 40 spots lie outside the image"):
        extract(source, tmp_path / "far-out")
    out = extract(source, tmp_path / "far-out", allow_misfit=True)
    table = measure_slides(Cohort(out, "hed"), ["a"], as_panel(["EPCAM"]))
    said = [text for _, _, text in judge_slides(table)]
    assert "20 spots lie outside the image" in said
    shown = table.assign(off_tissue=9, black=0.07, white=0.6, gray=0.01)
    said += [text for _, _, text in judge_slides(shown)]
    assert "9 of 20 spots lie off the tissue; see overlays" in said
    assert "7% of the pixels at the spots are black" in said
    assert "60% of the pixels at the spots are white" in said
    assert not any("are gray" in text for text in said)
    assert "20 of 40 spots were lost when images and counts were joined" in said


# ---- cohorts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mpp", "said"),
    [("0.0005", "looks like millimeters"), ("20", "looks like a magnification"),
     ("0.05", "off by a factor"), ("NA", "must be a positive number"), ("0.001", "millimeters"),
     ("1e-320", "millimeters")],
)  # fmt: skip
def test_an_mpp_that_no_slide_has_is_refused_and_may_be_given(tmp_path, mpp, said):
    source = write_cohort(tmp_path / "in", slides=("a",), columns={"mpp": mpp})
    with pytest.raises(InputError, match=said):
        read_source(source)
    assert read_source(source, mpp=0.5)[0].mpp == 0.5
    assert read_source(source, mpp=0.5)[0].mpp_source == "--mpp"


def test_a_fault_of_one_slide_does_not_stop_another_that_is_asked_for(tmp_path):
    source = write_cohort(tmp_path / "in")
    (source / "b.png").unlink()
    with pytest.raises(InputError, match=r"image file 'b\.png' does not exist"):
        read_source(source)
    assert [s.slide_id for s in read_source(source, only=["a"])] == ["a"]
    with pytest.raises(InputError, match="has no slide 'z'"):
        read_source(source, only=["z"])


def test_a_loop_of_links_and_endless_names_end_in_one_sentence(tmp_path):
    source = write_cohort(tmp_path / "in", slides=("a",))
    (source / "a.png").unlink()
    (source / "a.png").symlink_to("a.png")
    with pytest.raises(InputError, match="loop of symbolic links"):
        read_source(source)
    with pytest.raises(InputError, match="name that is too long"):
        read_source(write_cohort(tmp_path / "b", slides=("a",), columns={"image": "x" * 5000}))
    table = pd.read_csv(source / "cohort.csv").assign(slide_id="s" * 250)
    table.to_csv(source / "cohort.csv", index=False)
    with pytest.raises(InputError, match="at most 100 letters"):
        read_source(source)


def test_a_slide_that_the_source_lists_no_more_does_not_train_on(tmp_path, capsys):
    source, out = write_cohort(tmp_path / "in", slides=("a", "b", "c")), tmp_path / "out"
    extract(source, out)
    table = pd.read_csv(source / "cohort.csv")
    table = table[table["slide_id"] != "b"]
    table.loc[table["slide_id"] == "c", "slide_id"] = "renamed"
    table.to_csv(source / "cohort.csv", index=False)
    options = {"data": str(out), "encoder": "hed", "model": "mean", "run": str(tmp_path / "run")}
    with pytest.raises(InputError, match=r"2 slides, such as b, are in .* and no longer in"):
        run_train.main(run_train.Options(**options))
    extract(source, out)
    assert "2 slides that" in capsys.readouterr().out
    assert Cohort(out, "hed").slides.index.tolist() == ["a", "renamed"]
    other = write_cohort(tmp_path / "other", slides=("z",))
    extract(other, out)  # another source leaves them alone
    assert Cohort(out, "hed").slides.index.tolist() == ["a", "renamed", "z"]


def test_half_an_extraction_is_not_trained_on_without_a_word(tmp_path, capsys):
    source, out = write_cohort(tmp_path / "in", slides=("a", "b", "c", "d")), tmp_path / "out"
    (source / "c.png").write_bytes(b"no image")
    with pytest.raises(InputError):
        extract(source, out)
    options = {"data": str(out), "encoder": "hed", "model": "mean", "run": str(tmp_path / "run")}
    with pytest.raises(InputError, match=r"2 slides of .* are not extracted, such as c"):
        run_train.main(run_train.Options(**options))
    run_train.main(run_train.Options(**options, allow_missing=True))
    assert "the training goes on without them" in capsys.readouterr().out
    chosen = extract(write_cohort(tmp_path / "two"), tmp_path / "chosen", slides=["a"])
    assert Cohort(chosen, "hed").missing() == {}
    assert json.loads((chosen / "sources.json").read_text()) == {
        str((tmp_path / "two").resolve()): ["a"]
    }


def test_patients_that_differ_in_writing_are_named():
    patients = dict(enumerate(["01", "1", "1.0", "Case 7", "case_7", "10", "A"]))
    assert alike_patients(patients) == [["01", "1", "1.0"], ["Case 7", "case_7"]]


def copied(shared, name, tmp_path):
    return shutil.copytree(shared / "cases" / name, tmp_path / name)


def test_her2st_is_read_as_it_is_published(shared, tmp_path):
    source = copied(shared, "her2st-as-published", tmp_path)
    with pytest.raises(InputError, match=r"section A2 has no file .* and none in"):
        read_source(source)
    slide = read_source(source, only=["A1"])[0]
    assert slide.image == source / "ST-imgs" / "A" / "A1" / "HE.jpg"
    (source / "ST-imgs" / "A" / "A2").mkdir()
    shutil.copy(slide.image, source / "ST-imgs" / "A" / "A2" / "x.jpg")
    (source / "ST-imgs" / "A" / "A2" / "._x.jpg").write_bytes(b"macOS")
    assert [s.slide_id for s in read_source(source)] == ["A1", "A2"]


def test_the_newest_metadata_table_is_used_and_said(shared, tmp_path, capsys):
    source = copied(shared, "hest-two-metadata-tables", tmp_path)
    newest = pd.read_csv(source / "HEST_v1_3_0.csv", dtype=str).set_index("id")
    slides = read_source(source)
    assert "HEST_v1_3_0.csv is used, the newest" in capsys.readouterr().out
    for slide in slides:
        assert slide.patient.endswith(f"/ {newest.loc[slide.slide_id, 'patient'].strip()}")


def test_real_sections_fit_their_array_and_tissue(real_data):
    from histokit.extract.patches import image_thumbnail

    for slide in read_source(real_data / "her2st", "IDC"):
        picture, scale = image_thumbnail(slide.image, 800)
        spots = check_spots(slide.load_spots(), slide.slide_id)
        spots = spots[selected_spots(spots, slide.slide_id)]
        found, row = misfits(spots, picture, scale, slide.mpp, slide.technology)
        assert found == [], slide.slide_id
        assert row["off_tissue"] < 0.15 * len(spots)
        swapped = spots.rename(columns={"x": "y", "y": "x"})
        assert misfits(swapped, picture, scale, slide.mpp, slide.technology)[0]


def test_patches_of_hest_that_are_no_pixels_are_refused(tmp_path):
    write_hest(tmp_path)
    slide = read_source(tmp_path)[0]
    with h5py.File(slide.image, "r+") as file:
        images = file["img"][:].astype(np.float32)
        del file["img"]
        file["img"] = images
    with pytest.raises(InputError, match=r"img is .* of float32; HEST patches are uint8"):
        slide.load_spots()


def test_a_patch_that_no_memory_holds_is_refused_before_it_is_read(tmp_path):
    source = write_cohort(tmp_path / "in", slides=("a",))
    with pytest.raises(InputError, match="--patch-px must be at most 8,192"):
        extract(source, tmp_path / "out", patch_px=100_000)
    with pytest.raises(InputError, match=r"is 10,000 pixels of 0.1 um, more than the 8,192"):
        extract(source, tmp_path / "out", mpp=0.1, patch_um=1000.0)


def test_features_with_fewer_barcodes_than_rows_are_refused(tmp_path):
    out = extract(write_cohort(tmp_path / "in", slides=("a",)), tmp_path / "out")
    with h5py.File(out / "features" / "hed" / "a.h5", "r+") as file:
        names = file["barcodes"][:-1]
        del file["barcodes"]
        file["barcodes"] = names
    with pytest.raises(InputError, match=r"12, .* and 11 barcodes; one row a barcode"):
        Cohort(out, "hed").load("a")
