"""STFlow and Stem from the command line: trained, evaluated, and what their files hold."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit.core.distributed import ALONE
from histokit.data.cohort import Cohort
from histokit.evaluate.controls import open_cohort
from histokit.evaluate.evaluation import Evaluation, Job
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.variance import VarianceTopic, relative_variance_distance
from histokit.evaluate.views import Views
from histokit.models import StemModel
from histokit.models.base import Standardizer
from histokit.train.loader import Preparation, SlideReader
from histokit.train.trainer import Settings, train_network

TINY = {
    "stflow": {"hidden-dim": 32, "num-layers": 1, "samples": 3, "lr": 5e-3, "epochs": 12},
    "stem": {"hidden-dim": 16, "num-layers": 1, "samples": 3, "stem-steps": 10, "epochs": 3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def trained(data, tmp_path, one_fold, call):
    """Trains a model on one fold, in a folder of its name."""

    def train(model, name="run", **options):
        given = {"preset": "small", "encoder": "tiny", "folds": one_fold} | TINY[model] | options
        flags = [part for key, value in given.items() for part in (f"--{key}", value)]
        where = ["--data", data, "--model", model, "--run", tmp_path / name]
        return tmp_path / name, call(run_train, *where, *flags)

    return train


@pytest.mark.parametrize(("model", "calls"), [("stflow", 12), ("stem", 30)])
def test_spread_lies_beside_the_predictions(model, calls, trained, call, tmp_path):
    folder, done = trained(model)
    assert done.returncode == 0, done.stderr
    done = call(run_eval, "--run", folder, "--no-pictures")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "eval/predictions").rglob("D1.h5ad")
    file = anndata.read_h5ad(path)
    said = {name: int(file.uns[name]) for name in ("samples", "seed", "network_calls")}
    assert said == {"samples": 3, "seed": 0, "network_calls": calls}
    run = Run(folder)
    view, part = answer(run, tmp_path)
    spread = view.model.behind(view.prediction.hidden).spread
    places = [list(view.score.genes["gene"]).index(gene) for gene in file.var_names]
    np.testing.assert_array_equal(file.layers["spread"], spread[:, places].numpy())
    assert file.layers["spread"].dtype == np.float32
    prediction, draw = part.sections[0].tables[0].rows
    assert (prediction[0], draw[0]) == ("the prediction", "one draw")
    table = pd.read_csv(tmp_path / "variance.csv")
    genes = np.flatnonzero(view.score.hvg)
    hidden, target = view.prediction.hidden.double().numpy(), view.target.toarray()
    ratio = hidden.var(0)[genes] / target.astype(float).var(0)[genes]
    assert table["rvd_hvg"].item() == pytest.approx(((ratio - 1) ** 2).mean(), rel=1e-4)
    first = view.model.behind(view.prediction.hidden).first.numpy()
    pcc = [np.corrcoef(first[:, gene], target[:, gene])[0, 1] for gene in genes]
    assert table["pcc_hvg_one_draw"].item() == pytest.approx(np.mean(pcc), abs=1e-4)
    if model == "stflow":
        scores = pd.read_csv(folder / "eval/slides.csv").iloc[0]
        assert scores["pcc_all"] > 0.4  # the mean predicts no pattern at all
        assert scores["mse"] < 0.8 * scores["target_variance"]


def answer(run, folder):
    """The view of the test slide, and what the topic of variances says of it."""
    cohort, topic = open_cohort(run), VarianceTopic()
    (view,) = Views(run, cohort).of()
    topic.add(view)
    topic.gather(ALONE, [view.score])
    job = Job("run", run, cohort, folder, [view.slide.slide_id])
    return view, topic.finish(Evaluation.of(job, folder, [view.score]))


def test_a_regression_has_no_draws(data, tmp_path, one_fold, call):
    where = ["--data", data, "--run", tmp_path / "run", "--folds", one_fold]
    call(run_train, *where, "--model", "ridge", "--encoder", "tiny")
    call(run_eval, "--run", tmp_path / "run", "--no-pictures")
    (path,) = (tmp_path / "run/eval/predictions").rglob("D1.h5ad")
    file = anndata.read_h5ad(path)
    assert "spread" not in file.layers
    assert "samples" not in file.uns
    _, part = answer(Run(tmp_path / "run"), tmp_path)
    ((name, pcc, rvd),) = part.sections[0].tables[0].rows
    assert name == "the prediction"
    assert 0.5 < pcc < 1
    assert 0 < rvd < 1


def test_distance_of_variances_by_hand():
    measured = np.array([2.0, 4.0, 0.0, np.nan, 1.0])
    predicted = np.array([1.0, 4.0, 3.0, 1.0, 3.0])
    found = relative_variance_distance(predicted, measured)
    assert found == pytest.approx((0.25 + 0 + 4) / 3)
    assert relative_variance_distance(np.zeros(5), measured) == 1
    assert np.isnan(relative_variance_distance(np.ones(1), np.zeros(1)))


@pytest.mark.parametrize("model", ["stflow", "stem"])
def test_one_seed_one_result(model, trained):
    found = []
    for name in "ab":
        folder, done = trained(model, name, epochs=2)
        assert done.returncode == 0, done.stderr
        found.append(Run(folder).folds[0].load_model().state_dict())
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value), key


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, data):
    """The running mean of the weights and its count are in the checkpoint too."""
    cohort = Cohort(data, "tiny")
    prepare = Preparation(cohort, GENES, "counts10k-log1p", Standardizer("none"))
    settings = Settings(1e-3, 0.0, 4, 9, 1.0, 0, checkpoint_seconds=0)

    def fit(name, epochs):
        torch.manual_seed(0)
        model = StemModel(16, len(GENES), 16, 1, stem_steps=2, stem_ema_warm_up=True)
        shorter = dataclasses.replace(settings, stop_after=epochs)
        return train_network(model, ["A1", "B1"], [], SlideReader(prepare), shorter, name).weights

    whole = fit(tmp_path / "whole.ckpt", 4)
    fit(tmp_path / "halves.ckpt", 2)
    torch.manual_seed(123)
    halves = fit(tmp_path / "halves.ckpt", 4)
    assert whole["ema.n_averaged"] == 8
    for key, value in whole.items():
        assert torch.equal(halves[key], value), key


def test_the_running_mean_holds_the_last_step(tmp_path, data):
    """Of one step, the mean is the weights after it, not those it began with."""
    prepare = Preparation(Cohort(data, "tiny"), GENES, "counts10k-log1p", Standardizer("none"))
    torch.manual_seed(0)
    model = StemModel(16, len(GENES), 16, 1, stem_steps=2)
    begun = {key: value.clone() for key, value in model.network.state_dict().items()}
    settings = Settings(1e-3, 0.0, 1, 9, 1.0, 0)
    train_network(model, ["A1"], [], SlideReader(prepare), settings, tmp_path / "one.ckpt")
    ended = model.network.state_dict()
    assert any(not torch.equal(ended[key], begun[key]) for key in ended)
    for key, value in model.ema.module.state_dict().items():
        assert torch.equal(value, ended[key]), key


def test_panels_too_large_for_stem_are_refused(trained):
    _, done = trained("stem", **{"stem-max-genes": 29})
    assert done.returncode == 2
    assert "the panel has 30 genes, more than --stem-max-genes 29" in done.stderr


def test_options_of_one_are_refused_for_the_other(trained):
    _, done = trained("stflow", **{"stem-steps": 9})
    assert done.returncode == 2
    assert "--stem-steps applies only to --model stem; stflow has no such option" in done.stderr
