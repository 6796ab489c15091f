import numpy as np
import pandas as pd
import pytest

from histokit.audit.leaks import (
    cohort_metadata,
    find_leakage,
    image_fingerprint,
    read_metadata,
    severities,
    unknown_patients,
)
from histokit.core.errors import InputError
from histokit.data.splits import read_splits


@pytest.fixture
def metadata():
    rows = [
        ("A1", "S", "1", "x"),
        ("A2", "S", "1 ", "y"),
        ("B1", "S", "2", "z"),
        ("C1", "T", "1", "x"),
        ("D1", "T", "  ", ""),
        ("D2", "T", "", ""),
    ]
    return pd.DataFrame(rows, columns=["id", "dataset_title", "patient", "image_sha256"])


def found(leaks):
    return {tuple(row) for row in leaks.drop(columns="shared").to_numpy()}


def test_a_patient_is_one_within_its_study_only(metadata):
    leaks = find_leakage(metadata, {"train": ["A1", "C1"], "test": ["A2"]})
    assert found(leaks) == {("A2", "test", "A1", "train", "same patient")}
    assert leaks["shared"].tolist() == ["S / 1"]
    alone = find_leakage(
        metadata.drop(columns="dataset_title"), {"train": ["A1", "C1"], "test": ["A2"]}
    )
    assert set(alone["partner_slide"]) == {"A1", "C1"}


def test_the_gravest_reason_counts_once(metadata):
    leaks = find_leakage(metadata, {"train": ["A1"], "val": ["B1"], "test": ["C1"]})
    assert found(leaks) == {
        ("C1", "test", "A1", "train", "same image"),
        ("B1", "val", "A1", "train", "same study"),
    }
    assert severities(leaks).tolist() == ["error", "note"]


def test_unknown_is_not_equal(metadata):
    splits = {"train": ["D1"], "test": ["D2"]}
    leaks = find_leakage(metadata, splits)
    assert found(leaks) == {("D2", "test", "D1", "train", "same study")}
    assert unknown_patients(metadata, splits)["slide"].tolist() == ["D1", "D2"]


def test_slides_of_one_side_do_not_leak(metadata):
    assert find_leakage(metadata, {"train": ["A1", "A2", "B1"], "test": []}).empty


def test_absent_and_repeated_slides_are_listed(metadata):
    table = pd.DataFrame({"slide_id": ["A1", "A1", "Z9"], "split": ["train", "test", "val"]})
    leaks = find_leakage(metadata, table)
    assert found(leaks) == {
        ("A1", "test", "A1", "train", "same slide"),
        ("Z9", "val", "", "", "not in metadata"),
    }
    assert severities(leaks).tolist() == ["error", "warning"]


def test_validation_of_a_training_patient_is_a_warning(metadata):
    leaks = find_leakage(metadata, {"train": ["A1"], "val": ["A2"]})
    assert severities(leaks).tolist() == ["warning"]


def test_every_pair_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(60)]
    metadata = pd.DataFrame({"patient": rng.choice(["", *"abcdefghij"], 60)}, index=ids)
    splits = pd.DataFrame({"slide_id": ids, "split": rng.choice(["train", "val", "test"], 60)})
    role, patient = dict(splits.to_numpy()), metadata["patient"]
    expected = {
        frozenset((a, b))
        for a in ids
        for b in ids
        if role[a] != role[b] and patient[a] == patient[b] != ""
    }
    leaks = find_leakage(metadata, splits)
    assert len(leaks) == len(expected)
    assert {frozenset(pair) for pair in leaks[["slide", "partner_slide"]].to_numpy()} == expected


def test_bad_tables_are_named(metadata):
    with pytest.raises(InputError, match="no column patient"):
        find_leakage(metadata.drop(columns="patient"), {"train": []})
    with pytest.raises(InputError, match="describe slide A1 twice"):
        find_leakage(pd.concat([metadata, metadata]), {"train": []})
    with pytest.raises(InputError, match="slide A1 has the split 'dev'"):
        find_leakage(metadata, {"dev": ["A1"]})
    with pytest.raises(InputError, match="need the columns slide_id and split"):
        find_leakage(metadata, pd.DataFrame({"slide": ["A1"]}))
    with pytest.raises(InputError, match="does not exist"):
        read_metadata("/nowhere.csv")
    with pytest.raises(InputError, match="do not exist"):
        read_splits("/nowhere.csv")


def test_fingerprints_tell_images_apart(tmp_path):
    (tmp_path / "thumbnails").mkdir()
    big = bytes(range(256)) * 20_000
    files = {"a": big, "b": big, "c": big + b"x", "d": big[:-1] + b"y"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    slides = pd.DataFrame(
        {"image": [str(tmp_path / name) for name in files] + ["gone", "gone"], "patient": "p"},
        index=pd.Index([*files, "e", "f"], name="slide_id"),
    )
    (tmp_path / "thumbnails" / "e.jpg").write_bytes(b"small")
    prints = cohort_metadata(slides, tmp_path)["image_sha256"]
    assert prints["a"] == prints["b"]
    assert prints[["a", "c", "d", "e", "f"]].is_unique
    assert prints["f"] == image_fingerprint({"slide_id": "f"}, tmp_path) == ""


@pytest.mark.real
@pytest.mark.parametrize(("number", "patients", "slides"), [(0, 2, 4), (1, 0, 0)])
def test_published_splits_of_histoprism(shared, number, patients, slides):
    metadata = read_metadata(shared / "hest" / "HEST_v1_1_0.csv")
    ((_, roles),) = read_splits(shared / "hest" / f"histoprism_split_{number}")
    leaks = find_leakage(metadata, roles)
    errors = leaks[severities(leaks) == "error"]
    assert (errors["shared"].nunique(), errors["slide"].nunique()) == (patients, slides)
    assert set(errors["reason"]) <= {"same patient"}
    early = leaks[(leaks["reason"] == "same patient") & (leaks["split"] == "val")]
    assert early["shared"].nunique() == 26
    assert (leaks["reason"] != "not in metadata").all()


@pytest.mark.real
def test_the_leaking_slides_are_those_of_the_metadata(shared):
    metadata = read_metadata(shared / "hest" / "HEST_v1_1_0.csv")
    ((_, roles),) = read_splits(shared / "hest" / "histoprism_split_0")
    leaks = find_leakage(metadata, roles)
    errors = leaks[severities(leaks) == "error"]
    partners = errors.groupby("slide")["partner_slide"].agg(set).to_dict()
    colon = {"TENX152", "TENX153", "TENX154", "TENX155", "TENX156"}
    assert partners == {"TENX99": {"TENX98"}} | dict.fromkeys(
        ("TENX147", "TENX148", "TENX149"), colon
    )


@pytest.mark.real
@pytest.mark.parametrize("task", ["IDC", "LUNG", "PRAD", "SKCM"])
def test_hest_bench_folds_share_no_patient(shared, task):
    metadata = read_metadata(shared / "hest" / "HEST_v1_1_0.csv")
    for _, roles in read_splits(shared / "hest" / "bench" / task):
        leaks = find_leakage(metadata, roles)
        assert set(leaks["reason"]) <= {"same study"}
