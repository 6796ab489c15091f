import pandas as pd
import pytest

from histokit.core.errors import InputError
from histokit.data.splits import make_folds


@pytest.fixture
def slides():
    rows = [("A1", "A"), ("A2", "A"), ("B1", "B"), ("C1", "C"), ("C2", "C")]
    table = pd.DataFrame(rows, columns=["slide_id", "patient"]).set_index("slide_id")
    return table.assign(cancer="IDC")


def test_leave_one_patient_out_never_shares_a_patient(slides):
    folds = make_folds(slides, "leave-one-patient-out", 0.2, seed=0)
    assert [f.name for f in folds] == ["A", "B", "C"]
    for fold in folds:
        patients = [set(slides.patient[getattr(fold, role)]) for role in ("train", "val", "test")]
        assert all(patients)
        train, val, test = patients
        assert train.isdisjoint(val)
        assert test.isdisjoint(train | val)
        assert sorted(fold.train + fold.val + fold.test) == sorted(slides.index)


def test_leave_one_slide_out_validates_on_another_patient(slides):
    folds = make_folds(slides, "leave-one-slide-out", 0.2, seed=0)
    assert [f.test for f in folds] == [[s] for s in slides.index]
    for fold in folds:
        assert not set(slides.patient[fold.val]) & set(slides.patient[fold.train])


def test_auto_leaves_out_patients_or_slides(slides):
    assert [f.test for f in make_folds(slides, "auto", 0.2, seed=0)] == [
        ["A1", "A2"],
        ["B1"],
        ["C1", "C2"],
    ]
    assert len(make_folds(slides.assign(patient="A"), "auto", 0.2, seed=0)) == 5


def test_number_of_folds(slides):
    more = pd.concat([slides, slides.rename("x{}".format).assign(cancer="PRAD")])
    more["patient"] = more["cancer"] + more["patient"]
    folds = make_folds(more, "2", 0.2, seed=0)
    assert sorted(folds[0].test + folds[1].test) == sorted(more.index)
    for fold in folds:
        assert set(more.cancer[fold.test]) == {"IDC", "PRAD"}
        assert set(more.patient[fold.test]).isdisjoint(more.patient[fold.train + fold.val])
    for count in ("1", "7"):
        with pytest.raises(InputError, match="give 2 to 6"):
            make_folds(more, count, 0.2, seed=0)


def test_one_patient_validates_on_a_slide_and_one_slide_on_none(slides):
    one = slides.loc[["C1", "C2", "B1"]].assign(patient="C")
    (first, *_) = make_folds(one, "leave-one-slide-out", 0.2, seed=0)
    assert (len(first.train), len(first.val), len(first.test)) == (1, 1, 1)
    two = one.loc[["C1", "C2"]]
    assert make_folds(two, "leave-one-slide-out", 0.2, seed=0)[0].val == []


def test_csv_with_folds_and_byte_order_mark(slides, tmp_path):
    path = tmp_path / "folds.csv"
    rows = "slide_id,split,fold\nA1,train,x\nB1,test,x\nA2,train,y\nC1,val,y\nC2,test,y\n"
    path.write_text("\ufeff" + rows)
    x, y = make_folds(slides, str(path), 0.0, seed=0)
    assert (x.train, x.val, x.test) == (["A1"], [], ["B1"])
    assert (y.name, y.train, y.val, y.test) == ("y", ["A2"], ["C1"], ["C2"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("slide_id,part\nA1,train\n", "has no column 'split'"),
        ("slide_id,split\nA1,training\n", "expected train, val or test"),
        ("slide_id,split\nA1,train\n", "has no test slide"),
        ("slide_id,split\nA1,train\nZ9,test\n", "the cohort lacks, such as Z9"),
        ("slide_id,split\nA1,train\nA1,test\n", "A1 is listed twice"),
    ],
)
def test_bad_split_files(slides, tmp_path, rows, message):
    path = tmp_path / "folds.csv"
    path.write_text(rows)
    with pytest.raises(InputError, match=message):
        make_folds(slides, str(path), 0.2, seed=0)


def test_neither_rule_nor_file(slides):
    with pytest.raises(InputError, match="neither auto"):
        make_folds(slides, "leave-none-out", 0.2, seed=0)


def test_published_folders(shared):
    names = pd.concat(
        pd.read_csv(f, dtype=str) for f in (shared / "hest/bench/IDC/splits").glob("*.csv")
    )["sample_id"].unique()
    slides = pd.DataFrame({"patient": names, "cancer": "IDC"}, index=names)
    folds = make_folds(slides, str(shared / "hest/bench/IDC"), 0.2, seed=0)
    assert [f.name for f in folds] == ["0", "1", "2", "3"]
    assert folds[0].test == ["TENX99"]
    tables = [
        pd.read_csv(shared / f"hest/histoprism_split_0/{r}_split.csv", dtype=str)
        for r in ("train", "val", "test")
    ]
    names = pd.concat(tables)["sample_id"]
    slides = pd.DataFrame({"patient": "", "cancer": ""}, index=names)
    (fold,) = make_folds(slides, str(shared / "hest/histoprism_split_0"), 0.2, seed=0)
    assert [len(r) for r in (fold.train, fold.val, fold.test)] == [501, 124, 23]


def test_slides_that_a_published_split_names_and_nobody_has_are_left_out_when_told(
    tmp_path, capsys
):
    slides = pd.DataFrame({"patient": ["P", "Q"], "cancer": "IDC"}, index=["a", "b"])
    for role, members in (("train", ["a", "x"]), ("val", ["y"]), ("test", ["b"])):
        pd.DataFrame({"sample_id": members}).to_csv(tmp_path / f"{role}_split.csv", index=False)
    with pytest.raises(InputError, match=r"2 slides that the cohort lacks.*--allow-missing"):
        make_folds(slides, str(tmp_path), 0.0, 0)
    (fold,) = make_folds(slides, str(tmp_path), 0.0, 0, allow_missing=True)
    assert (fold.train, fold.val, fold.test) == (["a"], [], ["b"])
    assert "2 slides of the split are not extracted and left out: x, y" in capsys.readouterr().out


def write_published(folder, split, roles):
    (folder / split).mkdir(parents=True)
    for role, rows in roles.items():
        columns = ["sample_id", "oncotree_code", "oncotree_code_filled"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / split / f"{role}_split.csv")


def test_several_published_splits_are_the_folds_of_one_run(tmp_path, slides):
    one = {"train": [("A1", "IDC", "IDC"), ("A2", "", "Healthy")], "val": [("B1", "", "Healthy")]}
    write_published(tmp_path, "split_0", one | {"test": [("C1", "PRAD", "PRAD")]})
    two = {"train": [("C1", "PRAD", "PRAD")], "val": [("B1", "", "Cancer_Unspecified")]}
    write_published(tmp_path, "split_1", two | {"test": [("A1", "IDC", "IDC")]})
    first, second = make_folds(slides, str(tmp_path), 0.2, 0)
    assert (first.name, first.val, first.test) == ("split_0", ["B1"], ["C1"])
    assert (second.name, second.test) == ("split_1", ["A1"])
    assert first.cancers == {"A1": "IDC", "A2": "Healthy", "B1": "Healthy", "C1": "PRAD"}
    assert second.cancers["B1"] == "Cancer_Unspecified"
    first, _ = make_folds(slides, str(tmp_path), 0.2, 0, codes="unfilled")
    assert first.cancers == {"A1": "IDC", "A2": "", "B1": "", "C1": "PRAD"}
    first, _ = make_folds(slides, str(tmp_path), 0.2, 0, codes="cohort")
    assert first.cancers == {}
