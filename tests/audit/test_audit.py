import json

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cohorts import GENES, write_cohort

import run_train
from histokit import audit
from histokit.audit.slides import feature_statistics, judge_slides, measure_slides
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort

SLIDES = {
    "A1": ("IDC", "A", 40),
    "A2": ("IDC", "A", 35),
    "B1": ("PRAD", "B", 45),
    "C1": ("XYZ", "C", 30),
}


@pytest.fixture
def data(tmp_path):
    return write_cohort(tmp_path / "data", SLIDES, genes={"B1": GENES[:12]})


def measured(data, panel=GENES):
    return measure_slides(Cohort(data, "tiny"), list(SLIDES), panel)


def said(table, slide_id):
    return [text for _, where, text in judge_slides(table) if where == slide_id]


def change_features(data, slide_id, change):
    with h5py.File(data / "features/tiny" / f"{slide_id}.h5", "r+") as file:
        file["features"][:] = change(file["features"][:])


def change_counts(data, slide_id, change):
    path = data / "expression" / f"{slide_id}.h5ad"
    slide = anndata.read_h5ad(path)
    slide.X = sp.csr_matrix(change(slide.X.toarray()))
    slide.write_h5ad(path)


def test_table_counts_what_numpy_counts(data):
    table = measured(data)
    for slide_id in SLIDES:
        raw = anndata.read_h5ad(data / "expression" / f"{slide_id}.h5ad").X.toarray()
        row = table.loc[slide_id]
        assert (row["spots"], row["panel_measured"]) == raw.shape
        assert row["zeros"] == pytest.approx((raw == 0).mean())
        assert row["library_median"] == np.median(raw.sum(axis=1))
        assert (row["library_min"], row["library_max"]) == (raw.sum(1).min(), raw.sum(1).max())
        assert row["pitch_um"] == 100
    assert table.loc["B1", "zero_filled"] == pytest.approx(18 / 30)
    assert said(table, "A1") == []
    assert any("12 of 30 genes of the panel" in text for text in said(table, "B1"))
    assert any("cancer code is XYZ" in text for text in said(table, "C1"))


def test_what_most_slides_share_is_one_finding_and_no_code_is_a_note(data):
    table = measured(data)
    many = table.loc[["A1"] * 6].set_axis([f"S{i}" for i in range(6)])
    many = many.assign(cancer=["", "", "", "", "XYZ", "IDC"], cancer_known=[False] * 5 + [True])
    many["genes_constant"] = [20, 21, 22, 23, 0, 0]
    found = judge_slides(many)
    assert found == [
        (
            "note",
            "cohort",
            "the cancer code of 4 slides (S0, S1, S2 and 1 more) is empty, as of healthy tissue, "
            "not an OncoTree code that is known",
        ),
        ("warning", "S4", "the cancer code is XYZ, not an OncoTree code that is known"),
        (
            "warning",
            "cohort",
            "4 of 6 slides, such as S0: 20 of 30 measured genes are the same in every spot and "
            "have no PCC",
        ),
    ]
    many["genes_constant"] = [20, 21, 0, 0, 0, 0]
    assert [where for _, where, _ in judge_slides(many)] == ["cohort", "S4", "S0", "S1"]
    many["features_bad"] = 1
    assert sum(severity == "error" for severity, _, _ in judge_slides(many)) == 6


def test_constant_genes_and_empty_spots_are_found(data):
    def change(counts):
        counts[:, :20] = 3
        counts[:2] = 0
        return counts

    change_counts(data, "A1", change)
    table = measured(data)
    assert (table.loc["A1", "genes_constant"], table.loc["A1", "empty_spots"]) == (0, 2)
    change_counts(data, "A1", lambda counts: np.r_[counts[2:4], counts[2:]])
    table = measured(data)
    assert table.loc["A1", "genes_constant"] == 20
    assert any("20 of 30 measured genes are the same" in text for text in said(table, "A1"))


def test_library_sizes_far_from_the_cohort_are_found(data):
    change_counts(data, "A1", lambda counts: counts * 40)
    assert any("times the cohort's" in text for text in said(measured(data), "A1"))


def test_spots_lost_at_the_join_are_found(data):
    rows = {
        "slide_id": list(SLIDES),
        "spots_selected": [80, 35, 45, 30],
        "joined": [40, 35, 45, 30],
    }
    pd.DataFrame(rows).to_csv(data / "reconciliation.csv", index=False)
    table = measured(data)
    assert table["spots_dropped"].tolist() == [40, 0, 0, 0]
    assert said(table, "A1") == ["40 of 80 spots were lost when images and counts were joined"]


def test_scale_outliers_are_found(data):
    slides = pd.read_csv(data / "slides.csv").assign(mpp=[0.5, 1.0, 30.0, np.nan])
    slides.to_csv(data / "slides.csv", index=False)
    table = measured(data)
    assert any("50 um apart where Visium has 100" in text for text in said(table, "A1"))
    assert said(table, "A2") == []
    assert any("pixel size of 30 um" in text for text in said(table, "B1"))
    assert any("pixel size is unknown" in text for text in said(table, "C1"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: np.where(np.arange(len(x))[:, None] < 20, x[0], x), "repeat another"),
        (lambda x: x * 1e-4 + 1, "feature vectors are nearly one"),
        (lambda x: x * 1e-4 + 1, "features vary"),
        (lambda x: np.where(np.arange(len(x))[:, None] < 3, np.nan, x), "3 of 40 feature vectors"),
    ],
)
def test_features_that_look_wrong_are_found(data, change, expected):
    change_features(data, "A1", change)
    assert any(expected in text for text in said(measured(data), "A1"))
    assert not any(expected in text for text in said(measured(data), "A2"))


def test_mean_cosine_equals_all_pairs():
    x = np.random.default_rng(0).normal(size=(30, 8)) + 0.5
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[~np.eye(30, dtype=bool)]
    statistics = feature_statistics(x)
    assert statistics["features_cosine"] == pytest.approx(pairs.mean())
    assert statistics["features_duplicated"] == 0
    assert feature_statistics(x[:1]) == {"spots": 1, "features_bad": 0}


def options(data, run, **changes):
    changes = {"encoder": "tiny", "folds": "leave-one-slide-out", "model": "mean"} | changes
    return run_train.Options(data=str(data), run=str(run), **changes)


def test_training_on_a_test_patient_is_refused_unless_allowed(data, tmp_path):
    expected = "fold A1 tests A1 and trains or validates on A2 of the same patient A.*1 more fold.*"
    with pytest.raises(InputError, match=f"{expected}--allow-leakage") as caught:
        run_train.main(options(data, tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    run_train.main(options(data, tmp_path / "run", allow_leakage=True))
    written = json.loads((tmp_path / "run" / "audit" / "audit.json").read_text())
    assert written["counts"]["error"] == 2
    assert (tmp_path / "run" / "audit" / "leakage.csv").is_file()
    run_train.main(options(data, tmp_path / "clean", folds="leave-one-patient-out"))
    written = json.loads((tmp_path / "clean" / "audit" / "audit.json").read_text())
    assert "error" not in written["counts"]
    assert any("no training slide has the cancer" in f["finding"] for f in written["findings"])


def test_one_image_under_two_names_is_refused(data, tmp_path):
    same = (data / "thumbnails" / "A1.jpg").read_bytes()
    (data / "thumbnails" / "B1.jpg").write_bytes(same)
    with pytest.raises(InputError, match="of the same image, "):
        run_train.main(options(data, tmp_path / "run", folds="leave-one-patient-out"))


def test_command_line_exit_codes(data, tmp_path, call, children):
    out = tmp_path / "out"
    base = ["--data", data, "--encoder", "tiny", "--out", out, "--splits"]
    done = call(audit, *base, "leave-one-slide-out")
    assert done.returncode == 1
    assert "error   fold A1: test and train share 1 patient" in done.stdout
    assert set(pd.read_csv(out / "leakage.csv")["reason"]) == {"same patient"}
    assert len(pd.read_csv(out / "slides.csv")) == 4
    done = call(audit, *base, "leave-one-patient-out")
    assert done.returncode == 0
    assert "warning C1: the cancer code is XYZ" in done.stdout
    for arguments, message in (
        ([], "nothing to audit"),
        (["--metadata", "/nowhere.csv", "--splits", tmp_path], "does not exist"),
        (["--data", tmp_path], "holds no slides.csv"),
    ):
        done = call(audit, *arguments) if arguments else children.run("histokit.audit")
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_metadata_and_splits_alone(tmp_path):
    metadata = pd.DataFrame({"id": ["a", "b", "c"], "patient": ["1", "1", ""]})
    metadata.to_csv(tmp_path / "m.csv", index=False)
    (tmp_path / "s.csv").write_text("slide_id,split\na,train\nb,test\nc,val\nd,train\n")
    cfg = audit.Options(
        metadata=str(tmp_path / "m.csv"), splits=str(tmp_path / "s.csv"), out=str(tmp_path / "o")
    )
    with pytest.raises(SystemExit) as caught:
        audit.main(cfg)
    assert caught.value.code == 1
    findings = pd.read_csv(tmp_path / "o" / "findings.csv")
    assert findings["severity"].tolist() == ["error", "warning", "note"]
    assert "1 train slide not in the metadata: d" in findings["finding"].tolist()
    assert not (tmp_path / "o" / "slides.csv").exists()


@pytest.mark.real
def test_her2st_metadata_of_hest_names_its_patients(shared, tmp_path, children):
    splits = tmp_path / "s.csv"
    splits.write_text("slide_id,split\nSPA138,train\nSPA141,test\nSPA145,val\n")
    metadata = shared / "hest" / "HEST_v1_1_0.csv"
    arguments = ("--metadata", metadata, "--splits", splits, "--out", tmp_path / "o")
    done = children.run("histokit.audit", *arguments)
    assert done.returncode == 1
    assert "test and train share 1 patient: 1 test (SPA141) and 1 train" in done.stdout
