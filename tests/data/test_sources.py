import numpy as np
import pandas as pd
import pytest
from tiny_slides import SIDE, counts_table, spots_table, write_cohort, write_hest

from histokit.core.errors import InputError
from histokit.data.join import join_spots
from histokit.data.layouts import read_source


def first(folder, **keywords):
    return read_source(write_cohort(folder, **keywords))[0]


def test_cohort_is_joined_by_barcode_in_the_order_of_the_spots(tmp_path):
    counts = counts_table()
    slide = first(tmp_path, counts=counts.sample(frac=1, random_state=0))
    assert (slide.slide_id, slide.cancer, slide.patient, slide.mpp) == ("a", "IDC", "P0", 2.0)
    joined, row = join_spots(slide, SIDE, SIDE)
    spots = spots_table()
    assert joined.obs_names.tolist() == spots["barcode"].tolist()
    np.testing.assert_array_equal(joined.X.toarray(), counts.loc[spots["barcode"]])
    np.testing.assert_allclose(joined.obsm["spatial"], spots[["x", "y"]])
    assert joined.obs["region"].tolist() == ["tumor"] * 12
    assert row["joined"] == 12


def test_reconciliation_counts_every_reason(tmp_path):
    spots = spots_table().assign(selected=[1] * 11 + [0])
    spots.loc[0, ["x", "y"]] = [-1.0, 50.0]
    spots.loc[1, "x"] = SIDE
    counts = counts_table().drop(index=["spot2"]).rename(index={"spot3": "other"})
    joined, row = join_spots(first(tmp_path, spots=spots, counts=counts), SIDE, SIDE)
    assert joined.obs_names.tolist() == [f"spot{i}" for i in range(4, 11)]
    expected = {
        "spots_listed": 12,
        "spots_selected": 11,
        "counts_rows": 11,
        "joined": 7,
        "outside_image": 2,
        "without_counts": 2,
        "counts_without_spot": 2,
    }
    assert {key: row[key] for key in expected} == expected


def test_byte_order_mark_is_read(tmp_path):
    folder = write_cohort(tmp_path)
    for name in ("cohort.csv", "a-spots.csv", "a-counts.tsv"):
        (folder / name).write_text("\ufeff" + (folder / name).read_text())
    slides = read_source(folder / "cohort.csv")
    assert [slide.slide_id for slide in slides] == ["a", "b"]
    assert join_spots(slides[0], SIDE, SIDE)[1]["joined"] == 12


@pytest.mark.parametrize("column", ["slide_id", "mpp", "counts"])
def test_cohort_without_a_column(tmp_path, column):
    path = write_cohort(tmp_path) / "cohort.csv"
    pd.read_csv(path).drop(columns=column).to_csv(path, index=False)
    with pytest.raises(InputError, match=f"no column '{column}'"):
        read_source(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "../a.png"}, "leaves the folder"),
        ({"spots": "/etc/passwd"}, "leaves the folder"),
        ({"counts": "link.tsv"}, "leaves the folder"),
        ({"image": "absent.png"}, "does not exist"),
        ({"slide_id": "same"}, "lists the slide 'same' twice"),
        ({"mpp": -1}, "mpp must be a positive number"),
        ({"mpp": "half"}, "mpp must be a positive number"),
    ],
)
def test_bad_cohort(tmp_path, columns, message):
    outside = tmp_path / "outside.tsv"
    outside.write_text("")
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "link.tsv").symlink_to(outside)
    with pytest.raises(InputError, match=message):
        read_source(write_cohort(folder, columns=columns))


def test_slide_id_that_is_a_path(tmp_path):
    with pytest.raises(InputError, match="cannot name a file"):
        read_source(write_cohort(tmp_path, slides=("a",), columns={"slide_id": "../a"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.assign(barcode="x" + t["barcode"]),
            "no barcode in common .*'xspot0'.*'spot0'",
        ),
        (lambda t: t.assign(x=t["x"] + 1000), "no spot lies on the image"),
        (lambda t: t.iloc[:1], "left after the join: 1"),
        (lambda t: t.assign(barcode="spot1"), "'spot1' is missing or listed twice"),
        (lambda t: t.assign(x="left"), "spot0 has no usable x and y"),
        (lambda t: t.drop(columns="y"), "no column 'y'"),
    ],
)
def test_bad_spots(tmp_path, change, message):
    slide = first(tmp_path, spots=change(spots_table()))
    with pytest.raises(InputError, match=message):
        join_spots(slide, SIDE, SIDE)


def test_spots_table_that_is_empty(tmp_path):
    slide = first(tmp_path, spots=spots_table().iloc[:0])
    with pytest.raises(InputError, match="no barcode in common"):
        join_spots(slide, SIDE, SIDE)


def test_unknown_layout_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"a cohort\.csv, an image, .* Xenium .* or legacy ST"):
        read_source(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_source(tmp_path / "absent")


def write_legacy(folder, pitch=290.0):
    for name in ("ST-imgs", "ST-cnts", "ST-spotfiles"):
        (folder / name).mkdir(parents=True)
    grid = [(x, y) for x in range(3, 7) for y in range(2, 5)]
    table = pd.DataFrame(grid, columns=["x", "y"])
    table = table.assign(
        new_x=table["x"], new_y=table["y"], pixel_x=table["x"] * pitch, pixel_y=table["y"] * pitch
    )
    table["selected"] = [1] * 10 + [0] * 2
    table.to_csv(folder / "ST-spotfiles" / "AB12_selection.tsv", sep="\t", index=False)
    counts = counts_table()
    counts.index = [f"{x}x{y}" for x, y in grid]
    counts.to_csv(folder / "ST-cnts" / "AB12.tsv.gz", sep="\t")
    (folder / "ST-imgs" / "AB12.jpg").write_bytes(b"")
    return table, counts


def test_legacy_layout(tmp_path):
    table, counts = write_legacy(tmp_path)
    (slide,) = read_source(tmp_path, cancer="IDC")
    assert (slide.slide_id, slide.patient, slide.cancer) == ("AB12", "AB", "IDC")
    assert slide.mpp == pytest.approx(200 / 290)
    joined, row = join_spots(slide, 5000, 5000)
    assert row["spots_selected"] == row["joined"] == 10
    np.testing.assert_array_equal(joined.X.toarray(), counts.iloc[:10])
    np.testing.assert_allclose(joined.obsm["spatial"], table[["pixel_x", "pixel_y"]][:10])


def test_legacy_layout_without_an_image(tmp_path):
    write_legacy(tmp_path)
    (tmp_path / "ST-imgs" / "AB12.jpg").unlink()
    with pytest.raises(InputError, match="section AB12 has no file"):
        read_source(tmp_path)


@pytest.mark.parametrize("key", ["barcode", "barcodes"])
def test_hest_layout(tmp_path, key):
    counts = write_hest(tmp_path, key)
    (slide,) = read_source(tmp_path)
    assert (slide.cancer, slide.patient, slide.mpp) == ("SKCM", "Study / 1", 0.25)
    joined, _ = join_spots(slide, np.inf, np.inf)
    assert joined.obs["row"].tolist() == list(range(12))
    np.testing.assert_array_equal(joined.X.toarray(), counts)
    np.testing.assert_allclose(joined.obsm["spatial"], np.arange(24).reshape(12, 2) * 100 + 111.3)


@pytest.mark.parametrize("patient", ["", "   "])
def test_hest_slide_without_a_patient_stands_for_itself(tmp_path, patient):
    write_hest(tmp_path, patient=patient)
    assert read_source(tmp_path)[0].patient == "TENX1"


def test_hest_centers_from_the_patches(tmp_path):
    write_hest(tmp_path, spatial=False)
    joined, _ = join_spots(read_source(tmp_path)[0], np.inf, np.inf)
    np.testing.assert_allclose(joined.obsm["spatial"], np.arange(24).reshape(12, 2) * 100 + 224)


@pytest.mark.parametrize("name", ["patches/TENX1.h5", "st/TENX1.h5ad"])
def test_hest_files_cut_in_the_middle(tmp_path, name):
    write_hest(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"TENX1.*copy it again"):
        join_spots(read_source(tmp_path)[0], np.inf, np.inf)


def test_hest_without_metadata(tmp_path):
    write_hest(tmp_path)
    (tmp_path / "HEST_v1_1_0.csv").unlink()
    with pytest.raises(InputError, match="no metadata table"):
        read_source(tmp_path)


@pytest.mark.real
def test_her2st(real_data):
    slides = read_source(real_data / "her2st", cancer="IDC")
    assert [s.slide_id for s in slides] == ["B4", "C2", "C3", "C4", "C5"]
    assert [s.patient for s in slides] == ["B", "C", "C", "C", "C"]
    assert [s.mpp for s in slides] == pytest.approx([0.69] * 5, abs=0.01)
    joined, row = join_spots(slides[0], 9272, 9923)
    assert joined.shape == (283, 15289)
    assert row["without_counts"] == 1
    assert np.median(np.asarray(joined.X.sum(axis=1))) == 648
