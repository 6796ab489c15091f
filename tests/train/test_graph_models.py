"""DeepSpot and MERGE from training to report."""

import h5py
import pandas as pd
import pytest
import torch
from cohorts import write_cohort
from safetensors.torch import load_file

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.evaluate.runs import Run
from histokit.models.base import Batch, Target
from histokit.models.merge import Merge
from histokit.models.registry import MODELS

TINY = {
    "deepspot": {"hidden_dim": 16, "lr": 1e-2},
    "merge": {"merge_widths": "8,8", "merge_heads": 2, "merge_clusters": 2, "lr": 1e-2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def train(data, folder, model, **options):
    options = {"encoder": "tiny", "epochs": 3, "preset": "small"} | TINY[model] | options
    run_train.main(run_train.Options(data=str(data), run=str(folder), model=model, **options))
    return Run(folder)


def weights(run):
    return load_file(run.folds[0].folder / "model.safetensors")


@pytest.mark.parametrize("model", TINY)
def test_from_training_to_report(data, tmp_path, one_fold, call, model):
    options = ["--data", data, "--run", tmp_path / "run", "--encoder", "tiny", "--folds", one_fold]
    chosen = TINY[model] | {"epochs": 2, "model": model, "preset": "small"}
    for name, value in chosen.items():
        options += ["--" + name.replace("_", "-"), value]
    done = call(run_train, *options)
    assert done.returncode == 0, done.stderr
    done = call(run_eval, "--data", data, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()
    assert (tmp_path / "run" / "eval" / "report.html").is_file()


def test_deepspot_beats_the_mean(data, tmp_path, one_fold):
    fold = train(data, tmp_path / "run", "deepspot", epochs=50, folds=one_fold).folds[0]
    history = pd.read_csv(fold.folder / "metrics.csv")
    assert history.val_loss.min() < 0.75 * fold.genes.train_variance.mean()


def test_merge_beats_the_mean_where_neighbors_are_alike():
    """Without that it cannot: a spot is one of the nine or more that it averages."""
    torch.manual_seed(0)
    loadings = torch.randn(4, 30)
    slides = []
    for _ in range(3):
        at = torch.arange(144)
        coords = torch.stack([at % 12, at // 12], 1) * 100.0
        fields = torch.sin(coords / 100 @ torch.randn(2, 4) * 0.3 + torch.rand(4) * 6)
        x = torch.cat([fields, torch.zeros(144, 12)], 1) + 0.3 * torch.randn(144, 16)
        slides.append((Batch(x, torch.tensor([-1]), None, coords), fields @ loadings))
    mean = torch.cat([y for _, y in slides[:2]]).mean(0)
    measured = torch.ones(30, dtype=torch.bool)
    model = Merge(16, 30, merge_widths="16,16", merge_heads=2, merge_clusters=2)
    model.start_at(mean)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(120):
        batch, y = slides[step % 2]
        loss = model.train().loss(batch, [Target(y.to_sparse_csr(), measured)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch, y = slides[2]
    predicted = model.predict(batch.features, "", batch.coords)
    error = (predicted - y).square().mean() / (y - mean).square().mean()
    assert error < 0.5


@pytest.mark.parametrize("model", TINY)
def test_small_preset_starts_at_the_training_means(data, tmp_path, one_fold, model):
    options = {"epochs": 1, "lr": 1e-12, "refit": False, "folds": one_fold}
    fold = train(data, tmp_path / "run", model, **options).folds[0]
    prediction = fold.load_model().predict(torch.randn(5, 16), "IDC", torch.rand(5, 2))
    means = torch.tensor(fold.genes.train_mean.to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(prediction, means.expand(5, -1))


@pytest.mark.parametrize("model", TINY)
def test_one_seed_one_result_and_packed_slides_train(data, tmp_path, one_fold, model):
    runs = [
        weights(train(data, tmp_path / name, model, folds=one_fold, **options))
        for name, options in (
            ("a", {}),
            ("b", {}),
            ("c", {"seed": 1}),
            ("d", {"slides_per_step": 3}),
        )
    ]
    first = next(iter(runs[0]))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0][first], runs[2][first])
    assert not torch.equal(runs[0][first], runs[3][first])
    assert all(value.isfinite().all() for run in runs for value in run.values())


@pytest.mark.parametrize("model", TINY)
def test_paper_preset_is_the_papers(model):
    arguments = MODELS[model].presets["paper"]
    sizes = {name: arguments[name] for name in MODELS[model].takes}
    with torch.device("meta"):
        built = MODELS[model].load_class()(1024, 50, **sizes)
    published = {"deepspot": 5_760_500, "merge": 21_117_590}  # DeepSpot's with two bags
    assert sum(p.numel() for p in built.parameters()) == published[model]


@pytest.fixture
def two_sizes(tmp_path):
    """A cohort whose features say that they are of two sizes of patch."""
    data = write_cohort(tmp_path / "sizes")
    for path in (data / "features").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["patch_um"] = "112, 224"
    return data


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"neighbors": "mean"}, "with --neighbors mean sets others beside them"),
        ({"encoder": "tiny+tiny"}, r"--encoder tiny\+tiny with --neighbors none sets others"),
        ({}, "have patches of 112.0 microns; give --deepspot-scales 1, or extract"),
    ],
)
def test_features_without_such_scales_are_refused(data, tmp_path, one_fold, options, text):
    given = {"folds": one_fold, "deepspot_scales": 2} | options
    with pytest.raises(InputError, match=text):
        train(data, tmp_path / "run", "deepspot", **given)


def test_scales_of_the_features(two_sizes, tmp_path, one_fold):
    data = two_sizes
    run = train(data, tmp_path / "run", "deepspot", folds=one_fold, deepspot_scales=2)
    assert weights(run)["phi_spot.0.model.0.weight"].shape == (16, 8)
    assert weights(run)["rho.0.model.2.weight"].shape == (30, 48)
    with pytest.raises(InputError, match="of 112, 224 microns; give --deepspot-scales 2, or"):
        train(data, tmp_path / "three", "deepspot", folds=one_fold, deepspot_scales=3)


def test_output_dropout_trains(data, tmp_path, one_fold):
    run = train(data, tmp_path / "run", "deepspot", folds=one_fold, deepspot_output_dropout=0.1)
    plain = train(data, tmp_path / "plain", "deepspot", folds=one_fold)
    name = "rho.0.model.2.weight"
    assert not torch.equal(weights(run)[name], weights(plain)[name])
