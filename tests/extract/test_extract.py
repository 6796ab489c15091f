import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_slides import counts_table, picture, spots_table, write_cohort, write_hest

import run_extract
from histokit.core.errors import InputError
from histokit.core.files import folder_lock
from histokit.extract.encoders import make_encoder
from histokit.extract.patches import resample

SCRIPT = Path(run_extract.__file__)


def extract(source, out, **options):
    options = {"encoder": "hed"} | options
    run_extract.main(run_extract.Options(source=str(source), out=str(out), **options))
    return Path(out)


@pytest.fixture
def command(children):
    def run(source, out, *options):
        return children.run(SCRIPT, "--source", source, "--out", out, *options)

    return run


def files(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def test_batches_do_not_change_features(tmp_path):
    """Twelve spots in batches of five, which is also how a run without a terminal sees them."""
    source = write_cohort(tmp_path / "in")
    whole = extract(source, tmp_path / "whole", batch_size="64")
    parts = extract(source, tmp_path / "parts", batch_size="5")
    for name in ("a.h5", "b.h5"):
        with (
            h5py.File(whole / "features/hed" / name) as a,
            h5py.File(parts / "features/hed" / name) as b,
        ):
            np.testing.assert_array_equal(a["features"], b["features"])


def test_scales_stand_side_by_side(tmp_path):
    source = write_cohort(tmp_path / "in")
    out = extract(source, tmp_path / "out", scales="112,56")
    parts = [extract(source, tmp_path / f"{um}", patch_um=float(um)) for um in (112, 56)]
    with h5py.File(out / "features/hed-112-56um/a.h5") as file:
        found, attributes = file["features"][:], dict(file.attrs)
    expected = [h5py.File(part / "features/hed/a.h5")["features"][:] for part in parts]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))
    assert (attributes["encoder"], attributes["patch_um"]) == ("hed-112-56um", "112, 56")
    extract(source, out)
    assert (out / "features/hed/a.h5").is_file()


def test_the_files_follow_the_contract(tmp_path, capsys):
    spots = spots_table()
    spots.loc[0, ["x", "y"]] = [10.0, 100.0]
    out = extract(write_cohort(tmp_path / "in", spots=spots), tmp_path / "out")
    assert files(out) == [
        "expression/a.h5ad",
        "expression/b.h5ad",
        "features/hed/.lock",
        "features/hed/a.h5",
        "features/hed/b.h5",
        "overlays/a.jpg",
        "overlays/b.jpg",
        "reconciliation.csv",
        "slides.csv",
        "sources.json",
        "thumbnails/a.jpg",
        "thumbnails/b.jpg",
    ]
    table = pd.read_csv(out / "slides.csv")
    assert table.columns.tolist() == [
        "slide_id",
        "cancer",
        "patient",
        "technology",
        "mpp",
        "mpp_source",
        "mpp_rejected",
        "image",
        "source",
        "num_spots",
        "num_genes",
        "thumbnail_scale",
    ]
    assert table["num_spots"].tolist() == [12, 12]
    assert table["thumbnail_scale"].tolist() == [1, 1]
    expression = anndata.read_h5ad(out / "expression" / "a.h5ad")
    np.testing.assert_array_equal(expression.X.toarray(), counts_table())
    np.testing.assert_allclose(expression.obsm["spatial"], spots[["x", "y"]])
    assert set(expression.var) == {"gene_id", "symbol", "measured"}
    with h5py.File(out / "features" / "hed" / "a.h5") as file:
        assert file["barcodes"].asstr()[:].tolist() == spots["barcode"].tolist()
        corners = np.floor(spots[["x", "y"]].to_numpy() - 28 + 0.5)
        np.testing.assert_array_equal(file["coords"], corners)
        x, y = corners[3].astype(int)
        patch = resample(picture(0)[y : y + 56, x : x + 56], 224)
        np.testing.assert_allclose(
            file["features"][3], make_encoder("hed").encode([patch])[0], rtol=1e-5
        )
        attributes = dict(file.attrs)
    assert attributes["encoder"] == "hed"
    assert attributes["patch_size_level0"] == 56
    assert (attributes["patch_um"], attributes["mpp"]) == (112, 2)
    assert "scikit-image" in json.loads(attributes["versions"])
    row = pd.read_csv(out / "reconciliation.csv").set_index("slide_id").loc["a"]
    assert row["joined"] == 12
    assert row["white_border"] >= 1
    assert "a: 12 spots listed" in capsys.readouterr().out


def test_finished_slides_are_kept_and_changed_ones_done_again(tmp_path, capsys):
    source = write_cohort(tmp_path / "in")
    out = extract(source, tmp_path / "out", slides=["a"])
    assert pd.read_csv(out / "slides.csv")["slide_id"].tolist() == ["a"]
    stamp = (out / "features/hed/a.h5").stat().st_mtime_ns
    extract(source, out)
    assert "a: finished already" in capsys.readouterr().out
    assert (out / "features/hed/a.h5").stat().st_mtime_ns == stamp
    (counts_table() + 1).to_csv(source / "a-counts.tsv", sep="\t")
    extract(source, out)
    output = capsys.readouterr().out
    assert "b: finished already" in output
    assert "a: finished already" not in output
    found = anndata.read_h5ad(out / "expression/a.h5ad").X.toarray()
    np.testing.assert_array_equal(found, counts_table() + 1)


def test_a_corrected_cohort_table_reaches_finished_slides(tmp_path):
    source = write_cohort(tmp_path / "in")
    out = extract(source, tmp_path / "out")
    table = pd.read_csv(source / "cohort.csv").assign(cancer="SKCM")
    table.to_csv(source / "cohort.csv", index=False)
    extract(source, out)
    slides = pd.read_csv(out / "slides.csv")
    assert slides["cancer"].tolist() == ["SKCM", "SKCM"]
    assert slides["num_spots"].tolist() == [12, 12]


def test_another_encoder_goes_beside_and_another_kind_is_refused(tmp_path):
    source = write_cohort(tmp_path / "in")
    out = extract(source, tmp_path / "out")
    extract(source, out, encoder="efficientnet-lite0-random")
    assert (out / "features/efficientnet-lite0-random/b.h5").is_file()
    with pytest.raises(InputError, match=r"patch_um = 112.0 and this run has 224.0; .* do not mix"):
        extract(source, out, patch_um=224.0)
    with h5py.File(out / "features/hed/b.h5", "a") as file:
        file.attrs["transform"] = "another"
    with pytest.raises(InputError, match=r"b\.h5 was made with transform = 'another'"):
        extract(source, out)


def test_two_extractions_into_one_folder(tmp_path, command):
    source = write_cohort(tmp_path / "in")
    features = tmp_path / "out/features/hed"
    features.mkdir(parents=True)
    with folder_lock(features):
        answer = command(source, tmp_path / "out", "--encoder", "hed")
    assert answer.returncode == 2
    assert "another process is writing" in answer.stderr


def test_two_encoders_into_one_folder_at_the_same_time(tmp_path, children):
    """Each holds its own features; rows of the tables are joined, leftovers of the other stay."""
    source, out = (
        write_cohort(tmp_path / "in", slides=[f"s{i}" for i in range(6)]),
        tmp_path / "out",
    )
    arguments = ["--source", str(source), "--out", str(out), "--encoder"]
    both = [
        children.start(SCRIPT, *arguments, name) for name in ("hed", "efficientnet-lite0-random")
    ]
    for process in both:
        process.communicate()
        assert process.returncode == 0
    for name in ("hed", "efficientnet-lite0-random"):
        assert len(list((out / "features" / name).glob("*.h5"))) == 6
    assert len(pd.read_csv(out / "slides.csv")) == len(pd.read_csv(out / "reconciliation.csv")) == 6
    assert not list(out.rglob(".*.tmp*"))


def test_leftovers_are_left_to_an_encoder_that_is_at_work(tmp_path, command):
    source, out = write_cohort(tmp_path / "in"), tmp_path / "out"
    other, half = out / "features/other", out / "expression/.a.h5ad.1.tmp"
    for folder in (other, half.parent):
        folder.mkdir(parents=True)
    half.write_text("half")
    with folder_lock(other):
        assert command(source, out, "--encoder", "hed").returncode == 0
        assert half.exists()
    assert command(source, out, "--encoder", "hed").returncode == 0
    assert not half.exists()


def test_killed_and_started_again(tmp_path, children):
    names = [f"s{i}" for i in range(30)]
    source, out = write_cohort(tmp_path / "in", slides=names), tmp_path / "out"
    arguments = ["--source", str(source), "--out", str(out), "--encoder", "hed"]
    process = children.start(SCRIPT, *arguments)
    limit = time.monotonic() + 60
    while len(list(out.glob("features/hed/s*.h5"))) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {p: p.stat().st_mtime_ns for p in out.glob("features/hed/s*.h5")}
    assert 3 <= len(finished) < 30
    (out / "features/hed/.s9.1.tmp.h5").write_bytes(b"left by the kill")
    extract(source, out)
    assert len(pd.read_csv(out / "slides.csv")) == 30
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    assert not [name for name in files(out) if ".tmp" in name]


def test_patches_without_a_scale(tmp_path):
    source = write_cohort(tmp_path / "in", columns={"mpp": ""})
    with pytest.raises(InputError, match=r"slide a has no mpp .*--patch-px"):
        extract(source, tmp_path / "out")
    out = extract(source, tmp_path / "out", patch_px=40)
    with h5py.File(out / "features/hed/a.h5") as file:
        assert file.attrs["patch_size_level0"] == 40
    out = extract(source, tmp_path / "other", mpp=1.0)
    assert pd.read_csv(out / "slides.csv")["mpp_source"].tolist() == ["--mpp"] * 2


def test_hest_patches_are_encoded_as_they_are(tmp_path):
    write_hest(tmp_path / "in")
    out = extract(tmp_path / "in", tmp_path / "out")
    with h5py.File(tmp_path / "in/patches/TENX1.h5") as file:
        expected = make_encoder("hed").encode(file["img"][:])
    with h5py.File(out / "features/hed/TENX1.h5") as file:
        np.testing.assert_allclose(file["features"], expected, rtol=1e-5)
        assert file.attrs["patch_size_level0"] == 448
    scale = pd.read_csv(out / "slides.csv")["thumbnail_scale"][0]
    assert max(Image.open(out / "thumbnails/TENX1.jpg").size) <= 1600
    assert 0 < scale <= 1


def test_a_bad_slide_stops_with_one_sentence_and_keeps_the_others(tmp_path, command):
    source = write_cohort(tmp_path / "in")
    content = (source / "b.png").read_bytes()
    (source / "b.png").write_bytes(content[: len(content) // 2])
    answer = command(source, tmp_path / "out", "--encoder", "hed")
    assert answer.returncode == 2
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "b.png cannot be read" in last
    assert "Traceback" not in answer.stderr
    assert [n for n in files(tmp_path / "out") if "b." in n] == []
    assert pd.read_csv(tmp_path / "out/slides.csv")["slide_id"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_um": -1.0}, "--patch-um must be more than 0"),
        ({"batch_size": "0"}, "--batch-size must be auto or a number of patches, got 0"),
        ({"batch_size": "some"}, "--batch-size must be auto or a number"),
        ({"scales": "112,x"}, "--scales must be different sides in microns"),
        ({"scales": "112,112"}, "--scales must be different sides in microns"),
        ({"scales": "112", "patch_px": 9}, "give one of them"),
        ({"slides": ["z"]}, "has no slide 'z'"),
        ({"encoder": "none"}, "unknown encoder"),
        ({"patch_um": 0.1}, "smaller than one pixel"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        extract(write_cohort(tmp_path / "in"), tmp_path / "out", **options)
    assert not list(tmp_path.glob("out/*/*.h5*"))


def test_unwritable_output(tmp_path, command):
    source = write_cohort(tmp_path / "in")
    answer = command(source, "/proc/histokit", "--encoder", "hed")
    assert answer.returncode == 2
    assert "cannot make the folder" in answer.stderr


def test_full_disk(tmp_path, command):
    """A disk of 300 kB: one sentence, and every file that is there is whole."""
    source = write_cohort(tmp_path / "in", slides=[f"s{i}" for i in range(12)])
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        answer = command(source, disk / "out", "--encoder", "hed")
        assert answer.returncode == 2, answer.stderr
        assert "the disk is full" in answer.stderr.splitlines()[-1]
        assert "Traceback" not in answer.stderr
        assert not [name for name in files(disk / "out") if ".tmp" in name]
        for path in disk.glob("out/*/**/*.h5*"):
            h5py.File(path).close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_help_is_quick_and_tells_units():
    start = time.monotonic()
    answer = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert "microns" in answer.stdout
    assert time.monotonic() - start < 5
