"""Folds and patients may be called anything; files stay where they belong."""

import json
import os
import re
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from cohorts import write_cohort

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.data.cohort import Cohort
from histokit.data.features import difference
from histokit.data.splits import make_folds, read_splits
from histokit.evaluate.folders import MANIFEST, check_replaceable, whole_folder
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.maps import draw_map
from histokit.evaluate.views import Views, load_held_out
from histokit.report import plots

STRANGE = [
    "Study A / Patient 1",
    "Study B / Patient 1",
    "..",
    "../../elsewhere",
    r"$\foo$ <b>",
    "NA",
]


def train(data, folder, **options):
    options = {"model": "ridge", "encoder": "tiny", "panel": "union"} | options
    run_train.main(run_train.Options(data=str(data), run=str(folder), **options))
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A cohort whose patients, cancers and one slide's genes have hostile names, and its run."""
    place = tmp_path_factory.mktemp("strange")
    slides = {f"S{i}": ("IDC", name, 30 + i) for i, name in enumerate(STRANGE)}
    slides["T0"] = (r"$\frac{", STRANGE[0], 25)
    data = write_cohort(place / "data", slides)
    for path in (data / "expression").glob("*.h5ad"):
        table = anndata.read_h5ad(path)
        table.var_names = [f"$\\{name}_^{{" for name in table.var_names]
        table.var["symbol"] = table.var_names
        table.write_h5ad(path)
    run = train(data, place / "a" / "b" / "run", folds="leave-one-patient-out")
    run_eval.main(run_eval.Options(run=[str(run)], num_hvg=8, max_pictures=9))
    return place


def test_folders_of_folds_are_plain_and_stay_in_the_run(strange):
    run = strange / "a" / "b" / "run"
    folders = sorted(path.name for path in (run / "folds").iterdir())
    assert folders == sorted(file_id(name) for name in STRANGE)
    assert all(path.parent == run / "folds" for path in (run / "folds").rglob("*") if path.is_dir())
    assert sorted(p.name for p in strange.iterdir()) == ["a", "data"]
    assert sorted(fold.name for fold in Run(run).folds) == sorted(STRANGE)


def test_every_figure_map_and_prediction_comes_from_the_fold_that_held_the_slide_out(strange):
    run = Run(strange / "a" / "b" / "run")
    slides = pd.read_csv(run.folder / "eval" / "slides.csv", keep_default_na=False)
    assert dict(zip(slides["slide_id"], slides["fold"], strict=True)) == {
        **{f"S{i}": name for i, name in enumerate(STRANGE)},
        "T0": STRANGE[0],
    }
    for row in slides.itertuples():
        path = run.folder / "eval" / "predictions" / file_id(row.fold) / f"{row.slide_id}.h5ad"
        table = anndata.read_h5ad(path)
        r = [
            np.corrcoef(x, y)[0, 1]
            for x, y in zip(table.X.T, table.layers["target"].T, strict=True)
        ]
        assert np.mean(r) == pytest.approx(row.pcc_hvg, abs=1e-5)
    maps = {path.relative_to(run.folder / "eval") for path in run.folder.glob("eval/maps/*/*.png")}
    drawn = {Path("maps", file_id(r.fold), f"{r.slide_id}.png") for r in slides.itertuples()}
    assert len(maps) == len(STRANGE)
    assert maps <= drawn


def test_a_map_is_drawn_with_the_same_model_as_its_score(strange, tmp_path, monkeypatch):
    run = Run(strange / "a" / "b" / "run")
    cohort = Cohort(strange / "data", "tiny")
    views = Views(run, cohort, num_hvg=8)
    seen = []
    monkeypatch.setattr(plots, "gene_maps", lambda t, maps, *rest: seen.append(maps))
    monkeypatch.setattr(plots, "save", lambda figure, path: None)
    for fold, slide_id in views.work[: len(STRANGE)]:
        view = views.again(fold, slide_id)
        mean = pd.Series(np.arange(30.0), index=view.score.genes["gene"])
        draw_map(view, mean, cohort, "counts10k-log1p", tmp_path)
    assert len(seen) == len(STRANGE)
    for slide_maps in seen:
        for drawn in slide_maps:
            shown = float(drawn.title.rsplit("PCC ", 1)[1].replace("\u2212", "-"))
            found = np.corrcoef(drawn.measured, drawn.predicted)[0, 1]
            assert shown == pytest.approx(found, abs=0.006)


def test_no_model_is_judged_on_a_slide_that_it_saw(strange):
    run = Run(strange / "a" / "b" / "run")
    fold = next(fold for fold in run.folds if fold.name == STRANGE[0])
    cohort = Cohort(strange / "data", "tiny")
    assert load_held_out(fold, cohort, "T0").slide_id == "T0"
    with pytest.raises(RuntimeError, match="did not hold slide S1 out"):
        load_held_out(fold, cohort, "S1")


def test_pictures_of_slides_whose_joined_names_are_alike_are_kept_apart(tmp_path):
    slides = {"A_B": ("IDC", "1", 30), "B": ("IDC", "2", 25), "C": ("IDC", "3", 28)}
    data = write_cohort(tmp_path / "data", slides)
    rows = "".join(
        f"{slide},{'test' if slide == held else 'train'},{fold}\n"
        for fold, held in (("1", "A_B"), ("1_A", "B"))
        for slide in slides
    )
    folds = write(tmp_path / "s.csv", "slide_id,split,fold\n" + rows)
    run = train(data, tmp_path / "run", folds=folds)
    evaluate(run, pictures=True)
    maps = sorted((run / "eval" / "maps").glob("*/*.png"))
    assert [str(path.relative_to(run / "eval" / "maps")) for path in maps] == [
        "1/A_B.png",
        "1_A/B.png",
    ]
    shown = re.findall(r'src="(data:image[^"]+)"', (run / "eval" / "report.html").read_text())
    assert len(set(shown)) == len(shown) == 6  # two maps, two overviews, two residual maps


def test_report_shows_names_as_they_are(strange):
    page = (strange / "a" / "b" / "run" / "eval" / "report.html").read_text()
    assert "$\\foo$ &lt;b&gt;" in page
    assert "<b>" not in page


@pytest.mark.parametrize("label", ["C2", "0", "Patient 1", "a.b_c-d+e"])
def test_a_plain_label_is_its_own_folder(label):
    assert file_id(label) == label


@pytest.mark.parametrize(
    "label",
    ["", ".", "..", "a/b", "a\\b", "x.", "x ", " x", ".x", "a\0b", "a" * 300, "\u00e9", "a\nb"],
)
def test_any_other_label_gets_a_folder_of_its_own(label):
    found = file_id(label)
    assert found != label
    assert found == file_id(found)
    assert len(found) <= 60
    assert found != file_id(label + "x")


def write(path, text):
    path.write_text(text)
    return str(path)


def test_na_is_the_name_of_a_fold_and_a_blank_is_refused(tmp_path):
    rows = "slide_id,split,fold\nS1,test,1\nS2,train,1\nS1,train,NA\nS2,test,NA\n"
    found = read_splits(write(tmp_path / "s.csv", rows))
    assert found == [
        ("1", {"test": ["S1"], "train": ["S2"]}),
        ("NA", {"test": ["S2"], "train": ["S1"]}),
    ]
    with pytest.raises(InputError, match="without fold"):
        read_splits(write(tmp_path / "s.csv", rows + "S1,test,\n"))


def test_patients_that_cannot_make_folds_get_advice_that_can_be_followed():
    table = pd.DataFrame({"patient": ["NA", "NA"], "cancer": "IDC"}, index=["a", "b"])
    with pytest.raises(InputError, match="--folds leave-one-slide-out with --allow-leakage"):
        make_folds(table, "leave-one-patient-out", 0.2, 0)
    with pytest.raises(InputError, match="'Case7' and 'case7' differ in upper and lower case"):
        make_folds(table.assign(patient=["Case7", "case7"]), "leave-one-patient-out", 0.2, 0)
    with pytest.raises(InputError, match="slide b has no patient"):
        make_folds(table.assign(patient=["A", ""]), "leave-one-patient-out", 0.2, 0)


def test_slides_in_no_fold_are_said(tmp_path, capsys):
    data = write_cohort(tmp_path / "data")
    rows = "slide_id,split\nA1,train\nB1,train\nC1,test\n"
    train(data, tmp_path / "run", model="mean", folds=write(tmp_path / "s.csv", rows))
    assert "3 slides of the cohort are in no fold, such as A2" in capsys.readouterr().out


def published(folder, codes):
    folder.mkdir()
    for role, slides in (("train", ["A1", "A2"]), ("val", ["B1"]), ("test", ["C1", "D1"])):
        rows = [f"{s},{codes[s]}" for s in slides]
        (folder / f"{role}_split.csv").write_text(
            "sample_id,oncotree_code_filled\n" + "\n".join(rows) + "\n"
        )
    return str(folder)


def test_codes_of_a_published_split_are_used_and_the_difference_is_said(tmp_path, capsys):
    data = write_cohort(tmp_path / "data")
    codes = {"A1": "IDC", "A2": "IDC", "B1": "PRAD", "C1": "Healthy", "D1": "IDC"}
    folds = published(tmp_path / "split_0", codes)
    run = Run(train(data, tmp_path / "run", model="mean", folds=folds))
    assert "gives 2 slides another cancer code" in capsys.readouterr().out
    fold = run.folds[0]
    assert {s: fold.cancer(s) for s in codes} == codes
    assert load_held_out(fold, Cohort(data, "tiny"), "C1").cancer == "Healthy"
    kept = train(data, tmp_path / "kept", model="mean", folds=folds, cancer_codes="cohort")
    assert Run(kept).folds[0].cancer("C1") == "IDC"


def test_a_blank_code_of_a_published_split_leaves_the_cohorts(tmp_path):
    data = write_cohort(tmp_path / "data")
    codes = {"A1": "IDC", "A2": "IDC", "B1": "", "C1": "Healthy", "D1": ""}
    run = Run(train(data, tmp_path / "run", model="mean", folds=published(tmp_path / "s", codes)))
    own = {s: run.folds[0].cancer(s) for s in codes}
    assert own == {"A1": "IDC", "A2": "IDC", "B1": "PRAD", "C1": "Healthy", "D1": "PRAD"}


def test_a_published_fold_of_which_a_file_is_missing_is_refused_and_never_left_out(tmp_path):
    for name, slides in (("train_0", "A1"), ("test_0", "B1"), ("train_1", "B1")):
        (tmp_path / f"{name}.csv").write_text(f"sample_id\n{slides}\n")
    with pytest.raises(InputError, match=r"test_1\.csv does not exist"):
        read_splits(tmp_path)
    (tmp_path / "test_1.csv").write_text("sample_id,organ\n,Breast\n")
    with pytest.raises(InputError, match=r"test_1\.csv has a row without sample_id"):
        read_splits(tmp_path)
    (tmp_path / "test_1.csv").write_text("sample_id\nA1\n")
    assert read_splits(tmp_path) == [
        ("0", {"train": ["A1"], "test": ["B1"]}),
        ("1", {"train": ["B1"], "test": ["A1"]}),
    ]


def test_an_older_run_with_plain_folds_stays_usable_and_one_with_nested_folds_is_refused(tmp_path):
    run = tmp_path / "run"
    for folds, ok in ((["A", "Patient 1"], True), (["Study A / Patient 1"], False)):
        run.mkdir(exist_ok=True)
        text = str({"options": {}, "folds": folds, "features": {}}).replace("'", '"')
        (run / "config.json").write_text(text)
        if ok:
            assert [(f.id, f.name) for f in Run(run).folds] == [(f, f) for f in folds]
        else:
            with pytest.raises(InputError, match="no plain folder name"):
                _ = Run(run).folds


@pytest.mark.parametrize("name", ["split.csv", "genes.csv"])
def test_no_cut_table_of_a_fold_is_read(plain_run, tmp_path, name):
    run = shutil.copytree(plain_run, tmp_path / "run")
    path = run / "folds" / "0" / name
    whole = path.read_bytes()
    table = getattr(Run(run).folds[0], name.removesuffix(".csv"))
    assert len(table) == whole.count(b"\n") - 1
    first, last = whole.index(b"\n") + 1, whole[:-1].rindex(b"\n") + 1
    inside = {len(whole) - 1, len(whole) - 2, last + 1}  # of the last line: its cells, its end
    for length in {0, 1, first, last, *inside}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            _ = getattr(Run(run).folds[0], name.removesuffix(".csv"))
    path.write_bytes(whole[:last])
    with pytest.raises(InputError, match=r"remove the fold's folder .*0 and give run_train\.py"):
        evaluate(run)


def test_the_advice_about_a_cut_table_can_be_followed(plain_run, tmp_path):
    run = shutil.copytree(plain_run, tmp_path / "run")
    place = run / "folds" / "0"
    genes = (place / "genes.csv").read_bytes()
    (place / "genes.csv").write_bytes(genes[:-9])
    shutil.rmtree(place)
    train(plain_run.parent / "data", run, folds=str(plain_run.parent / "s.csv"))
    assert (place / "genes.csv").read_bytes() == genes
    evaluate(run)


# ---- features ----------------------------------------------------------------------------------


def test_patches_of_another_size_never_mix(tmp_path):
    data = write_cohort(tmp_path / "data")

    def mark(slides, **attributes):
        for slide in slides:
            with h5py.File(data / "features" / "tiny" / f"{slide}.h5", "r+") as file:
                file.attrs.update(attributes)

    every = ["A1", "A2", "B1", "B2", "C1", "D1"]
    mark(every, patch_um=0.0, patch_px=64)
    folds = write(tmp_path / "s.csv", "slide_id,split\nA1,train\nB1,train\nC1,test\n")
    run = train(data, tmp_path / "run", model="mean", folds=folds)
    mark(["C1"], patch_px=512)
    with pytest.raises(InputError, match="features of slide C1 have patch_px 512"):
        run_eval.main(run_eval.Options(run=[str(run)]))
    with pytest.raises(InputError, match="have patch_px 64 and those of C1 512"):
        train(data, tmp_path / "other", model="mean", folds=folds)


def test_a_key_that_an_older_file_lacks_is_no_difference_but_pixels_must_be_known():
    assert difference({"encoder": "a"}, {"encoder": "a", "precision": "float32"}) is None
    assert difference({"patch_um": 112.0}, {"patch_um": 112.0, "patch_px": 0}) is None
    assert difference({"pooling": "avg"}, {"pooling": "last"}) == ("pooling", "avg", "last")
    with pytest.raises(InputError, match="extract and train again"):
        difference({"patch_um": 0.0}, {"patch_um": 0.0, "patch_px": 64})


# ---- folders of an evaluation ------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    place = tmp_path_factory.mktemp("plain")
    data = write_cohort(place / "data")
    folds = write(place / "s.csv", "slide_id,split\nA1,train\nB1,train\nC1,test\nD1,test\n")
    return train(data, place / "run", folds=folds)


def evaluate(run, out=None, **options):
    options = {"num_hvg": 8, "pictures": False, "predictions": False} | options
    run_eval.main(run_eval.Options(run=[str(run)], out=out and str(out), **options))


def test_nothing_that_is_not_ours_is_deleted(plain_run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    (out / "precious.csv").write_text("mine")
    with pytest.raises(InputError, match="exists and was not written by this version"):
        evaluate(plain_run, out)
    assert (out / "precious.csv").read_text() == "mine"
    shutil.rmtree(out)
    evaluate(plain_run, out)
    evaluate(plain_run, out)  # its own is replaced
    (out / "predictions").mkdir()
    (out / "predictions" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"did not write, such as predictions/notes\.txt"):
        evaluate(plain_run, out)
    assert (out / "predictions" / "notes.txt").read_text() == "mine"


def test_a_link_stays_a_link_and_the_current_folder_is_refused(plain_run, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    evaluate(plain_run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "report.html").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="holds the current folder"):
        evaluate(plain_run, ".")


def test_what_a_killed_evaluation_left_is_cleaned_and_the_old_one_put_back(tmp_path):
    out = tmp_path / "eval"
    with whole_folder(out) as folder:
        (folder / "report.html").write_text("first")
    dead = 2**22 + 1  # above the largest process number
    host = os.uname().nodename
    out.rename(tmp_path / f".eval.{host}-{dead}.old")
    (tmp_path / f".eval.{host}-{dead}.tmp").mkdir()
    with pytest.raises(ZeroDivisionError), whole_folder(out):
        _ = 1 / len((out / "report.html").read_text().removeprefix("first"))
    assert (out / "report.html").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval"]
    assert (out / MANIFEST).is_file()
    check_replaceable(out)


def test_data_given_as_a_relative_path_are_found_from_another_folder(tmp_path, monkeypatch):
    data = write_cohort(tmp_path / "data")
    folds = write(tmp_path / "s.csv", "slide_id,split\nA1,train\nB1,train\nC1,test\n")
    monkeypatch.chdir(tmp_path)
    run = train("data", tmp_path / "run", model="mean", folds=folds)
    train("data", tmp_path / "run", model="mean", folds=folds)  # the same command goes on
    monkeypatch.chdir("/")
    evaluate(run)
    data.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="give its present place with --data"):
        evaluate(run)
    evaluate(run, data=str(tmp_path / "moved"))


def test_a_comparison_says_what_each_report_says(tmp_path):
    data = write_cohort(tmp_path / "data")
    rows = "slide_id,split\nA1,train\nB1,train\nA2,test\nB2,test\n"
    folds = write(tmp_path / "s.csv", rows)
    for model in ("mean", "ridge"):
        train(data, tmp_path / model, model=model, folds=folds, allow_leakage=True)
    names = [str(tmp_path / model) for model in ("mean", "ridge")]
    options = {"num_hvg": 8, "pictures": False, "predictions": False}
    run_eval.main(run_eval.Options(run=names, out=str(tmp_path / "both"), **options))
    page = (tmp_path / "both" / "report.html").read_text()
    assert "The audit found" in page
    findings = pd.read_csv(tmp_path / "mean" / "audit" / "findings.csv")["finding"]
    assert "share 2 patients" in findings[0]
    assert findings[0] in page
    assert "comes from a patient whose other slides trained the model" in page


def test_a_run_of_before_an_option_existed_goes_on(tmp_path):
    data = write_cohort(tmp_path / "data", genes=None)
    options = {"model": "bpbooster", "preset": "small", "num_hvgs": 10, "epochs": 1}
    options |= {"data": str(data), "encoder": "tiny", "folds": "2", "run": str(tmp_path / "run")}
    run_train.main(run_train.Options(**options))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    for newer in ("loss_scale", "unmeasured", "val_fraction"):
        del config["options"][newer]
    path.write_text(json.dumps(config))
    run_train.main(run_train.Options(**options))
    with pytest.raises(InputError, match="holds a run with --loss-scale"):
        run_train.main(run_train.Options(**options, loss_scale="sum"))
