import json

import numpy as np
import pandas as pd
import pytest
from samples_10x import MPP, hd_bins, places, write_hd, write_image, write_visium

from histokit.core.errors import InputError
from histokit.data.join import join_spots
from histokit.data.layouts import read_source
from histokit.data.sources import Ask
from histokit.data.spaceranger import detect_spaceranger
from histokit.data.visium_hd import detect_visium_hd, read_visium_hd

WIDE = 1_000_000


def read(source, **ask):
    assert detect_visium_hd(source)
    assert not detect_spaceranger(source)
    (slide,) = read_visium_hd(source, Ask(**ask))
    return slide


def write(folder, sizes=(16,), rows=22, columns=29, prefix="", **how):
    """Outputs of a tiny array with an image; bins and counts of the last size."""
    for size in sizes:
        made = hd_bins(size, rows, columns, **how)
        counts = write_hd(
            folder / f"{prefix}binned_outputs/square_{size:03d}um", size, made, prefix
        )
    write_image(folder / f"{prefix}tissue_image.tif")
    return made, counts


def pooled(bins, counts, n):
    """Sums over bins by array row and column of the square, one bin at a time."""
    sums, held = {}, {}
    for bin_ in bins[bins["in_tissue"] == 1].itertuples():
        key = (bin_.array_row // n, bin_.array_col // n)
        held[key] = held.get(key, 0) + 1
        sums[key] = sums.get(key, 0) + counts.loc[bin_.barcode].to_numpy()
    return sums, held


@pytest.mark.parametrize("source", ["run", "run/outs"])
@pytest.mark.parametrize("prefix", ["", "Visium_HD_Colon_"])
def test_bins_are_pooled_into_squares(tmp_path, source, prefix):
    bins, counts = write(tmp_path / "run/outs", prefix=prefix, turn=12)
    slide = read(tmp_path / source, cancer="COAD")
    assert slide.slide_id == (prefix.strip("_") or "run")
    assert (slide.technology, slide.cancer) == ("Visium HD", "COAD")
    assert slide.mpp == pytest.approx(MPP)
    assert slide.mpp_source == "microns_per_pixel of scalefactors_json.json"
    assert slide.image.name == f"{prefix}tissue_image.tif"
    joined, row = join_spots(slide, WIDE, WIDE)
    sums, _ = pooled(bins, counts, 7)
    assert joined.n_obs == row["joined"] == 3 * 4  # of 22 x 29 bins, 1 row and 1 column are left
    for name, total in zip(joined.obs_names, joined.X.toarray(), strict=True):
        key = (int(name[8:13]), int(name[14:19]))
        assert name == f"s_112um_{key[0]:05d}_{key[1]:05d}"
        np.testing.assert_array_equal(total, sums[key])
    centers = places(
        (joined.obs["array_col"] + 0.5) * 112, (joined.obs["array_row"] + 0.5) * 112, turn=12
    )
    np.testing.assert_allclose(joined.obsm["spatial"], centers, rtol=1e-9)
    assert joined.obs["bins"].tolist() == [49] * 12
    assert joined.obs["share"].tolist() == [1.0] * 12
    assert "left out 8 squares cut by the border and 0 with" in row["note"]
    assert joined.var["gene_id"].str.startswith("ENSG").all()


def test_squares_with_less_than_half_in_tissue_are_left_out(tmp_path):
    # of rows 0 to 6 of bins (the first row of squares) 3 are in tissue, of 7 to 13 there are 4
    bins, counts = write(
        tmp_path, rows=21, columns=14, tissue=lambda r, c: (r < 3) | ((r >= 7) & (r < 11))
    )
    slide = read(tmp_path)
    joined, row = join_spots(slide, WIDE, WIDE)
    assert joined.obs_names.tolist() == ["s_112um_00001_00000", "s_112um_00001_00001"]
    assert joined.obs["bins"].tolist() == [28, 28]
    sums, _ = pooled(bins, counts, 7)
    np.testing.assert_array_equal(joined.X.toarray(), [sums[1, 0], sums[1, 1]])
    # the center is that of the square, not of the bins in tissue
    np.testing.assert_allclose(joined.obsm["spatial"], places([56.0, 168.0], [168.0, 168.0]))
    assert "0 squares cut by the border and 2 with less than 50% in tissue" in row["note"]


def test_a_bin_that_the_matrix_lacks_adds_nothing(tmp_path):
    bins, _ = write(tmp_path, rows=7, columns=14)
    folder = tmp_path / "binned_outputs/square_016um"
    counts = write_hd(folder, 16, bins.assign(in_tissue=[0] + [1] * 97))
    bins.to_parquet(folder / "spatial" / "tissue_positions.parquet")
    slide = read(tmp_path)
    assert slide.load_spots()["bins"].tolist() == [49, 49]
    assert len(counts) == 97
    np.testing.assert_array_equal(slide.load_counts().X.sum(axis=0).A1, counts.sum())


def test_the_coarsest_bins_that_fit_are_used(tmp_path):
    write(tmp_path, sizes=(2, 8, 16), rows=30, columns=30)
    assert "of 16 um are pooled into squares of 7 x 7" in read(tmp_path).notes[-1]
    assert "of 8 um are pooled into squares of 3 x 3" in read(tmp_path, bin_um=24.0).notes[-1]
    assert "of 2 um are pooled into squares of 7 x 7" in read(tmp_path, bin_um=14.0).notes[-1]
    with pytest.raises(
        InputError, match=r"113 um .*\(56 bins of 2 um\) or 112 um \(14 bins of 8 um"
    ):
        read(tmp_path, bin_um=113.0)
    one = read(tmp_path / "binned_outputs/square_008um", image=tmp_path / "tissue_image.tif")
    assert "of 8 um are pooled into squares of 14 x 14" in one.notes[-1]
    assert one.slide_id == tmp_path.name


def test_every_size_gives_squares_at_the_same_places(tmp_path):
    for size in (2, 8):
        write(tmp_path / str(size), sizes=(size,), rows=32 // size * 2, columns=32 // size * 3)
        spots = read(tmp_path / str(size), bin_um=32.0).load_spots()
        np.testing.assert_allclose(
            spots[["x", "y"]], places([16, 48, 80] * 2, [16] * 3 + [48] * 3), rtol=1e-9
        )


def test_images_of_visium_hd(tmp_path):
    write(tmp_path / "outs")
    write_image(tmp_path / "outs" / "X_cytassist_image.tiff")
    assert read(tmp_path).image.name == "tissue_image.tif"
    (tmp_path / "outs" / "tissue_image.tif").unlink()
    (tmp_path / "outs" / "X_cytassist_image.tiff").unlink()
    with pytest.raises(InputError, match="no full-resolution image; give the image"):
        read(tmp_path)
    image = write_image(tmp_path / "microscope_image" / "scan.png")
    assert read(tmp_path).image == image


def test_a_small_copy_scales_coordinates_and_mpp(tmp_path):
    write(tmp_path)
    image = tmp_path / "binned_outputs/square_016um/spatial/tissue_hires_image.png"
    slide = read(tmp_path, image=image)
    assert slide.mpp == pytest.approx(MPP / 0.25)
    np.testing.assert_allclose(slide.load_spots()[["x", "y"]][:1], places([56], [56]) / 4)
    assert any("small copy" in note for note in slide.notes)


def test_figures_for_mpp_that_disagree(tmp_path):
    write(tmp_path)
    path = tmp_path / "binned_outputs/square_016um/spatial/scalefactors_json.json"
    scales = json.loads(path.read_text())
    for key, factor in (("microns_per_pixel", 1.1), ("spot_diameter_fullres", 1.1)):
        path.write_text(json.dumps(scales | {key: scales[key] * factor}))
        with pytest.raises(InputError, match=r"disagree: .*microns_per_pixel.*bin_size_um.*pitch"):
            read(tmp_path)
        assert read(tmp_path, mpp=MPP).mpp == MPP
    path.unlink()
    slide = read(tmp_path)
    assert slide.mpp == pytest.approx(MPP)
    assert slide.mpp_source == "bin pitch 16 um"


def test_bins_of_another_slide(tmp_path):
    write(tmp_path)
    path = tmp_path / "binned_outputs/square_016um/spatial/tissue_positions.parquet"
    bins = pd.read_parquet(path)
    bins.assign(barcode="x" + bins["barcode"]).to_parquet(path)
    with pytest.raises(InputError, match="have no bin in common"):
        read(tmp_path).load_counts()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"tissue_positions\.parquet is not a whole Parquet"):
        read(tmp_path)


def test_other_folders_are_not_taken(tmp_path):
    write_visium(tmp_path / "visium")
    for folder in (tmp_path, tmp_path / "visium", tmp_path / "absent"):
        assert not detect_visium_hd(folder)


def test_the_folder_of_positions_is_one_of_bins(tmp_path):
    folder = tmp_path / "run" / "square_008um"
    write_hd(folder, 8, hd_bins(8, 28, 28))
    write_image(tmp_path / "run" / "he.tif")
    (slide,) = read_source(folder / "spatial")
    assert (slide.technology, slide.slide_id) == ("Visium HD", "run")
    assert slide.mpp == pytest.approx(MPP)


def test_bins_outside_a_folder_of_bins_are_no_visium(tmp_path):
    write_hd(tmp_path / "flat", 8, hd_bins(8, 28, 28))
    write_image(tmp_path / "flat" / "he.tif")
    with pytest.raises(InputError, match="lists bins of Visium HD; put the matrix"):
        read_source(tmp_path / "flat")
