"""Visium as GEO publishes it: gzipped files with the prefix of a sample, in one folder."""

import gzip
import shutil

import numpy as np
import pytest
from samples_10x import (
    GENES,
    MPP,
    counts_of,
    visium_spots,
    write_image,
    write_mex,
    write_visium,
)

from histokit.core.errors import InputError
from histokit.data.layouts import read_source

PREFIX = "GSM123_A1_"


def write_geo(folder, mex=False):
    """One folder of prefixed files, text gzipped; spots and counts."""
    spots, counts = write_visium(folder / "outs", name="tissue_positions_list.csv", header=False)
    for path in [*(folder / "outs" / "spatial").iterdir(), *(folder / "outs").glob("*.*")]:
        content, name = path.read_bytes(), path.name
        if path.suffix in (".csv", ".json"):
            content, name = gzip.compress(content), f"{name}.gz"
        (folder / f"{PREFIX}{name}").write_bytes(content)
    shutil.rmtree(folder / "outs")
    if mex:
        (folder / f"{PREFIX}filtered_feature_bc_matrix.h5").unlink()
        write_mex(folder / "mex", counts)
        for path in (folder / "mex").iterdir():
            path.rename(folder / f"{PREFIX}{path.name}")
        (folder / "mex").rmdir()
    return spots, counts


@pytest.mark.parametrize("mex", [False, True])
def test_gzipped_files_of_one_sample(tmp_path, mex):
    spots, counts = write_geo(tmp_path, mex)
    (slide,) = read_source(tmp_path)
    assert slide.slide_id == "GSM123_A1"
    assert slide.image.name == f"{PREFIX}he.tif"
    assert slide.mpp == pytest.approx(MPP)
    assert slide.notes == ()
    read = slide.load_spots()
    np.testing.assert_allclose(read["x"], spots["pxl_col_in_fullres"])
    np.testing.assert_allclose(read["y"], spots["pxl_row_in_fullres"])
    found = slide.load_counts()
    np.testing.assert_array_equal(found.to_df()[GENES], counts)
    assert len(slide.inputs) == (6 if mex else 4)


def test_the_scale_factors_are_read_gzipped(tmp_path):
    write_geo(tmp_path)
    path = tmp_path / f"{PREFIX}scalefactors_json.json.gz"
    path.write_bytes(gzip.compress(b'{"spot_diameter_fullres": 100.0}'))
    with pytest.raises(InputError, match=r"microns per pixel disagree: .* 0\.65 um"):
        read_source(tmp_path)
    path.write_bytes(gzip.compress(b"[1]"))
    with pytest.raises(InputError, match="holds no JSON object of scale factors"):
        read_source(tmp_path)


def test_two_samples_in_one_folder(tmp_path):
    write_geo(tmp_path, mex=True)
    write_mex(tmp_path / "mex", counts_of(visium_spots()["barcode"]))
    for path in (tmp_path / "mex").iterdir():
        path.rename(tmp_path / f"GSM124_B1_{path.name}")
    with pytest.raises(InputError, match="are both there, and one matrix is wanted"):
        read_source(tmp_path)


def test_a_matrix_of_another_sample(tmp_path):
    write_geo(tmp_path, mex=True)
    for path in tmp_path.glob("*_A1_*.tsv.gz"):
        path.rename(tmp_path / path.name.replace("GSM123_A1", "GSM124_B1"))
    with pytest.raises(InputError, match=r"different data sets \(GSM123_A1, GSM124_B1\)"):
        read_source(tmp_path)


def test_pictures_that_space_ranger_makes_are_no_slides(tmp_path):
    write_geo(tmp_path)
    (tmp_path / f"{PREFIX}he.tif").unlink()
    for name in ("aligned_fiducials.jpg", "detected_tissue_image.jpg", "cytassist_image.tiff"):
        write_image(tmp_path / f"{PREFIX}{name}")
    with pytest.raises(InputError, match="no full-resolution image"):
        read_source(tmp_path)
