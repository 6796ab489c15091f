import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import write_cohort
from safetensors.torch import load_file

import run_train
from histokit import ops
from histokit.core.errors import InputError
from histokit.evaluate.runs import Run
from histokit.models.registry import MODELS, OFFERED
from histokit.train.options import Options, the_encoder

SCRIPT = Path(run_train.__file__)
SMALL = {"model": "histoprism", "encoder": "tiny", "lr": 1e-3}
SMALL |= {"hidden_dim": 16, "feedforward_dim": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def train(data, folder, **options):
    options = SMALL | {"epochs": 4} | options
    own = MODELS[options["model"]].own
    foreign = {"hidden_dim", "feedforward_dim"} - {*own}
    options = {name: value for name, value in options.items() if name not in foreign}
    run_train.main(run_train.Options(data=str(data), run=str(folder), **options))
    return Run(folder)


def weights(folder):
    return {f.parent.name: load_file(f) for f in sorted(folder.glob("folds/*/model.safetensors"))}


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert a
    for fold in a:
        for name, value in a[fold].items():
            assert torch.equal(value, b[fold][name]), (fold, name)


@pytest.mark.parametrize("model", [name for name in OFFERED if name not in ("bpbooster", "auto")])
def test_every_model_trains_every_fold(data, tmp_path, model):
    # of a thousand steps a draw, and twelve layers, nothing is learnt here
    preset = "small" if model == "stem" else "paper"
    folds = "leave-one-patient-out"
    chosen = {"model": model, "preset": preset, "neighbors": "none"}
    run = train(data, tmp_path / "run", folds=folds, **chosen)
    assert [f.name for f in run.folds] == ["A", "B", "C", "D"]
    for fold in run.folds:
        split = fold.split
        assert set(split.patient[split.split == "test"]) == {fold.name}
        assert fold.name not in set(split.patient[split.split != "test"])
        genes = fold.genes
        assert len(genes) == 30
        assert genes.hvg_rank.min() == 1
        x = torch.randn(5, 16)
        assert fold.load_model().predict(x, "IDC", torch.rand(5, 2)).shape == (5, 30)
        assert not (fold.folder / "checkpoints").exists()


def test_trained_network_beats_the_mean(data, tmp_path, one_fold):
    run = train(data, tmp_path / "run", model="mlp", preset="small", epochs=60, folds=one_fold,
                hidden_dim=256)  # fmt: skip
    history = pd.read_csv(run.folds[0].folder / "metrics.csv")
    assert history.val_loss.min() < 0.7 * run.folds[0].genes.train_variance.mean()
    assert (run.folds[0].folder / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize("model", ["mlp", "histoprism", "stpath"])
def test_small_preset_starts_at_the_training_means(data, tmp_path, one_fold, model):
    chosen = {"model": model, "preset": "small", "epochs": 1, "lr": 1e-12, "refit": False}
    fold = train(data, tmp_path / "run", folds=one_fold, **chosen).folds[0]
    prediction = fold.load_model().predict(torch.randn(5, 16), "IDC", torch.rand(5, 2))
    means = torch.tensor(fold.genes.train_mean.to_numpy(), dtype=torch.float32)
    torch.testing.assert_close(prediction, means.expand(5, -1))


def test_one_seed_one_result(data, tmp_path, one_fold):
    for name in "ab":
        train(data, tmp_path / name, folds=one_fold)
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    train(data, tmp_path / "c", seed=1, folds=one_fold)
    a, c = weights(tmp_path / "a")["0"], weights(tmp_path / "c")["0"]
    assert not torch.equal(a["input_proj.weight"], c["input_proj.weight"])


def test_killed_training_ends_with_the_same_weights(data, tmp_path, one_fold, children):
    options = {"epochs": 15, "checkpoint_seconds": 0.0, "refit": True, "folds": one_fold}
    command = [str(SCRIPT), "--data", str(data)]
    for name, value in (SMALL | options).items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [flag, str(value)]
    # In processes of their own: one that other tests have used may sum in another order.
    whole = [*command, "--run", str(tmp_path / "whole")]
    children.run(*whole, check=True)
    command += ["--run", str(tmp_path / "killed")]
    kills = 0
    for wait in (0.3, 1.0):
        process = children.start(*command)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "killed").glob("folds/*/checkpoints/*.ckpt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(wait)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills == 2
    children.run(*command, check=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    for fold in Run(tmp_path / "whole").folds:
        whole = (fold.folder / "metrics.csv").read_text()
        assert whole == (tmp_path / "killed/folds" / fold.name / "metrics.csv").read_text()


def test_packed_slides_train(data, tmp_path, one_fold):
    run = train(data, tmp_path / "run", slides_per_step=3, folds=one_fold)
    assert len(pd.read_csv(run.folds[0].folder / "metrics.csv")) == 4


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_lower_precision_trains_about_as_well(data, tmp_path, one_fold, kind):
    losses = []
    for name in ("float32", kind):
        run = train(data, tmp_path / name, precision=name, folds=one_fold, epochs=10)
        losses.append(pd.read_csv(run.folds[0].folder / "metrics.csv").val_loss.iloc[-1])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_large_slides_in_groups(data, tmp_path, one_fold):
    run = train(data, tmp_path / "run", max_patches=10, folds=one_fold)
    assert run.folds[0].load_model().max_patches == 10
    with pytest.raises(
        InputError, match="--max-patches applies only to --model histoprism; mlp has no"
    ):
        train(data, tmp_path / "mlp", model="mlp", max_patches=10)


def test_slides_read_again_give_the_same_weights(data, tmp_path, one_fold):
    train(data, tmp_path / "kept", folds=one_fold)
    train(data, tmp_path / "read", cache_gb=0.0, folds=one_fold)
    assert_same_weights(tmp_path / "kept", tmp_path / "read")


def test_test_slides_do_not_touch_training(tmp_path):
    slides = {"A1": ("IDC", "A", 40), "B1": ("IDC", "B", 45), "C1": ("IDC", "C", 38)}
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,val\nC1,test\n")
    for name, last in (("x", slides["C1"]), ("y", ("PRAD", "C", 17))):
        write_cohort(tmp_path / name, slides | {"C1": last})
        train(tmp_path / name, tmp_path / f"run-{name}", folds=str(folds))
    assert_same_weights(tmp_path / "run-x", tmp_path / "run-y")
    tables = [(tmp_path / f"run-{n}/folds/0/genes.csv").read_text() for n in "xy"]
    assert tables[0] == tables[1]


def test_unmeasured_genes_get_no_gradient(tmp_path):
    names = [f"GENE{i}" for i in range(30)]
    slides = {"A1": ("IDC", "A", 40), "B1": ("IDC", "B", 45), "C1": ("IDC", "C", 38)}
    write_cohort(tmp_path / "d", slides, genes={"A1": names[:20], "B1": names[5:]})
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,val\nC1,test\n")
    runs = {
        panel: train(
            tmp_path / "d", tmp_path / panel, panel=panel, folds=str(folds), preset="paper"
        )
        for panel in ("union", "common")
    }
    assert list(runs["common"].folds[0].genes.gene) == names[5:20]
    union = runs["union"].folds[0]
    assert list(union.genes.gene) == names
    head = load_file(union.folder / "model.safetensors")["gene_regression_head.4.bias"]
    torch.manual_seed(0)
    arguments = json.loads((union.folder / "model.json").read_text())["arguments"]
    from histokit.models import HistoPrism

    start = HistoPrism(**arguments).head.bias.detach()
    shrunk = head[20:] / start[20:]  # weight decay alone moves what no training slide measured
    np.testing.assert_allclose(shrunk, shrunk[0].item(), rtol=1e-4)
    assert (head[:20] - start[:20]).abs().min() > (head[20:] - start[20:]).abs().max()


def test_another_configuration_is_refused(data, tmp_path):
    train(data, tmp_path / "run", model="ridge")
    with pytest.raises(InputError, match="--target counts10k-log1p, not log1p"):
        train(data, tmp_path / "run", model="ridge", target="log1p")
    before = weights(tmp_path / "run")
    train(data, tmp_path / "run", model="ridge", cache_gb=1.0)  # how it runs may differ
    assert before.keys() == weights(tmp_path / "run").keys()


def test_other_features_are_refused(data, tmp_path):
    folder = write_cohort(tmp_path / "d")
    train(folder, tmp_path / "run", model="ridge")
    write_cohort(folder, dim=20)
    with pytest.raises(InputError, match="begun with other features"):
        train(folder, tmp_path / "run", model="ridge")


def test_command_line_errors_are_one_sentence(data, tmp_path, call, children):
    common = ["--model", "ridge", "--run", str(tmp_path / "r")]
    apart = children.run(SCRIPT, *common, "--data", tmp_path)
    assert (apart.returncode, apart.stderr.count("\n")) == (2, 1)
    for options, message in (
        (["--data", str(tmp_path)], "holds no slides.csv"),
        (["--data", str(data), "--encoder", "uni"], "holds no features of uni"),
        (["--data", str(data), "--encoder", "tiny", "--folds", "x"], "--folds x is neither auto"),
        (["--data", str(data), "--encoder", "tiny", "--run", "/proc/r"], "cannot make the folder"),
    ):
        done = call(run_train, *common, *options)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_damaged_checkpoint_is_named(data, tmp_path):
    (tmp_path / "run/folds/A/checkpoints").mkdir(parents=True)
    (tmp_path / "run/folds/A/checkpoints/last.ckpt").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match=r"last\.ckpt is damaged"):
        train(data, tmp_path / "run", folds="leave-one-patient-out")


def test_two_trainings_into_one_folder(data, tmp_path):
    from histokit.core.files import folder_lock

    (tmp_path / "run").mkdir()
    with folder_lock(tmp_path / "run"), pytest.raises(InputError, match="another process"):
        train(data, tmp_path / "run")


def test_diverging_loss_is_named(data, tmp_path):
    with pytest.raises(InputError, match="lower --lr"):
        train(data, tmp_path / "run", model="mlp", lr=1e30, epochs=60)


def test_kernels_and_plain_pytorch_give_the_same_curves(data, tmp_path, one_fold):
    curves = {}
    for kernels in ("auto", "reference"):
        run = train(data, tmp_path / kernels, kernels=kernels, folds=one_fold, epochs=10)
        curves[kernels] = pd.read_csv(run.folds[0].folder / "metrics.csv")
    ops.use("auto")
    for column in ("train_loss", "val_loss"):
        np.testing.assert_allclose(curves["auto"][column], curves["reference"][column], rtol=1e-4)


def test_detected_panel(data, tmp_path, one_fold):
    common = train(data, tmp_path / "common", model="ridge", folds=one_fold).folds[0]
    rare = train(data, tmp_path / "rare", model="ridge", folds=one_fold, panel="detected").folds[0]
    ranked = common.genes[common.genes.hvg_rank.notna()]
    assert list(rare.genes.gene) == list(ranked.gene)
    np.testing.assert_allclose(rare.genes.train_mean, ranked.train_mean)


@pytest.mark.parametrize("model", ["ridge", "mlp"])
def test_top_genes_are_the_most_variable_of_the_training(data, tmp_path, one_fold, model):
    more = {"epochs": 1} if model == "mlp" else {}
    whole = train(data, tmp_path / "all", model=model, folds=one_fold, **more).folds[0].genes
    (fold,) = train(data, tmp_path / "few", model=model, folds=one_fold, top_genes=7, **more).folds
    expected = whole[whole.hvg_rank <= 7]
    pd.testing.assert_frame_equal(fold.genes, expected.reset_index(drop=True))
    assert fold.load_model().head.out_features == 7


def test_defaults_are_what_carries_to_a_new_patient(data, tmp_path):
    """Without options: ridge-low-rank on the extracted features, with neighbors, within slides."""
    run_train.main(Options(data=str(data), run=str(tmp_path / "run")))
    options = Run(tmp_path / "run").config["options"]
    wanted = {"model": "ridge-low-rank", "neighbors": "mean", "standardize": "slide"}
    assert {name: options[name] for name in wanted} == wanted
    assert options["encoder"] == "tiny"


@pytest.mark.parametrize("model", ["ridge", "histoprism", "bpbooster", "mlp", "knn"])
def test_preset_paper_leaves_features_as_they_are(data, tmp_path, model):
    common = {"data": str(data), "run": "run", "model": model}
    paper = Options(**common, preset="paper").resolved()
    assert (paper.standardize, paper.neighbors) == ("none", "none")
    assert Options(**common).resolved().standardize == "slide"


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_recipe_of_hest_bench_takes_features_as_they_are(data, preset):
    options = Options(data=str(data), run="run", model="ridge-hest", preset=preset).resolved()
    assert (options.standardize, options.neighbors) == ("none", "none")


def test_the_features_that_were_extracted_are_trained_on(tmp_path):
    folder = tmp_path / "features"
    default = "efficientnet-lite0"
    for encoder, found in {"uni": "uni", "hed": None, default: default}.items():
        (folder / encoder).mkdir(parents=True)
        (folder / encoder / "A1.h5").touch()
        if found:
            assert the_encoder(str(tmp_path)) == found
        else:
            with pytest.raises(InputError, match="holds features of hed, uni; name one by --enc"):
                the_encoder(str(tmp_path))


@pytest.mark.parametrize(("model", "learned"), [("ridge", True), ("mlp", False)])
def test_genes_of_the_validation_slide_alone(tmp_path, model, learned):
    """A closed form is fitted on validation slides too; a network without refit is not."""
    names = [f"GENE{i}" for i in range(30)]
    slides = {"A1": ("IDC", "A", 40), "B1": ("IDC", "B", 45), "C1": ("IDC", "C", 38)}
    write_cohort(tmp_path / "d", slides, genes={"A1": names[:20], "B1": names[5:]})
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,val\nC1,test\n")
    run = train(tmp_path / "d", tmp_path / "run", model=model, panel="union", folds=str(folds),
                preset="paper")  # fmt: skip
    genes = run.folds[0].genes.set_index("gene")
    assert (genes.loc[names[20:], "train_spots"] > 0).all() == learned
    assert (genes.loc[names[:20], "train_spots"] > 0).all()
