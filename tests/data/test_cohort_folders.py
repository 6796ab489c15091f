"""Rows of a cohort.csv whose counts are a platform's folder."""

import numpy as np
import pandas as pd
import pytest
from samples_10x import MPP, hd_bins, write_hd, write_image, write_mex, write_visium
from samples_stores import write_xenium
from tiny_slides import counts_table, write_cohort

from histokit.core.errors import InputError
from histokit.data.layouts import read_source

ROW = {"slide_id": "S1", "cancer": "IDC", "patient": "P1", "technology": "", "image": ""}
ROW |= {"spots": "", "counts": "run", "mpp": ""}


def listed(folder, rows):
    pd.DataFrame([ROW | row for row in rows]).to_csv(folder / "cohort.csv", index=False)
    return folder


def test_space_ranger_with_the_image_of_the_row(tmp_path):
    spots, _ = write_visium(tmp_path / "run" / "outs")
    image = write_image(tmp_path / "scans" / "one.tif")
    listed(tmp_path, [{"image": "scans/one.tif"}, {"slide_id": "S2", "patient": "", "cancer": ""}])
    one, two = read_source(tmp_path, cancer="SKCM")
    assert (one.slide_id, one.cancer, one.patient) == ("S1", "IDC", "P1")
    assert (two.slide_id, two.cancer, two.patient) == ("S2", "SKCM", "S2")
    assert (one.image, two.image.name) == (image, "he.tif")
    assert one.mpp == pytest.approx(MPP)
    assert (one.technology, one.mpp_source) == ("Visium", "spot pitch 100 um")
    np.testing.assert_allclose(one.load_spots()["x"], spots["pxl_col_in_fullres"])
    assert one.load_counts().n_obs == int(spots["in_tissue"].sum())


def test_bins_and_transcripts_are_pooled(tmp_path):
    bins = hd_bins(8, 28, 28)
    write_hd(tmp_path / "hd" / "binned_outputs" / "square_008um", 8, bins)
    write_image(tmp_path / "hd" / "he.tif")
    write_xenium(tmp_path / "xenium")
    rows = [{"counts": "hd"}, {"slide_id": "S2", "counts": "xenium", "technology": "10x Xenium"}]
    hd, xenium = read_source(listed(tmp_path, rows))
    assert hd.technology == "Visium HD"
    assert len(hd.load_spots()) == 4
    assert xenium.technology == "Xenium"
    assert xenium.load_counts().n_vars == 4
    small = read_source(tmp_path, bin_um=56.0)[0]
    assert len(small.load_spots()) == 16


def test_the_pixel_size_of_the_row(tmp_path):
    write_visium(tmp_path / "run")
    (slide,) = read_source(listed(tmp_path, [{"mpp": 0.5}]))
    assert (slide.mpp, slide.mpp_source) == (0.5, "cohort.csv")
    assert slide.notes[-1].startswith("the mpp of cohort.csv 0.5 is used, where the array says")
    (slide,) = read_source(tmp_path, mpp=0.6)
    assert (slide.mpp, slide.mpp_source) == (0.6, "--mpp")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"technology": "Xenium"}, "technology 'Xenium', and 'run' is a folder of Visium"),
        ({"counts": "empty"}, "are no folder of Space Ranger, Visium HD or Xenium"),
        ({"counts": "../elsewhere"}, "leaves the folder of the cohort"),
        ({"counts": "absent"}, "'absent' does not exist"),
        ({"counts": ""}, "names no image; fill the column image"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, said):
    write_visium(tmp_path / "in" / "run")
    write_visium(tmp_path / "elsewhere")
    (tmp_path / "in" / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        read_source(listed(tmp_path / "in", [row]))


def test_a_mex_folder_with_spots_of_its_own(tmp_path):
    write_cohort(tmp_path, slides=("a",), columns={"counts": "mex"})
    counts = counts_table()
    write_mex(tmp_path / "mex", counts)
    (slide,) = read_source(tmp_path)
    assert slide.load_counts().to_df()[list(counts)].to_numpy().tolist() == counts.values.tolist()
    assert len(slide.inputs) == 5


def test_an_image_for_slides_that_have_their_own(tmp_path):
    image = write_image(tmp_path / "other.png")
    write_cohort(tmp_path / "in")
    for source, only in ((tmp_path / "in", []), (tmp_path / "in", ["a"]), (image.parent, [])):
        with pytest.raises(InputError, match="--image gives the image of a folder of one slide"):
            read_source(source, only=only, image=tmp_path / "in" / "b.png")
