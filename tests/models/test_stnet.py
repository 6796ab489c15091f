import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import write_cohort
from safetensors.torch import load_file

import run_eval
import run_train
from histokit import models
from histokit.core.errors import InputError
from histokit.evaluate.runs import Run
from histokit.models import Mean, STNet
from histokit.models.base import Batch, Target
from histokit.models.registry import MODELS
from histokit.train.loader import TrainingSlide
from histokit.train.trainer import Settings, train_network

SETTINGS = Settings(lr=0.1, weight_decay=0.0, epochs=1, patience=9, clip=1.0, seed=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


class Kept:
    """Training slides that are in memory."""

    def __init__(self, *slides):
        self.slides = {slide.slide_id: slide for slide in slides}

    def stream(self, order):
        return (self.slides[slide_id] for slide_id in order)


def training_slide(slide_id, x, y, measured=None):
    x, y = torch.tensor(x), torch.tensor(y)
    known = torch.ones(y.shape[1], dtype=torch.bool) if measured is None else measured
    return TrainingSlide(slide_id, x, y.to_sparse_csr(), known, "IDC", torch.zeros(len(x), 2))


@pytest.mark.parametrize(
    ("input_dim", "num_genes", "count"), [(1024, 250, 256_250), (1024, 50, 51_250), (7, 3, 24)]
)
def test_parameters_are_those_of_the_published_layer(input_dim, num_genes, count):
    state = STNet(input_dim, num_genes).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {"head.weight": (num_genes, input_dim), "head.bias": (num_genes,)}
    assert sum(value.numel() for value in state.values()) == count


@pytest.mark.parametrize("spots", [1, 600])
def test_untrained_it_predicts_the_training_mean_to_the_bit(spots):
    model, mean = STNet(1280, 60), torch.rand(60, dtype=torch.float64)
    model.start_at(mean)
    prediction = model.predict(torch.randn(spots, 1280) * 50, "IDC")
    assert torch.equal(prediction, mean.float().expand(spots, -1))


def test_each_patch_is_predicted_alone_and_the_same_twice():
    model = STNet(8, 5).eval()
    model.head.weight.data.normal_()
    x, order = torch.randn(20, 8), torch.randperm(20)
    whole = model.predict(x, "IDC")
    assert torch.equal(whole, model.predict(x, "PRAD"))
    torch.testing.assert_close(model.predict(x[order], "IDC"), whole[order])
    torch.testing.assert_close(model.predict(x[3:4], "IDC"), whole[3:4])


def test_loss_by_hand_skips_genes_that_a_slide_did_not_measure():
    model = STNet(2, 2)
    model.head.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    index, y = torch.tensor([0, 0, 1]), torch.tensor([[0.0, 2.0], [3.0, 7.0], [5.0, 99.0]])
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    targets = [Target(y[:2].to_sparse_csr(), both), Target(y[2:].to_sparse_csr(), first)]
    loss = model.loss(Batch(x, torch.tensor([-1, -1]), index), targets)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 0 + 0 + 9) / 4 / 2)
    # the gradient of that mean to the second gene's weights: (4 - 7) x [3, 4] 2 / 4 / 2
    torch.testing.assert_close(model.head.weight.grad[1], torch.tensor([-2.25, -3.0]))


def test_literal_descends_the_sum_over_spots_by_sgd_at_a_constant_rate(tmp_path):
    slide = training_slide("a", [[1.0], [2.0]], [[100.0, 0.0], [200.0, 0.0]])
    literal = Settings(**vars(SETTINGS) | {"lr": 1e-3, "epochs": 3, "stnet_literal": True})
    model = STNet(1, 2)
    result = train_network(model, ["a"], [], Kept(slide), literal, tmp_path / "last.ckpt")
    # by hand: the first gene alone has an error; errors are summed over spots and halved by genes,
    # and nothing bounds a gradient whose norm is in the hundreds
    w = b = speed_w = speed_b = 0.0
    for row in result.history:
        error = np.array([w + b - 100, 2 * w + b - 200])
        assert row["lr"] == 1e-3
        assert row["train_loss"] == pytest.approx((error**2).sum() / 4, rel=1e-5)
        speed_w = 0.9 * speed_w + 2 * (error * [1, 2]).sum() / 2
        speed_b = 0.9 * speed_b + 2 * error.sum() / 2
        w, b = w - 1e-3 * speed_w, b - 1e-3 * speed_b
    assert result.weights["head.weight"][0].item() == pytest.approx(w, rel=1e-5)
    assert result.weights["head.bias"].tolist() == pytest.approx([b, 0.0], rel=1e-5)


def test_literal_weighs_packed_slides_by_their_spots(tmp_path):
    slides = [
        training_slide("a", [[1.0]], [[3.0]]),
        training_slide("b", [[1.0], [1.0], [1.0]], [[6.0], [6.0], [6.0]]),
    ]
    changed = {"lr": 1e-2, "slides_per_step": 2, "stnet_literal": True}
    literal, model = Settings(**vars(SETTINGS) | changed), STNet(1, 1)
    result = train_network(model, ["a", "b"], [], Kept(*slides), literal, tmp_path / "last.ckpt")
    assert result.history[0]["train_loss"] == pytest.approx((9 + 36) / 2)
    assert result.weights["head.bias"].item() == pytest.approx(1e-2 * 2 * (3 + 3 * 6) / 2)


def test_a_literal_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    torch.manual_seed(1)
    slides = [
        training_slide(s, torch.randn(4, 3).tolist(), torch.rand(4, 2).tolist()) for s in "ab"
    ]
    literal = Settings(**vars(SETTINGS) | {"lr": 1e-2, "epochs": 4, "stnet_literal": True})
    begun = Settings(**vars(literal) | {"stop_after": 2})
    found = []
    for name, stages in (("whole", [literal]), ("parts", [begun, literal])):
        for settings in stages:
            place = tmp_path / f"{name}.ckpt"
            result = train_network(STNet(3, 2), ["a", "b"], [], Kept(*slides), settings, place)
        found.append(result)
    whole, parts = found
    assert whole.history == parts.history
    assert all(torch.equal(whole.weights[name], parts.weights[name]) for name in whole.weights)


def test_it_saves_and_loads(tmp_path):
    arguments = {"input_dim": 6, "num_genes": 4}
    model = STNet(**arguments)
    model.head.weight.data.normal_()
    models.save(model, "stnet", arguments, tmp_path)
    x = torch.randn(5, 6)
    assert torch.equal(models.load(tmp_path).predict(x, "IDC"), model.predict(x, "IDC"))
    with pytest.raises(InputError, match="features of 6 dimensions"):
        model.predict(torch.randn(5, 7), "IDC")


def test_presets_start_at_the_training_mean_and_name_the_published_rate():
    presets = MODELS["stnet"].presets
    assert all(values["start_at_mean"] for values in presets.values())
    assert [values["stnet_literal"] for values in presets.values()] == [False, False, True]
    assert (presets["literal"]["lr"], presets["literal"]["epochs"]) == (1e-6, 50)


def test_a_run_beats_the_mean_and_is_evaluated(data, tmp_path, one_fold, call):
    common = ["--data", data, "--encoder", "tiny", "--folds", one_fold]
    for name, own in (
        ("mean", ["--model", "mean"]),
        ("stnet", ["--model", "stnet", "--lr", 0.02, "--epochs", 60]),
        ("literal", ["--model", "stnet", "--preset", "literal", "--lr", 1e-3, "--epochs", 60]),
    ):
        made = call(run_train, *common, *own, "--run", tmp_path / name)
        assert made.returncode == 0, made.stderr
    runs = [str(tmp_path / name) for name in ("mean", "stnet", "literal")]
    made = call(run_eval, "--run", *runs, "--no-pictures", "--no-predictions")
    assert made.returncode == 0, made.stderr
    table = pd.read_csv(tmp_path / "comparison/comparison.csv").set_index("run")
    assert table.loc["stnet", "mse"] < 0.8 * table.loc["mean", "mse"]
    assert table.loc["literal", "mse"] < 0.8 * table.loc["mean", "mse"]
    assert table.loc["stnet", "pcc_hvg"] > 0.4


def test_a_training_of_no_effect_is_the_mean_model(data, tmp_path, one_fold):
    options = {"model": "stnet", "encoder": "tiny", "folds": one_fold, "lr": 1e-12, "epochs": 1}
    folder = tmp_path / "run"
    run_train.main(run_train.Options(data=str(data), run=str(folder), refit=False, **options))
    fold = Run(folder).folds[0]
    mean = Mean(16, len(fold.genes))
    mean.start_at(torch.tensor(fold.genes.train_mean.to_numpy()))
    x = torch.randn(5, 16)
    torch.testing.assert_close(fold.load_model().predict(x, "IDC"), mean.predict(x, "IDC"))
    assert list(load_file(fold.folder / "model.safetensors")) == ["head.bias", "head.weight"]


def test_the_literal_training_belongs_to_stnet(data, tmp_path):
    options = {"model": "mlp", "encoder": "tiny", "stnet_literal": True}
    with pytest.raises(InputError, match="--stnet-literal applies only to --model stnet"):
        run_train.main(run_train.Options(data=str(data), run=str(tmp_path / "run"), **options))
