import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import write_cohort
from safetensors.torch import load_file

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.genes import normalize
from histokit.evaluate.runs import Run
from histokit.models.base import Standardizer

BLEEP = {"model": "bleep", "epochs": 3, "lr": 1e-3, "retrieval_k": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def train(data, folder, **options):
    run_train.main(run_train.Options(data=str(data), run=str(folder), encoder="tiny", **options))
    return Run(folder).folds[0]


def assert_same_weights(a, b):
    a, b = (load_file(fold.folder / "model.safetensors") for fold in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("standardize", ["none", "train", "slide"])
def test_knn_is_the_mean_of_the_nearest_training_spots(data, tmp_path, one_fold, standardize):
    options = {"model": "knn", "retrieval_k": 5, "folds": one_fold, "standardize": standardize}
    fold, cohort = train(data, tmp_path / "run", **options), Cohort(data, "tiny")
    slides = [cohort.load(s, fold.genes) for s in ("A1", "A2", "C1", "B1", "D1")]
    seen = torch.cat([s.features for s in slides[:4]])
    standardizer = Standardizer.fit(standardize, seen)
    parts = [standardizer(s.features) for s in slides]
    keys, query = torch.cat(parts[:4]), parts[4]
    cosine = torch.nn.functional.cosine_similarity(query[:, None], keys, dim=2)
    targets = [normalize(s.counts, s.library_size, "counts10k-log1p").toarray() for s in slides]
    expected = torch.tensor(np.concatenate(targets[:4]))[cosine.topk(5).indices].mean(1)
    found = fold.load_model().predict(slides[4].features, "PRAD")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_bank_holds_the_validation_slides_after_a_refit_alone(data, tmp_path, one_fold):
    for refit, slides in ((False, ["A1", "A2", "C1"]), (True, ["A1", "A2", "C1", "B1"])):
        fold = train(data, tmp_path / str(refit), refit=refit, folds=one_fold, **BLEEP)
        bank = fold.load_model().bank
        assert bank.slides == slides
        cohort = Cohort(data, "tiny")
        loaded = [cohort.load(s, fold.genes) for s in slides]
        assert len(bank) == sum(len(s.barcodes) for s in loaded)
        targets = [normalize(s.counts, s.library_size, "counts10k-log1p") for s in loaded]
        whole = np.concatenate([t.toarray() for t in targets])
        np.testing.assert_allclose(bank.average(torch.arange(len(bank))[:, None],
                                                torch.ones(len(bank), 1)), whole)  # fmt: skip
        described = json.loads((fold.folder / "model.json").read_text())["arguments"]["bank"]
        assert described == {"slides": slides, "spots": len(bank), "values": len(bank.values)}


def test_the_bank_is_embedded_by_the_chosen_weights(data, tmp_path, one_fold):
    fold = train(data, tmp_path / "run", folds=one_fold, **BLEEP)
    model, slide = fold.load_model(), Cohort(data, "tiny").load("A2", fold.genes)
    y = normalize(slide.counts, slide.library_size, "counts10k-log1p").toarray()
    rows = model.bank.slide == model.bank.slides.index("A2")
    embedded = model.spot_projection(torch.from_numpy(y))
    torch.testing.assert_close(model.bank.keys[rows], embedded, rtol=1e-4, atol=1e-4)


def test_one_seed_one_result_and_no_loss_of_squares(data, tmp_path, one_fold, call, capsys):
    folds = [train(data, tmp_path / name, folds=one_fold, **BLEEP) for name in "ab"]
    said = capsys.readouterr().out
    assert_same_weights(*folds)
    assert "validation contrastive loss" in said
    assert "its weights hold the spots of these slides" in said
    other = train(data, tmp_path / "c", folds=one_fold, seed=1, **BLEEP)
    a, c = (load_file(fold.folder / "model.safetensors") for fold in (folds[0], other))
    assert not torch.equal(a["bank.keys"], c["bank.keys"])


def test_slides_that_measured_other_genes(tmp_path):
    names = [f"GENE{i}" for i in range(30)]
    slides = {"A1": ("IDC", "A", 20), "B1": ("IDC", "B", 25), "C1": ("IDC", "C", 18)}
    data = write_cohort(tmp_path / "d", slides, genes={"A1": names[:20], "B1": names[5:]})
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,train\nC1,test\n")
    for options in ({"model": "knn", "retrieval_k": 10}, BLEEP):
        place = tmp_path / options["model"]
        fold = train(data, place, panel="union", folds=str(folds), val_fraction=0.0, **options)
        model, x = fold.load_model(), torch.randn(40, 16)
        assert model.bank.measured.sum(1).tolist() == [20, 25]
        # genes of about one size in both slides: zeros counted as measured would halve some
        prediction = model.predict(x, "IDC").mean(0)
        means = torch.tensor(fold.genes.train_mean.to_numpy()).float()
        assert (prediction > 0.6 * means).all()


def test_options_belong_to_their_models(data, tmp_path):
    with pytest.raises(
        InputError, match="--retrieval-k applies only to --model knn and bleep and mclstexp"
    ):
        train(data, tmp_path / "r", model="mlp", retrieval_k=3)
    with pytest.raises(
        InputError, match="--bleep-batch applies only to --model bleep and mclstexp"
    ):
        train(data, tmp_path / "r", model="knn", bleep_batch=3)


def test_runs_beat_the_mean_and_their_predictions_name_the_spots(data, tmp_path, one_fold, call):
    common = ["--data", data, "--encoder", "tiny", "--folds", one_fold]
    learns = ["--preset", "small", "--epochs", 60, "--retrieval-k", 10]
    for name, own in (
        ("mean", []),
        ("knn", ["--retrieval-k", 10, "--retrieval-weights", "softmax"]),
        ("bleep", learns),
        ("mclstexp", learns),
    ):
        made = call(run_train, *common, "--model", name, *own, "--run", tmp_path / name)
        assert made.returncode == 0, made.stderr
    runs = [str(tmp_path / name) for name in ("mean", "knn", "bleep", "mclstexp")]
    made = call(run_eval, "--run", *runs, "--no-pictures")
    assert made.returncode == 0, made.stderr
    table = pd.read_csv(tmp_path / "comparison/comparison.csv").set_index("run")
    for name in ("knn", "bleep", "mclstexp"):
        assert table.loc[name, "mse"] < 0.95 * table.loc["mean", "mse"]
        assert table.loc[name, "pcc_hvg"] > 0.3
        check_predictions(data, tmp_path / name)
    path = next((tmp_path / "mean/eval/predictions").glob("*/D1.h5ad"))
    assert "bank" not in anndata.read_h5ad(path).uns


def check_predictions(data, folder):
    """A prediction is the weighted mean of the spots that its file names."""
    written = anndata.read_h5ad(next((folder / "eval/predictions").glob("*/D1.h5ad")))
    bank, cohort = written.uns["bank"], Cohort(data, "tiny")
    slides = {s: cohort.load(s, list(written.var_names)) for s in bank["slide_id"].unique()}
    targets = {
        s: normalize(slide.counts, slide.library_size, "counts10k-log1p").toarray()
        for s, slide in slides.items()
    }
    known = np.stack([targets[s][row] for s, row in bank.itertuples(index=False)])
    index, weight = written.obsm["retrieved_index"], written.obsm["retrieved_weight"]
    assert index.shape == weight.shape == (33, 10)
    expected = (weight[:, :, None] * known[index]).sum(1)
    np.testing.assert_allclose(written.X, expected, rtol=1e-4, atol=1e-5)
