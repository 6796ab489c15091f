import json

import pandas as pd
import pytest
import torch
from cohorts import write_cohort
from safetensors.torch import load_file

import run_eval
import run_train
from histokit.evaluate.runs import Run

TINY = {
    "histogene": {"hidden_dim": 32, "feedforward_dim": 32, "num_layers": 1, "histogene_heads": 4},
    "triplex": {"hidden_dim": 32, "triplex_spots": 16},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def flags(**options):
    found = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        found += [flag] if value is True else [flag, value]
    return found


def train(call, data, folder, model, **options):
    options = {"preset": "small", "epochs": 2} | TINY[model] | options
    given = {"data": data, "run": folder, "encoder": "tiny", "model": model} | options
    done = call(run_train, *flags(**given))
    assert done.returncode == 0, done.stderr
    return Run(folder)


def weights(run):
    return load_file(run.folds[0].folder / "model.safetensors")


@pytest.mark.parametrize(
    ("model", "options"),
    [("histogene", {}), ("triplex", {}), ("triplex", {"triplex_clamp": True})],
    ids=["histogene", "triplex", "clamped"],
)
def test_train_and_evaluate(call, data, tmp_path, one_fold, model, options):
    train(call, data, tmp_path / "run", model, folds=one_fold, **options)
    done = call(run_eval, "--run", tmp_path / "run", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "report").glob("*.html"))


@pytest.mark.parametrize("model", TINY)
def test_beats_the_mean(call, data, tmp_path, one_fold, model):
    # its signal is in each spot's own feature, which context only surrounds with noise
    options = {"epochs": 40, "lr": 5e-3, "dropout": 0.1, "no_refit": True, "folds": one_fold}
    run = train(call, data, tmp_path / "run", model, **options)
    history = pd.read_csv(run.folds[0].folder / "metrics.csv")
    assert history.val_loss.min() < 0.8 * run.folds[0].genes.train_variance.mean()


@pytest.mark.parametrize("model", TINY)
def test_small_preset_starts_at_the_training_means(call, data, tmp_path, one_fold, model):
    options = {"epochs": 1, "lr": 1e-12, "no_refit": True, "folds": one_fold}
    fold = train(call, data, tmp_path / "run", model, **options).folds[0]
    prediction = fold.load_model().predict(torch.randn(5, 16), "IDC", torch.rand(5, 2))
    means = torch.tensor(fold.genes.train_mean.to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(prediction, means.expand(5, -1))


@pytest.mark.parametrize("model", TINY)
def test_one_seed_one_result(call, data, tmp_path, one_fold, model):
    a, b = (weights(train(call, data, tmp_path / n, model, folds=one_fold)) for n in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("model", TINY)
@pytest.mark.parametrize(
    "options", [{"precision": "bfloat16"}, {"slides_per_step": 2}], ids=["bfloat16", "packed"]
)
def test_lower_precision_and_packed_slides(call, data, tmp_path, one_fold, model, options):
    run = train(call, data, tmp_path / "run", model, folds=one_fold, **options)
    assert all(value.isfinite().all() for value in weights(run).values())


@pytest.mark.parametrize(
    "options",
    [
        {"triplex_neighbors": "nearest"},
        {"triplex_ablation": "no-global"},
        {"triplex_ablation": "no-neighbor"},
        {"triplex_ablation": "fusion-only"},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_forms_of_triplex_train(call, data, tmp_path, one_fold, options):
    run = train(call, data, tmp_path / "run", "triplex", folds=one_fold, epochs=1, **options)
    known = json.loads((run.folds[0].folder / "model.json").read_text())["arguments"]
    assert options.items() <= known.items()


def test_rates_of_a_published_configuration_hold_unless_dropout_is_given(
    call, data, tmp_path, one_fold
):
    options = {"preset": "paper-andersson", "epochs": 1, "folds": one_fold}
    for name, given, rates in (("a", {}, [0.1, 0.2, 0.3]), ("b", {"dropout": 0.4}, [0.4])):
        run = train(call, data, tmp_path / name, "triplex", **options, **given)
        modules = run.folds[0].load_model().modules()
        assert sorted({m.p for m in modules if isinstance(m, torch.nn.Dropout)}) == rates


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": "mlp", "triplex_spots": 9}, "--triplex-spots applies only to --model triplex"),
        ({"model": "triplex", "hidden_dim": 30}, "8 heads of the fusion encoder of triplex do not"),
        ({"model": "triplex", "no_triplex_project": True}, "needs features of --hidden-dim 512"),
        ({"model": "histogene", "hidden_dim": 30}, "16 heads of histogene do not divide"),
    ],
)
def test_errors_name_the_option(call, data, tmp_path, one_fold, options, text):
    given = {"data": data, "run": tmp_path / "run", "encoder": "tiny", "folds": one_fold}
    given |= {"preset": "paper"}
    done = call(run_train, *flags(**given, **options))
    assert done.returncode == 2
    assert text in done.stderr
