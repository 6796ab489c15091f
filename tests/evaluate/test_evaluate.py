import json
import shutil
from pathlib import Path

import anndata
import h5py
import matplotlib
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.sparse as sp
import torch
from cohorts import GENES, write_cohort
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run

SCRIPT = Path(run_eval.__file__)
MISSING, SILENT = GENES[-1], GENES[3]  # not measured on C1; never detected on D1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("cohort"), genes={"C1": GENES[:-1]})
    path = folder / "expression" / "D1.h5ad"
    slide = anndata.read_h5ad(path)
    counts = slide.X.toarray()
    counts[:, GENES.index(SILENT)] = 0
    slide.X = sp.csr_matrix(counts)
    slide.write_h5ad(path)
    return folder


def train(data, folder, model="ridge", **options):
    options = {"folds": "leave-one-slide-out", "allow_leakage": True} | options
    options = {"panel": "union", "encoder": "tiny"} | options
    run_train.main(run_train.Options(data=str(data), run=str(folder), model=model, **options))
    return folder


def evaluate(*runs, **options):
    options = {"num_hvg": 8, "pictures": False} | options
    run_eval.main(run_eval.Options(run=[str(run) for run in runs], **options))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for model in ("ridge", "ridge-hest", "mean"):
        train(data, folder / model, model)
    train(data, folder / "ridge-raw", "ridge-hest", target="log1p")
    train(data, folder / "by-patient", "mean", folds="leave-one-patient-out")
    return folder


@pytest.fixture(scope="module")
def ridge(runs):
    evaluate(runs / "ridge", predict_genes="all", pictures=True, max_pictures=2)
    return runs / "ridge"


def copy(run, tmp_path):
    target = tmp_path / run.name
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("eval"))
    return target


def refused(match, *runs, **options):
    """The evaluation is refused and leaves nothing behind."""
    with pytest.raises(InputError, match=match) as caught:
        evaluate(*runs, **options)
    assert "\n" not in str(caught.value)
    for run in runs:
        assert not (Path(run) / "eval").exists()
        assert not list(Path(run).glob(".eval*"))


def test_scores_equal_scipy_on_the_written_predictions(ridge):
    slides = pd.read_csv(ridge / "eval" / "slides.csv", index_col="slide_id")
    matrix = pd.read_csv(ridge / "eval" / "pcc_by_slide.csv", index_col=0)
    assert list(slides.index) == ["A1", "A2", "B1", "B2", "C1", "D1"]
    for slide_id, row in slides.iterrows():
        written = anndata.read_h5ad(
            ridge / "eval" / "predictions" / row["fold"] / f"{slide_id}.h5ad"
        )
        pred, target = written.X.astype(float), written.layers["target"].astype(float)
        scored = (np.ptp(target, axis=0) > 0) & ~np.isnan(target).any(axis=0)
        expected = np.full(written.n_vars, np.nan)
        for gene in np.flatnonzero(scored):
            expected[gene] = pearsonr(pred[:, gene], target[:, gene]).statistic
        np.testing.assert_allclose(written.var["pcc"], expected, atol=1e-6)
        np.testing.assert_allclose(matrix.loc[written.var_names, slide_id], expected, atol=1e-4)
        assert row["pcc_all"] == pytest.approx(np.nanmean(expected), abs=1e-6)
        hvg = written.var["hvg"].to_numpy()
        assert row["pcc_hvg"] == pytest.approx(np.nanmean(expected[hvg]), abs=1e-6)
        assert row["mse"] == pytest.approx(np.nanmean((pred - target) ** 2), rel=1e-5)
        variance = np.nanmean(np.var(target, axis=0))
        assert row["target_variance"] == pytest.approx(variance, rel=1e-5)


def test_targets_are_the_normalized_counts_of_the_same_barcodes(ridge, data):
    for slide_id in ("A1", "C1"):
        raw = anndata.read_h5ad(data / "expression" / f"{slide_id}.h5ad")
        written = anndata.read_h5ad(
            next((ridge / "eval" / "predictions").glob(f"*/{slide_id}.h5ad"))
        )
        raw = raw[written.obs_names]
        counts = raw.X.toarray()
        expected = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(
            written[:, raw.var_names].layers["target"], expected, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(written.obsm["spatial"], raw.obsm["spatial"])


def test_the_model_learned_something_real(ridge):
    slides = pd.read_csv(ridge / "eval" / "slides.csv")
    assert slides["pcc_hvg"].mean() > 0.5


def test_unmeasured_and_constant_genes_are_counted_never_zero(ridge):
    slides = pd.read_csv(ridge / "eval" / "slides.csv", index_col="slide_id")
    assert slides["genes_unmeasured"].to_dict() == dict.fromkeys("A1 A2 B1 B2 D1".split(), 0) | {
        "C1": 1
    }
    assert slides.loc["D1", "genes_constant"] == 1
    assert slides.loc["D1", "genes_scored"] == len(GENES) - 1
    genes = pd.read_csv(ridge / "eval" / "genes.csv", index_col="gene")
    assert genes.loc[MISSING, ["slides_scored", "slides_unmeasured"]].tolist() == [5, 1]
    assert genes.loc[SILENT, ["slides_scored", "slides_constant"]].tolist() == [5, 1]
    assert genes["pcc"].is_monotonic_decreasing
    written = anndata.read_h5ad(next((ridge / "eval" / "predictions").glob("*/C1.h5ad")))
    assert np.isnan(written[:, MISSING].layers["target"]).all()
    assert not written.var.loc[MISSING, "measured"]


def test_patients_seen_in_training_are_told_from_new_ones(ridge, runs):
    slides = pd.read_csv(ridge / "eval" / "slides.csv", index_col="slide_id")
    seen = {"A1": "yes", "A2": "yes", "B1": "yes", "B2": "yes", "C1": "no", "D1": "no"}
    assert slides["patient_seen"].to_dict() == seen
    evaluate(runs / "by-patient", predictions=False)
    slides = pd.read_csv(runs / "by-patient" / "eval" / "slides.csv")
    assert set(slides["patient_seen"]) == {"no"}


def test_summary_has_every_average_and_no_nan(ridge):
    slides = pd.read_csv(ridge / "eval" / "slides.csv")
    text = (ridge / "eval" / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert summary["transform"] == "counts10k-log1p"
    assert summary["config"]["options"]["model"] == "ridge"
    rows = {(r["by"], r["group"], r["average"], r["metric"]): r for r in summary["results"]}
    mean, headline = rows["all", "all", "mean", "pcc_hvg"], slides["pcc_hvg"]
    assert mean["value"] == pytest.approx(headline.groupby(slides["patient"]).mean().mean())
    assert mean["value"] != pytest.approx(headline.mean())
    assert mean["low"] < mean["value"] < mean["high"]
    assert (mean["slides"], mean["patients"]) == (6, 4)
    assert (mean["unit"], mean["units"]) == ("patient", 4)
    macro = rows["all", "all", "macro", "mse"]["value"]
    patients = slides.groupby(["cancer", "patient"])["mse"].mean()
    assert macro == pytest.approx(patients.groupby("cancer").mean().mean())
    new = slides.loc[slides["patient_seen"] == "no", "pcc_all"]
    assert rows["patient_seen", "no", "mean", "pcc_all"]["value"] == pytest.approx(new.mean())
    fold = rows["fold", slides["fold"].iloc[0], "mean", "pcc_hvg"]
    assert fold["value"] == pytest.approx(headline.iloc[0])
    assert fold["low"] is None
    own = rows["patient", "A", "mean", "target_variance"]
    expected = slides.loc[slides["patient"] == "A", "target_variance"].mean()
    assert (own["unit"], own["units"]) == ("section", 2)
    assert own["value"] == pytest.approx(expected)
    cancers = pd.read_csv(ridge / "eval" / "cancers.csv")
    assert set(cancers["group"]) == {"IDC", "PRAD"}


def test_a_row_a_patient_has_the_means_of_its_slides(ridge):
    slides = pd.read_csv(ridge / "eval" / "slides.csv")
    patients = pd.read_csv(ridge / "eval" / "patients.csv", index_col="patient")
    assert patients["slides"].to_dict() == {"A": 2, "B": 2, "C": 1, "D": 1}
    own = slides.groupby("patient")
    assert patients["spots"].to_dict() == own["spots"].sum().to_dict()
    for metric in ("pcc_hvg", "pcc_all", "mse", "target_variance"):
        assert patients[metric].to_dict() == pytest.approx(own[metric].mean().to_dict())
    assert patients.loc["D", "genes_constant_most"] == 1
    assert patients.loc["A", "patient_seen"] == "yes"
    html = (ridge / "eval" / "report.html").read_text()
    assert "<h2>Patients</h2>" in html


def test_genes_are_averaged_over_patients(ridge):
    slides = pd.read_csv(ridge / "eval" / "slides.csv", index_col="slide_id")
    by_slide = pd.read_csv(ridge / "eval" / "pcc_by_slide.csv", index_col="gene")
    patients = by_slide.T.groupby(slides["patient"]).mean().mean()
    genes = pd.read_csv(ridge / "eval" / "genes.csv", index_col="gene")
    assert genes["pcc"].to_dict() == pytest.approx(patients.to_dict(), abs=1e-3)


def test_scanpy_and_squidpy_plot_the_predictions(ridge, tmp_path):
    matplotlib.use("Agg")
    squidpy = pytest.importorskip("squidpy")
    path = next((ridge / "eval" / "predictions").glob("*/A1.h5ad"))
    data = scanpy.read_h5ad(path)
    assert list(data.obs_names) == list(pd.Index(data.obs_names).unique())
    scanpy.pl.embedding(data, basis="spatial", color=GENES[0], show=False)
    scanpy.pl.embedding(data, basis="spatial", color=GENES[0], layer="target", show=False)
    squidpy.pl.spatial_scatter(data, color=GENES[0], shape=None)
    squidpy.pl.spatial_scatter(data, color=GENES[0])
    assert data.uns["histokit"]["transform"] == "counts10k-log1p"
    assert json.loads(data.uns["histokit"]["config"])["options"]["model"] == "ridge"
    picture = data.uns["spatial"]["A1"]
    edge = data.obsm["spatial"].max() * picture["scalefactors"]["tissue_hires_scalef"]
    assert edge < max(picture["images"]["hires"].shape)


def test_a_spots_error_is_the_mean_over_the_headline(ridge):
    written = anndata.read_h5ad(next((ridge / "eval" / "predictions").glob("*/A1.h5ad")))
    off = np.abs(written.X - written.layers["target"])[:, written.var["hvg"]].mean(axis=1)
    assert written.n_vars > written.var["hvg"].sum()
    np.testing.assert_allclose(written.obs["mean_abs_residual"], off, rtol=1e-5)


def test_pictures_and_report_are_written(ridge):
    folder = ridge / "eval"
    assert len(list(folder.glob("maps/*/*.png"))) == 2
    assert len(list(folder.glob("residuals/*/*.png"))) == 2
    html = (folder / "report.html").read_text()
    assert html.count("data:image") == 6
    assert "<h2>Where errors lie</h2>" in html
    assert "new patients" in html
    assert "training.options.panel" in html
    assert not list(ridge.glob(".eval*"))


def test_a_constant_prediction_is_undefined_and_reported(runs):
    evaluate(runs / "mean", pictures=True, max_pictures=1)
    slides = pd.read_csv(runs / "mean" / "eval" / "slides.csv")
    assert slides["pcc_hvg"].isna().all()
    assert (slides["genes_constant_prediction"] > 0).all()
    assert slides["mse"].notna().all()
    assert "have no correlation" in (runs / "mean" / "eval" / "report.html").read_text()
    predictions = sorted((runs / "mean" / "eval" / "predictions").glob("*/*.h5ad"))
    assert len(predictions) == 6
    assert anndata.read_h5ad(predictions[0]).n_vars == 8


def test_listed_genes_replace_the_variable_ones(runs, tmp_path):
    (tmp_path / "genes.txt").write_text(f"{GENES[0]}\n{GENES[7]}\nUNHEARD\n")
    evaluate(runs / "ridge", out=str(tmp_path / "out"), hvg_file=str(tmp_path / "genes.txt"))
    genes = pd.read_csv(tmp_path / "out" / "genes.csv", index_col="gene")
    assert set(genes.index[genes["hvg_folds"] > 0]) == {GENES[0], GENES[7]}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Of the 3 genes of" in page
    assert "the model predicts 2; the headline is theirs alone" in page
    (tmp_path / "genes.txt").write_text("UNHEARD\n")
    with pytest.raises(InputError, match="no gene of fold"):
        evaluate(runs / "ridge", out=str(tmp_path / "b"), hvg_file=str(tmp_path / "genes.txt"))
    assert not (tmp_path / "b").exists()


def test_runs_are_compared_by_target_with_paired_differences(runs, capsys):
    evaluate(runs / "mean", runs / "ridge", runs / "ridge-hest", runs / "ridge-raw",
             predictions=False)  # fmt: skip
    table = pd.read_csv(runs / "comparison" / "comparison.csv")
    everything = table[table["by"] == "all"]
    assert everything["transform"].tolist() == ["counts10k-log1p"] * 3 + ["log1p"]
    assert everything["run"].tolist()[2:] == ["mean", "ridge-raw"]
    first, second = everything["run"].tolist()[:2]
    assert {first, second} == {"ridge", "ridge-hest"}
    assert set(table["group"]) == {"all", "yes", "no"}
    slides = {
        name: pd.read_csv(runs / name / "eval" / "slides.csv", index_col="slide_id")["pcc_hvg"]
        for name in (first, second)
    }
    row = everything.iloc[1]
    patient = slides[first].index.str[0]
    means = {name: own.groupby(patient).mean().mean() for name, own in slides.items()}
    assert means[first] > means[second]
    assert row["difference"] == pytest.approx(means[second] - means[first])
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    html = (runs / "comparison" / "report.html").read_text()
    printed = capsys.readouterr().out.strip().splitlines()
    for said in (
        "MSE must not be compared across",
        "Only the first tells what to expect on a new patient",
        "The audit found ",
        "ridge-raw: Targets are raw counts",
    ):
        assert said in html
        assert any(said in line for line in printed)
        assert table["caveats"].str.contains(said.removeprefix("ridge-raw: ")).any() or (
            said.startswith("MSE")
        )
    assert everything["target_variance"].nunique() == 2  # of the targets, whatever the model
    assert printed[-1].startswith("wrote the comparison of 4 runs to")


def test_runs_on_other_test_slides_are_not_compared(runs, data, tmp_path):
    (tmp_path / "f.csv").write_text("slide_id,split\nA1,train\nB1,train\nC1,test\nD1,test\n")
    train(data, tmp_path / "other", "mean", folds=str(tmp_path / "f.csv"))
    one = copy(runs / "ridge", tmp_path)
    refused("ridge alone tests A1, A2, B1, B2", one, tmp_path / "other")
    assert not (tmp_path / "comparison").exists()


def test_an_unfinished_fold_is_named(runs, tmp_path):
    run = copy(runs / "ridge", tmp_path)
    (run / "folds" / "B1" / "model.safetensors").unlink()
    refused("fold B1 of .* holds no model.safetensors: it is not trained to its end", run)


def test_a_missing_run_is_named(tmp_path):
    refused("is not a run: it holds no config.json", tmp_path / "nothing")


def test_a_cancer_the_model_never_saw_is_conditioned_on_none_and_said(data, tmp_path, capsys):
    (tmp_path / "f.csv").write_text("slide_id,split\nA1,train\nB1,train\nA2,test\nC1,test\n")
    shutil.copytree(data, tmp_path / "data")
    slides = pd.read_csv(tmp_path / "data" / "slides.csv")
    slides.loc[slides["slide_id"] == "C1", "cancer"] = "HCC"
    slides.to_csv(tmp_path / "data" / "slides.csv", index=False)
    small = {"epochs": 1, "hidden_dim": 16, "feedforward_dim": 16, "val_fraction": 0.0}
    folds = str(tmp_path / "f.csv")
    run = train(tmp_path / "data", tmp_path / "run", "histoprism", folds=folds, **small)
    evaluate(run, predict_genes="all")
    assert "The cancers of C1 (HCC) were not in the training" in capsys.readouterr().out
    assert "C1 (HCC)" in (run / "eval" / "report.html").read_text()
    model = Run(run).folds[0].load_model()
    slide = Cohort(tmp_path / "data", "tiny").load("C1")
    with torch.inference_mode():
        expected = model(model.standardizer(slide.features), -1)
    written = anndata.read_h5ad(run / "eval" / "predictions" / "0" / "C1.h5ad")
    assert_allclose(written.X, expected.numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="does not know the cancer code 'HCC'"):
        model.predict(slide.features, "HCC")


@pytest.mark.parametrize(("key", "value"), [("encoder", "other"), ("weights_sha256", "0f0f")])
def test_features_of_another_encoder_are_refused(runs, data, tmp_path, key, value):
    shutil.copytree(data, tmp_path / "data")
    with h5py.File(tmp_path / "data" / "features" / "tiny" / "B2.h5", "r+") as file:
        file.attrs[key] = value
    run = copy(runs / "ridge", tmp_path)
    refused(f"features of slide B2 have {key} {value}", run, data=str(tmp_path / "data"))


def test_features_of_another_dimension_are_refused(runs, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    with h5py.File(tmp_path / "data" / "features" / "tiny" / "B2.h5", "r+") as file:
        features = file["features"][:]
        del file["features"]
        file["features"] = features[:, :9]
    run = copy(runs / "ridge", tmp_path)
    refused("features of slide B2 have dimension 9", run, data=str(tmp_path / "data"))


def test_a_slide_the_data_lack_is_named(runs, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    slides = pd.read_csv(tmp_path / "data" / "slides.csv")
    slides[slides["slide_id"] != "A2"].to_csv(tmp_path / "data" / "slides.csv", index=False)
    run = copy(runs / "ridge", tmp_path)
    refused("test slide A2 of fold A2 is not in", run, data=str(tmp_path / "data"))


def test_a_run_without_test_slides_is_refused(runs, tmp_path):
    run = copy(runs / "ridge", tmp_path)
    for path in run.glob("folds/*/split.csv"):
        split = pd.read_csv(path)
        split[split["split"] != "test"].to_csv(path, index=False)
    refused("was changed or cut short since the training", run)
    config = json.loads((run / "config.json").read_text())
    del config["fold_slides"]  # as runs made before it was recorded
    (run / "config.json").write_text(json.dumps(config))
    refused("has no test slide in any fold", run)


def test_a_model_that_predicts_nan_is_refused_and_the_old_evaluation_stays(runs, tmp_path):
    run = copy(runs / "ridge", tmp_path)
    evaluate(run, predictions=False)
    before = (run / "eval" / "summary.json").read_text()
    path = run / "folds" / "D1" / "model.safetensors"
    state = load_file(path)
    state["head.bias"][0] = float("nan")
    save_file(state, path)
    with pytest.raises(InputError, match=r"fold D1 of .* not finite on slide D1"):
        evaluate(run, predictions=False)
    assert (run / "eval" / "summary.json").read_text() == before
    assert not list(run.glob(".eval*"))


def test_a_folder_of_something_else_is_never_replaced(runs, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and was not written by this version"):
        evaluate(runs / "ridge", out=str(tmp_path / "thesis"))
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_a_second_evaluation_replaces_the_first_and_repeats_it(runs, tmp_path):
    run = copy(runs / "ridge", tmp_path)
    evaluate(run)
    assert (run / "eval" / "predictions").is_dir()
    first = (run / "eval" / "slides.csv").read_bytes(), (run / "eval" / "summary.csv").read_bytes()
    evaluate(run, predictions=False)
    again = (run / "eval" / "slides.csv").read_bytes(), (run / "eval" / "summary.csv").read_bytes()
    assert again == first
    assert not (run / "eval" / "predictions").exists()


def test_the_script_says_one_sentence_and_stops(tmp_path, children):
    done = children.run(SCRIPT, "--run", tmp_path / "no")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
