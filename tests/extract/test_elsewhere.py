"""Features of TRIDENT, CLAM and HEST as a source, and ours as they would read them."""

import h5py
import numpy as np
import pandas as pd
import pytest
from tiny_slides import SIDE, spots_table, write_cohort

import run_extract
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.extract.elsewhere import join_patches, read_embedded

PATCH = 50  # level-0 pixels of a patch
CORNERS = np.array([(x, y) for y in range(0, SIDE, PATCH) for x in range(0, SIDE, PATCH)])


def features(corners=CORNERS, dim=6, dtype=np.float32):
    """Each patch its own place in the first two features."""
    values = np.random.default_rng(0).normal(size=(len(corners), dim))
    values[:, :2] = corners
    return values.astype(dtype)


def trident(path, corners=CORNERS, values=None, **attributes):
    """As TRIDENT writes it: sizes among the attributes of coords, None as a word."""
    about = {
        "patch_size": 256,
        "patch_size_level0": PATCH,
        "level0_magnification": 20,
        "target_magnification": 20,
        "overlap": 0,
        "name": path.stem,
        "savetodir": "None",
        "level0_width": SIDE,
        "level0_height": SIDE,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features(corners) if values is None else values
        file["coords"] = corners
        file["features"].attrs.update({"encoder": "uni_v1", "name": path.stem})
        for key, value in (about | attributes).items():
            if value is not None:
                file["coords"].attrs[key] = value
    return path


def clam(path):
    """As CLAM writes it: the side at a level, and the downsample of that level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = features(), CORNERS
        level = {"patch_level": 1, "patch_size": PATCH // 2, "downsample": [2.0, 2.0]}
        file["coords"].attrs.update(level)
    return path


def hest(path, barcodes):
    """As HEST-Bench writes it: a row for each spot, which is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["embeddings"] = features(np.arange(2 * len(barcodes)).reshape(-1, 2))
        file["coords"] = np.arange(2 * len(barcodes)).reshape(-1, 2)
        file["barcodes"] = np.array(barcodes, dtype="S")[:, None]
    return path


@pytest.fixture
def extracted(tmp_path, call):
    """Extract the tiny cohort from features made elsewhere."""

    def extract(made, encoder="other", *more, source=None):
        source = source or write_cohort(tmp_path / "source")
        out = tmp_path / "data"
        given = ["--source", source, "--out", out, "--features-from", made, "--encoder", encoder]
        result = call(run_extract, *given, *more)
        if result.returncode:
            raise InputError(result.stderr)
        return Cohort(out, next((out / "features").iterdir()).name)

    return extract


@pytest.mark.parametrize("write", [trident, clam])
def test_each_spot_takes_the_patch_that_contains_its_center(write, extracted, tmp_path):
    for name in "ab":
        write(tmp_path / "made" / f"{name}.h5")
    cohort = extracted(tmp_path / "made")
    assert cohort.encoder == f"other@{write.__name__}"
    slide, spots = cohort.load("a"), spots_table(seed=0).set_index("barcode")
    assert slide.counts.shape == (12, 6)
    for barcode, row in zip(slide.barcodes, slide.features.numpy(), strict=True):
        x, y = spots.loc[barcode, ["x", "y"]]
        assert row[:2].tolist() == [x // PATCH * PATCH, y // PATCH * PATCH]


def test_overlapping_patches_give_the_one_whose_center_is_nearest(tmp_path):
    corners = np.array([(0, 0), (20, 0), (200, 200)])
    embedded = read_embedded(trident(tmp_path / "a.h5", corners), "a")
    rows, distance = join_patches(
        np.array([[30.0, 25], [44, 25], [120, 120], [250, 250]]), embedded
    )
    assert rows.tolist() == [0, 1, -1, 2]  # on the border counts as inside
    assert distance[[0, 1, 3]].tolist() == [5, 1, 25]


def test_spots_in_no_patch_are_left_out_and_counted(extracted, tmp_path):
    spots = spots_table(seed=0)
    kept = CORNERS[CORNERS[:, 1] >= 100]
    for name in "ab":
        trident(tmp_path / "made" / f"{name}.h5", kept)
    cohort = extracted(tmp_path / "made")
    inside = spots["barcode"][spots["y"] >= 100]
    assert cohort.load("a").barcodes == inside.tolist()
    table = pd.read_csv(cohort.folder / "reconciliation.csv").set_index("slide_id")
    assert table.loc["a", "without_patch"] == (spots["y"] < 100).sum() > 0


def test_half_precision_is_read_as_it_is(tmp_path):
    path = trident(tmp_path / "a.h5", values=features(dtype=np.float16))
    embedded = read_embedded(path, "a")
    assert embedded.features.dtype == np.float32
    np.testing.assert_array_equal(embedded.features, features(dtype=np.float16))
    assert embedded.about["encoder"] == "uni_v1"


def test_hest_embeddings_are_joined_by_barcode(extracted, tmp_path):
    names = [f"spot{i}" for i in range(12)]
    for name in "ab":
        hest(tmp_path / "made" / f"{name}.h5", names[::-1])
    slide = extracted(tmp_path / "made").load("a")
    wanted = [22 - 2 * int(b.removeprefix("spot")) for b in slide.barcodes]
    assert slide.features[:, 0].tolist() == wanted


def test_patches_stand_for_themselves_where_there_are_no_spots(extracted, tmp_path):
    source = write_cohort(tmp_path / "source") / "a.png"
    trident(tmp_path / "made" / "a.h5")
    cohort = extracted(tmp_path / "made", "other", "--mpp", 2, source=source)
    slide = cohort.load("a")
    assert len(slide.barcodes) == len(CORNERS)
    assert slide.counts.shape[1] == 0
    np.testing.assert_array_equal(slide.centers - PATCH / 2, slide.features[:, :2])


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        ({"corners": CORNERS[:0], "values": np.empty((0, 6))}, "holds no patch"),
        ({"corners": CORNERS[:0], "values": np.empty(0)}, "holds no patch"),
        ({"values": features()[:5]}, "one row a patch"),
        ({"values": np.full((len(CORNERS), 6), np.nan)}, "not finite"),
        ({"corners": np.zeros_like(CORNERS)}, "two patches at one place"),
        ({"corners": CORNERS * 40}, "outside the image of 400 x 400 px"),
        ({"patch_size_level0": None, "patch_size": "None"}, "--patch-px"),
    ],
)
def test_what_cannot_be_placed_is_refused(made, sentence, extracted, tmp_path):
    for name in "ab":
        trident(tmp_path / "made" / f"{name}.h5", **made)
    with pytest.raises(InputError, match=sentence):
        extracted(tmp_path / "made")
    assert not (tmp_path / "data" / "slides.csv").exists()


def test_a_side_that_the_file_lacks_may_be_given(extracted, tmp_path):
    for name in "ab":
        trident(tmp_path / "made" / f"{name}.h5", patch_size_level0=None, patch_size=None)
    cohort = extracted(tmp_path / "made", "other", "--patch-px", PATCH)
    assert len(cohort.load("a").barcodes) == 12


def test_features_without_places_and_of_another_dimension_are_refused(extracted, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a.pt").write_bytes(b"")
    with pytest.raises(InputError, match="without coordinates"):
        extracted(tmp_path / "made")
    for name in "ab":
        trident(tmp_path / "made" / f"{name}.h5")
    with pytest.raises(InputError, match="6 dimensions and uni gives 1024"):
        extracted(tmp_path / "made", "uni")
    with pytest.raises(InputError, match="the files say uni_v1"):
        extracted(tmp_path / "made", "efficientnet-lite0")


def read_as_trident(path):
    """TRIDENT's own checks of a feature file."""
    with h5py.File(path) as file:
        values, coords = file["features"][:], file["coords"][:]
        side, size = file["coords"].attrs["patch_size_level0"], file["coords"].attrs["patch_size"]
        assert file["coords"].attrs["name"] == path.stem
        assert file["features"].attrs["encoder"]
    assert values.ndim == 2
    assert len(values) == len(coords) == len(np.unique(coords, axis=0))
    assert coords.dtype.kind == "i"
    assert side > 0
    assert size > 0
    return values, coords, int(side)


def read_as_clam(path):
    """Features and corners, and the level-0 side as CLAM reckons it."""
    with h5py.File(path) as file:
        attributes = file["coords"].attrs
        side = attributes["patch_size"] * np.asarray(attributes["downsample"])[0]
        return file["features"][:], file["coords"][:], int(side)


@pytest.mark.parametrize("read", [read_as_trident, read_as_clam])
def test_ours_are_read_by_the_others(read, tmp_path, call):
    source, out = write_cohort(tmp_path / "source"), tmp_path / "data"
    call(run_extract, "--source", source, "--out", out, "--encoder", "hed")
    values, coords, side = read(out / "features" / "hed" / "a.h5")
    slide = Cohort(out, "hed").load("a")
    assert side == 56  # 112 um at 2 um a pixel
    np.testing.assert_array_equal(values, slide.features)
    assert np.abs(coords + side / 2 - slide.centers).max() <= 0.5


def test_a_side_against_that_of_the_file(tmp_path):
    path = trident(tmp_path / "a.h5")
    assert read_embedded(path, "a", patch_px=PATCH).side == PATCH
    with pytest.raises(InputError, match="of 50 level-0 pixels, and --patch-px of 60"):
        read_embedded(path, "a", patch_px=60)
    assert read_embedded(trident(path, patch_size_level0=None), "a", patch_px=60).side == 60


def test_features_of_an_image_of_another_size(tmp_path, extracted):
    for name in "ab":
        trident(tmp_path / "made" / f"{name}.h5", level0_width=2 * SIDE, level0_height=2 * SIDE)
    with pytest.raises(InputError, match=r"from an image of 800 x 800 px, and .* has 400 x 400"):
        extracted(tmp_path / "made")
