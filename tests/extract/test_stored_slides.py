"""Slides of stored patches, without counts, with a mask, or of a name that is taken."""

import h5py
import numpy as np
import pytest
from PIL import Image
from samples_stores import write_bench
from tiny_slides import counts_table, write_cohort

import run_extract
from histokit.core.errors import InputError

CUT = {"pixel_size": 0.25, "downsample": 2.0}  # 448 level-0 pixels are 112 um


def extract(source, out, **options):
    options = {"encoder": "hed"} | options
    run_extract.main(run_extract.Options(source=str(source), out=str(out), **options))
    return out


def features(out, name="A"):
    with h5py.File(out / "features" / "hed" / f"{name}.h5") as file:
        return file["features"][:], file.attrs["patch_size_level0"]


def test_the_picture_does_not_depend_on_the_side_asked_for(tmp_path):
    write_bench(tmp_path / "in", slides=("A",), attributes=CUT)
    whole = extract(tmp_path / "in", tmp_path / "whole")
    small = extract(tmp_path / "in", tmp_path / "small", patch_um=28.0)
    pictures = [np.asarray(Image.open(o / "thumbnails" / "A.jpg")) for o in (whole, small)]
    np.testing.assert_array_equal(*pictures)


def test_level_0_pixels_are_cut_from_stored_patches(tmp_path):
    write_bench(tmp_path / "in", slides=("A",), attributes=CUT)
    microns = features(extract(tmp_path / "in", tmp_path / "um", patch_um=56.0))
    pixels = features(extract(tmp_path / "in", tmp_path / "px", patch_px=224))
    np.testing.assert_array_equal(microns[0], pixels[0])
    assert microns[1] == pixels[1] == 224
    with pytest.raises(InputError, match="holds patches of 112 um, smaller than"):
        extract(tmp_path / "in", tmp_path / "large", patch_px=449 * 2)


def test_a_slide_of_zeros_stops_and_one_without_counts_does_not(tmp_path):
    write_cohort(tmp_path / "zeros", slides=("a",), counts=counts_table() * 0)
    with pytest.raises(InputError, match="not one count was measured in its 12 spots"):
        extract(tmp_path / "zeros", tmp_path / "out")
    write_cohort(tmp_path / "none", slides=("a",), columns={"counts": ""})
    assert len(features(extract(tmp_path / "none", tmp_path / "bare"), "a")[0]) == 12


def test_a_mask_is_for_slides_without_spots(tmp_path):
    write_cohort(tmp_path / "in", slides=("a",))
    Image.new("L", (40, 40), 255).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"slide a has spots, .*--mask is for slides without"):
        extract(tmp_path / "in", tmp_path / "out", mask=str(tmp_path / "mask.png"))


def test_a_slide_that_takes_the_place_of_another_is_said(tmp_path, capsys):
    extract(write_cohort(tmp_path / "one", slides=("a",)), tmp_path / "out")
    assert "takes the place" not in capsys.readouterr().out
    extract(write_cohort(tmp_path / "two", slides=("a",)), tmp_path / "out", patch_um=112.0)
    said = f"a: takes the place of the slide of this name that was read from {tmp_path / 'one'}"
    assert said in capsys.readouterr().out
