import numpy as np
import pandas as pd
import pytest
import tifffile
from samples_stores import (
    GENES,
    PIXEL_SIZE,
    TILTED,
    TURNED,
    cells_as_csv,
    to_um,
    transcripts_table,
    write_cells,
    write_xenium,
)
from tiny_slides import picture

from histokit.core.errors import InputError
from histokit.data.alignment import read_alignment
from histokit.data.join import join_spots
from histokit.data.sources import Ask
from histokit.data.xenium import detect_xenium, read_xenium

MPP = 1.2896 * PIXEL_SIZE
ASK = Ask(bin_um=100 * MPP)  # squares of 100 px
SQUARES = ["00000x00000", "00000x00001", "00003x00001"]


def only(folder, ask=ASK):
    (slide,) = read_xenium(folder, ask)
    return slide


@pytest.mark.parametrize("matrix", [TURNED, TILTED], ids=["mirrored", "tilted"])
def test_transcripts_become_squares_on_an_image_that_lies_otherwise(tmp_path, matrix):
    folder = write_xenium(tmp_path / "output-XETG1", matrix)
    assert detect_xenium(folder)
    slide = only(folder)
    assert (slide.slide_id, slide.technology) == ("output-XETG1", "Xenium")
    assert slide.mpp == pytest.approx(0.2740, abs=1e-4)
    assert slide.mpp_source == "alignment matrix"
    spots = slide.load_spots()
    assert spots["barcode"].tolist() == SQUARES
    np.testing.assert_allclose(spots[["x", "y"]], [[50, 50], [150, 50], [150, 350]], rtol=1e-5)
    assert spots["cells"].tolist() == [2, 0, 1]
    assert spots["transcripts"].tolist() == [2, 1, 1]
    assert spots[["array_row", "array_col"]].to_numpy().tolist() == [[0, 0], [0, 1], [3, 1]]
    counts = slide.load_counts()
    expected = pd.DataFrame([[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], SQUARES, GENES)
    pd.testing.assert_frame_equal(counts.to_df(), expected, check_dtype=False)
    assert counts.var["measured"].all()
    assert counts.var["gene_id"].tolist() == [f"ENSG0000000000{i}" for i in range(4)]
    assert counts.uns["control_probes"] == 2
    assert "9 transcripts left out: 3 of controls, 1 below Q20, 1 outside" in counts.uns["note"]
    joined, row = join_spots(slide, 400, 400)
    assert (row["joined"], row["control_probes"], row["other_features"]) == (3, 2, 0)
    assert joined.obs["cells"].tolist() == [2, 0, 1]


@pytest.mark.parametrize("matrix", [TURNED, TILTED], ids=["mirrored", "tilted"])
def test_the_inverse_direction_would_leave_the_image(tmp_path, matrix):
    folder = write_xenium(tmp_path / "run", matrix, cells=False)
    path = folder / "run_he_imagealignment.csv"
    pixels = read_alignment(path).to_image(to_um([(10, 20), (150, 350)], matrix) / PIXEL_SIZE)
    np.testing.assert_allclose(pixels, [[10, 20], [150, 350]], atol=1e-6)
    np.savetxt(path, np.linalg.inv(matrix), delimiter=",")
    # the inverse makes a pixel 0.1648 um, and squares of 27 um 166 pixels
    slide = only(folder)
    assert slide.mpp == pytest.approx(PIXEL_SIZE / 1.2896)
    with pytest.raises(InputError, match=r"no spot lies on the image|left after the join"):
        join_spots(slide, 400, 400)


def test_panel_genes_without_transcripts_are_measured_and_unknown_panels_are_said(tmp_path):
    slide = only(write_xenium(tmp_path / "run"))
    counts = slide.load_counts()
    assert counts[:, "SILENT"].X.sum() == 0
    assert bool(counts.var.loc["SILENT", "measured"])
    bare = only(write_xenium(tmp_path / "bare", cells=False)).load_counts()
    assert bare.var_names.tolist() == ["EPCAM", "KRT8", "CD3E"]
    assert "without cell_feature_matrix.h5" in bare.uns["note"]


def old(table: pd.DataFrame) -> pd.DataFrame:
    """As old versions wrote it: names in bytes, no kinds, cells as numbers."""
    names = table["feature_name"].str.encode("utf-8")
    return table.drop(columns="is_gene").assign(feature_name=names, cell_id=-1)


def with_category(table: pd.DataFrame) -> pd.DataFrame:
    kinds = {"NegControlProbe_00001": "negative_control_probe"}
    kinds["UnassignedCodeword_0001"] = "unassigned_codeword"
    kinds["KRT8"] = "custom_gene"
    words = table["feature_name"].map(kinds).fillna("predesigned_gene").astype("category")
    return table.drop(columns="is_gene").assign(codeword_category=words)


@pytest.mark.parametrize("change", [old, with_category])
@pytest.mark.parametrize("cells", [True, False])
def test_genes_are_told_in_every_version(tmp_path, change, cells):
    folder = write_xenium(tmp_path / "run", transcripts=change(transcripts_table()), cells=cells)
    counts = only(folder).load_counts()
    assert counts.obs_names.tolist() == SQUARES
    assert counts.var_names.tolist() == list(GENES)[: 4 if cells else 3]
    assert counts.X.sum() == 4
    assert counts.uns["control_probes"] == 2


def test_batches_add_up(tmp_path, monkeypatch):
    table = pd.concat([transcripts_table()] * 50, ignore_index=True)
    folder = write_xenium(tmp_path / "run", transcripts=table)
    monkeypatch.setattr("histokit.data.xenium_counts._BATCH", 7)
    monkeypatch.setattr("histokit.data.pooling._PENDING", 5)
    counts = only(folder).load_counts().to_df()
    assert counts.to_numpy().tolist() == [[100, 0, 0, 0], [0, 50, 0, 0], [0, 0, 50, 0]]


@pytest.mark.parametrize("ids", ["text", "numbers", "bytes", "csv"])
def test_cells_are_pooled_where_there_are_no_transcripts(tmp_path, ids):
    folder = write_xenium(tmp_path / "run", transcripts=False)
    if ids == "numbers":
        write_cells(folder, ids=(1, 2, 3, 4))
    if ids == "bytes":
        write_cells(folder)
        table = pd.read_parquet(folder / "cells.parquet")
        table["cell_id"] = table["cell_id"].str.encode("utf-8")
        table.to_parquet(folder / "cells.parquet")
    if ids == "csv":
        cells_as_csv(folder)
    slide = only(folder)
    assert "cells are pooled by their centers" in " ".join(slide.notes)
    counts, spots = slide.load_counts(), slide.load_spots()
    assert counts.obs_names.tolist() == spots["barcode"].tolist() == [SQUARES[0], SQUARES[2]]
    assert counts.to_df().to_numpy().tolist() == [[5, 0, 1, 0], [0, 4, 0, 0]]
    assert spots["cells"].tolist() == [2, 1]
    assert spots["transcripts"].tolist() == [6, 4]
    assert "1 cells outside the H&E" in counts.uns["note"]
    assert counts.uns["other_features"] == 2


def test_cells_of_another_run(tmp_path):
    folder = write_xenium(tmp_path / "run", transcripts=False)
    table = pd.read_parquet(folder / "cells.parquet").assign(cell_id=list("abcd"))
    table.to_parquet(folder / "cells.parquet")
    with pytest.raises(InputError, match="no cell in common"):
        only(folder).load_counts()


def keypoints(noise=0.0) -> pd.DataFrame:
    moving = np.array([[0, 0], [300, 10], [20, 350], [310, 360], [150, 150]], float)
    fixed = to_um(moving) / PIXEL_SIZE + noise * np.array([1, -1, -1, 1, 0])[:, None]
    names = ["fixedX", "fixedY", "alignmentX", "alignmentY"]
    return pd.DataFrame(np.column_stack([fixed, moving]), columns=names)


def test_keypoints_are_fitted_all_and_the_residual_is_said(tmp_path):
    folder = write_xenium(tmp_path / "run")
    (folder / "run_he_imagealignment.csv").unlink()
    keypoints().to_csv(folder / "keypoints.csv", index=False)
    slide = only(folder)
    assert slide.mpp == pytest.approx(MPP, rel=1e-5)
    assert slide.load_spots()["barcode"].tolist() == SQUARES
    assert "the 5 keypoints of keypoints.csv fit with a residual of 0.00 um" in slide.notes
    keypoints(noise=2.0).to_csv(folder / "keypoints.csv", index=False)
    # by which (1, -1, -1, 1) escapes an affine map, both ways: 2 px of sqrt(2) in 4 of 5 points
    about = float(only(folder).notes[0].split()[-2])
    assert about == pytest.approx(2 * 2**0.5 * 0.8**0.5 * PIXEL_SIZE, rel=0.02)


@pytest.mark.parametrize("rows", [slice(0, 2), "line"])
def test_keypoints_that_fix_no_map(tmp_path, rows):
    table = keypoints()
    table = table.assign(alignmentX=table["alignmentY"]) if rows == "line" else table[rows]
    path = tmp_path / "keypoints.csv"
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match="at least 3 that do not lie on one line"):
        read_alignment(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,0,0\n0,1,0\n", "no alignment"),
        ("a,b,c\n1,0,0\n0,1,0\n0,0,1\n", "no alignment"),
        ("1,0,0\n0,1,0\n0.1,0,1\n", "no affine map"),
        ("1,nan,0\n0,1,0\n0,0,1\n", "no affine map"),
        ("1,1,0\n1,1,0\n0,0,1\n", "no inverse"),
    ],
)
def test_bad_matrix(tmp_path, text, message):
    path = tmp_path / "x_he_imagealignment.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_alignment(path)


def test_without_an_alignment(tmp_path):
    folder = write_xenium(tmp_path / "run")
    (folder / "run_he_imagealignment.csv").unlink()
    (folder / "metrics_summary.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"no alignment of its H&E image .* Xenium Explorer"):
        only(folder)


def test_alignment_and_image_beside_the_folder(tmp_path):
    folder = write_xenium(tmp_path / "run")
    for name in ("run_he_image.ome.tif", "run_he_imagealignment.csv"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(InputError, match=r"0 images .*--image"):
        only(folder)
    image = tmp_path / "run_he_image.ome.tif"
    slide = only(folder, Ask(bin_um=ASK.bin_um, image=image))
    assert (slide.image, slide.load_spots()["barcode"].tolist()) == (image, SQUARES)
    (tmp_path / "other_he_imagealignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    assert only(folder, Ask(bin_um=ASK.bin_um, image=image)).mpp == slide.mpp
    (tmp_path / "run_he_imagealignment.csv").rename(tmp_path / "b_he_imagealignment.csv")
    with pytest.raises(InputError, match="several alignments"):
        only(folder, Ask(image=image))


def test_stretched_alignment_needs_mpp(tmp_path):
    matrix = TURNED @ np.diag([1.03, 1.0, 1.0])
    folder = write_xenium(tmp_path / "run", matrix)
    with pytest.raises(InputError, match="more than 2% apart"):
        only(folder)
    slide = only(folder, Ask(bin_um=ASK.bin_um, mpp=MPP))
    assert (slide.mpp, slide.mpp_source, slide.notes) == (MPP, "--mpp", ())
    assert "0.2781 um and 0.5 is used" in only(folder, Ask(mpp=0.5)).notes[0]
    assert slide.load_spots()["barcode"].tolist() == SQUARES


def test_default_squares_are_112_um(tmp_path):
    slide = only(write_xenium(tmp_path / "run"), Ask())
    row = slide.load_spots().iloc[0]
    assert row["x"] * 2 * slide.mpp == pytest.approx(112)


def test_experiment_without_a_pixel_size(tmp_path):
    slide = only(write_xenium(tmp_path / "run", experiment={"run_name": "x"}))
    assert slide.mpp == pytest.approx(MPP, rel=1e-5)
    assert "no pixel_size; 0.2125 um is taken" in slide.notes[0]
    with pytest.raises(InputError, match="pixel_size must be a positive number"):
        only(write_xenium(tmp_path / "zero", experiment={"pixel_size": 0}))


def test_run_without_counts(tmp_path):
    folder = write_xenium(tmp_path / "run", transcripts=False, cells=False)
    with pytest.raises(InputError, match=r"neither transcripts\.parquet nor"):
        only(folder)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("fault", ["cut", "column", "empty", "place", "far", "outside"])
def test_bad_transcripts(tmp_path, fault):
    table, message = transcripts_table(), "not a whole table of transcripts"
    if fault == "column":
        table, message = table.drop(columns="qv"), "no column 'qv'"
    if fault == "empty":
        table.loc[0, "feature_name"], message = None, "empty fields in the column 'feature_name'"
    if fault == "place":
        table.loc[0, "x_location"], message = (
            np.inf,
            r"transcripts\.parquet holds a place that is no",
        )
    if fault == "far":
        table.loc[0, ["x_location", "y_location"]], message = 1e9, "check the alignment"
    if fault == "outside":
        table["y_location"], message = 0.0, "no transcript of a gene lies on the H&E"
    folder = write_xenium(tmp_path / "run", transcripts=table)
    path = folder / "transcripts.parquet"
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=message):
        only(folder).load_counts()


def test_other_folders_are_no_xenium(tmp_path):
    assert not detect_xenium(tmp_path)
    assert not detect_xenium(tmp_path / "absent")
    folder = write_xenium(tmp_path / "run")
    assert read_xenium(folder, Ask(only=frozenset(["other"]))) == []
    with pytest.raises(InputError, match="--layer"):
        only(folder).load_counts(layer="raw")


@pytest.mark.parametrize(("tag", "refused"), [(1, False), (6, True), (9, False)])
def test_an_image_that_is_shown_turned_is_refused(tmp_path, tag, refused):
    folder = write_xenium(tmp_path / "run")
    image = folder / "run_he_image.ome.tif"
    tags = [(274, "H", 1, tag, True)]
    tifffile.imwrite(image, picture(side=400), photometric="rgb", extratags=tags)
    if refused:
        with pytest.raises(InputError, match=r"has the orientation tag 6, .* without that tag"):
            only(folder)
    else:
        assert only(folder).image == image


def test_an_id_in_place_of_the_name(tmp_path):
    (slide,) = read_xenium(write_xenium(tmp_path / "run"), ASK, "S1")
    assert (slide.slide_id, slide.patient) == ("S1", "S1")


@pytest.mark.parametrize("given", ["resegmented", "resegmented/outs"])
def test_outputs_of_xenium_ranger_are_called_by_their_run(tmp_path, given):
    write_xenium(tmp_path / "resegmented" / "outs")
    assert detect_xenium(tmp_path / given)
    slide = only(tmp_path / given)
    assert slide.slide_id == "resegmented"
    assert slide.load_spots()["barcode"].tolist() == SQUARES
