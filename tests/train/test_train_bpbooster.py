import dataclasses
import json
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cohorts import GENES, write_cohort
from safetensors.torch import load_file

import run_train
from histokit.core.errors import InputError
from histokit.evaluate.runs import Run
from histokit.models.presets import BOOSTER
from histokit.models.registry import resolve
from histokit.train import ablation

SCRIPT = Path(run_train.__file__)
SMALL = {"model": "bpbooster", "encoder": "tiny", "epochs": 3, "latent_dim": 16, "num_hvgs": 10}
SMALL |= {"standardize": "train"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def pathways(tmp_path):
    path = tmp_path / "sets.gmt"
    sets = {"FIRST": GENES[:14], "SECOND": GENES[10:25], "SMALL": GENES[:5]}
    path.write_text("".join(f"{name}\tna\t" + "\t".join(g) + "\n" for name, g in sets.items()))
    return str(path)


def train(data, folder, **options):
    run_train.main(run_train.Options(data=str(data), run=str(folder), **SMALL | options))
    return Run(folder)


def weights(folder):
    return load_file(next(Path(folder).glob("folds/*/model.safetensors")))


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_random_prototypes_train_every_fold(data, tmp_path):
    run = train(data, tmp_path / "run", folds="leave-one-patient-out", num_prototypes=6)
    assert [f.name for f in run.folds] == ["A", "B", "C", "D"]
    for fold in run.folds:
        model = fold.load_model()
        assert model.prototypes.shape == (6, 16)
        assert model.predict(torch.randn(5, 16), "IDC").shape == (5, 30)
        assert len(pd.read_csv(fold.folder / "metrics.csv")) == 3
        assert not (fold.folder / "checkpoints").exists()


def test_predictions_beat_the_mean(data, tmp_path, one_fold):
    run = train(data, tmp_path / "run", folds=one_fold, epochs=40, preset="small", batch_size=16)
    fold = run.folds[0]
    from histokit.data.cohort import Cohort
    from histokit.data.genes import normalize

    slide = Cohort(data, "tiny").load("D1", list(fold.genes.gene))
    truth = normalize(slide.counts, slide.library_size, "counts10k-log1p").toarray()
    error = (fold.load_model().predict(slide.features, "PRAD").numpy() - truth) ** 2
    assert error.mean() < 0.7 * ((truth - fold.genes.train_mean.to_numpy()) ** 2).mean()
    history = pd.read_csv(fold.folder / "metrics.csv")
    assert history.val_loss.min() < 0.8 * history.val_loss[0]


def test_programs_name_the_prototypes(data, tmp_path, one_fold, pathways, capsys):
    options = {"init": "programs", "programs": pathways, "folds": one_fold}
    options |= {"epochs": 30, "batch_size": 16, "lr": 0.02}
    fold = train(data, tmp_path / "run", **options).folds[0]
    model = fold.load_model()
    assert model.prototype_names == ["FIRST", "SECOND"]
    programs = pd.read_csv(fold.folder / "programs.csv")
    assert list(programs.program) == ["FIRST", "SECOND"]
    svgs = pd.read_csv(fold.folder / "svgs.csv")
    assert set(svgs.gene) == set(GENES)
    assert "2 programs of 30 spatially variable genes" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_programs_that_are_all_alike_are_named(data, tmp_path, one_fold, pathways, capsys):
    # The saturated sigmoid makes all prototypes one; alike, they also get the same gradient.
    options = {"init": "programs", "programs": pathways, "folds": one_fold}
    fold = train(data, tmp_path / "run", **options).folds[0]
    assert "warning: every patch has almost the same embedding" in capsys.readouterr().out
    assert fold.load_model().predict(torch.randn(5, 16), "IDC").isfinite().all()
    fold = train(data, tmp_path / "other", standardize_programs=True, **options).folds[0]
    assert torch.cosine_similarity(*fold.load_model().prototypes.detach(), dim=0) < 0.95
    assert "warning" not in capsys.readouterr().out


def test_killed_training_ends_with_the_same_weights(data, tmp_path, one_fold, children):
    options = {"epochs": 6, "checkpoint_seconds": 0.0, "folds": one_fold, "batch_size": 4}
    command = [str(SCRIPT), "--refit", "--data", str(data)]
    for name, value in (SMALL | options).items():
        command += ["--" + name.replace("_", "-"), str(value)]
    whole = [*command, "--run", str(tmp_path / "whole")]
    children.run(*whole, check=True)
    command += ["--run", str(tmp_path / "killed")]
    for wanted in ("last.ckpt", "refit.ckpt"):
        process = children.start(*command)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "killed").glob(f"folds/*/checkpoints/{wanted}")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert not list((tmp_path / "killed").glob("folds/*/model.safetensors"))
    children.run(*command, check=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_test_slides_do_not_touch_training(tmp_path, pathways):
    slides = {"A1": ("IDC", "A", 40), "B1": ("IDC", "B", 45), "C1": ("IDC", "C", 38)}
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,val\nC1,test\n")
    for name, last in (("x", slides["C1"]), ("y", ("PRAD", "C", 17))):
        write_cohort(tmp_path / name, slides | {"C1": last})
        train(
            tmp_path / name, tmp_path / f"run-{name}", folds=str(folds), init="programs",
            programs=pathways, num_svgs=25,
        )  # fmt: skip
    assert_same_weights(tmp_path / "run-x", tmp_path / "run-y")
    for table in ("genes.csv", "svgs.csv", "programs.csv", "metrics.csv"):
        a, b = ((tmp_path / f"run-{n}/folds/0" / table).read_text() for n in "xy")
        assert a == b


def test_validation_slides_do_not_touch_the_network(data, tmp_path, one_fold):
    # They choose genes, epoch and readout, as in every model, but give no gradient.
    other = write_cohort(tmp_path / "d")
    run = train(data, tmp_path / "run", folds=one_fold, epochs=1, preset="paper")
    import h5py

    with h5py.File(other / "features/tiny/B1.h5", "a") as file:
        file["features"][:] *= 0.5
    common = {"folds": one_fold, "epochs": 1, "preset": "paper", "standardize": "none"}
    again = train(other, tmp_path / "again", **common)
    plain = train(data, tmp_path / "plain", **common)
    a, b = (weights(r.folder) for r in (plain, again))
    assert torch.equal(a["projection.weight"], b["projection.weight"])
    assert not torch.equal(a["head.weight"], b["head.weight"])
    assert not torch.equal(weights(run.folder)["projection.weight"], a["projection.weight"])


@pytest.mark.parametrize("refit", [False, True])
def test_validation_slides_choose_the_penalty(data, tmp_path, one_fold, capsys, refit):
    options = {"folds": one_fold, "epochs": 30, "batch_size": 8, "lr": 1e-2, "refit": refit}
    run = train(data, tmp_path / "run", **options)
    said = capsys.readouterr().out
    assert "by the validation slides, on 158 spots" in said
    alpha = float(said.split("alpha ")[1].split()[0])
    from histokit.data.cohort import Cohort
    from histokit.data.genes import normalize
    from histokit.train import ridge
    from histokit.train.spots import Spots

    slides = [Cohort(data, "tiny").load(s, GENES) for s in ("A1", "A2", "C1", "B1")]
    model = run.folds[0].load_model()
    latent = np.concatenate([model.embed(s.features, "IDC").numpy() for s in slides])
    y = sp.vstack([normalize(s.counts, s.library_size, "counts10k-log1p") for s in slides]).tocsr()
    slide = np.repeat(np.arange(4), [40, 35, 38, 45])
    spots = Spots(latent, y, np.ones((4, 30), bool), slide, slide)
    if not refit:  # else the network that chose it is not the one that is kept
        split = (np.flatnonzero(slide < 3), np.flatnonzero(slide == 3))
        assert ridge.choose_alpha(spots, [split]) == pytest.approx(alpha, rel=0.01)
    linear = ridge.ridge_at(spots, alpha)
    expected = linear(torch.from_numpy(latent), -1)
    own = model.head(torch.from_numpy(latent))
    torch.testing.assert_close(own, expected, rtol=1e-2, atol=1e-2)


def test_unmeasured_genes_are_no_targets(tmp_path):
    slides = {"A1": ("IDC", "A", 40), "B1": ("IDC", "B", 45), "C1": ("IDC", "C", 38)}
    write_cohort(tmp_path / "d", slides, genes={"A1": GENES[:20], "B1": GENES[5:]})
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,train\nC1,test\n")
    options = {"panel": "union", "num_hvgs": 30, "val_fraction": 0.0}
    run = train(tmp_path / "d", tmp_path / "run", folds=str(folds), **options)
    assert weights(run.folder)["hvg_head.bias"].shape == (15,)
    assert weights(run.folder)["head.bias"].shape == (30,)


@pytest.mark.parametrize("readout", ["ridge", "ridge-by-gene", "ridge-hest"])
@pytest.mark.parametrize("attention", ["prototypes", "literal"])
def test_recipes(data, tmp_path, one_fold, readout, attention):
    run = train(data, tmp_path / "run", folds=one_fold, readout=readout, attention=attention)
    y = run.folds[0].load_model().predict(torch.randn(5, 16), "IDC")
    assert y.isfinite().all()
    assert y.std(0).min() > 0


def test_bad_input(data, tmp_path, one_fold, pathways):
    small = tmp_path / "small.gmt"
    small.write_text("TINY\tna\t" + "\t".join(GENES[:7]) + "\n")
    for options, text in (
        ({"init": "programs", "programs": str(small)}, "the best of 1, TINY, has 7"),
        ({"init": "programs"}, "--init programs and --programs FILE.gmt need each other"),
        ({"programs": pathways}, "--init programs and --programs FILE.gmt need each other"),
        (
            {"init": "programs", "programs": pathways, "num_prototypes": 4},
            "--num-prototypes applies only",
        ),
        ({"latent_dim": 12}, "8 heads do not divide 12 latent dimensions"),
        ({"lr": 1e30}, "lower --lr"),
        ({"model": "mlp"}, "--latent-dim applies only to --model bpbooster; mlp has no such"),
        ({"preset": "release"}, "--preset release: bpbooster has paper, small"),
    ):
        with pytest.raises(InputError, match=text):
            train(data, tmp_path / "run" / text[:8], folds=one_fold, **options)
    few = write_cohort(tmp_path / "few", {"A1": ("IDC", "A", 9), "B1": ("IDC", "B", 45)})
    folds = tmp_path / "few.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,test\n")
    with pytest.raises(InputError, match=r"have 9 spots, fewer than the 10 genes .* --num-hvgs"):
        train(few, tmp_path / "few-run", folds=str(folds), val_fraction=0.0)


def test_gates_that_close_stop_the_training(data, tmp_path, one_fold, monkeypatch):
    monkeypatch.setattr("histokit.models.bpbooster.OPEN", -12.0)
    with pytest.raises(InputError, match="gates of all 64 prototypes have closed"):
        train(data, tmp_path / "run", folds=one_fold)


def preset(**options):
    given = {f.name: None for f in dataclasses.fields(run_train.Options)}
    given |= {"preset": "paper", "model": "bpbooster", "encoder": "uni_v2"} | options
    return resolve(given)


def test_presets_are_the_papers():
    programs = {"init": "programs", "programs": "x.gmt"}
    for name, random, guided in (
        ("paper-idc", 1e-2, 1e-4), ("paper-luad", 1e-3, 1e-3),
        ("paper-skcm", 5e-4, 5e-4), ("paper-prad", 1e-4, 1e-5),
    ):  # fmt: skip
        assert preset(preset=name)["lr"] == random
        assert preset(preset=name, **programs)["lr"] == guided
        assert preset(preset=name, lr=0.5)["lr"] == 0.5
    for encoder, dim, num in (("resnet50", 512, 64), ("conch", 128, 32), ("uni@trident", 128, 32),
                              ("virchow2", 256, 64)):  # fmt: skip
        chosen = preset(encoder=encoder)
        assert (chosen["latent_dim"], chosen["num_prototypes"]) == (dim, num)
        assert (chosen["epochs"], chosen["batch_size"]) == (50, 128)
    assert preset(encoder="uni", latent_dim=64)["latent_dim"] == 64
    assert preset()["val_fraction"] == 0  # 50 epochs on all training patches
    assert preset(preset="small")["val_fraction"] == preset(model="mlp")["val_fraction"] == 0.2
    assert set(BOOSTER) <= {f.name for f in dataclasses.fields(run_train.Options)}


def test_ablation_trains_every_row(data, tmp_path, one_fold, pathways):
    options = {"folds": one_fold, "ablate": True, "programs": pathways, "epochs": 1}
    run_train.main(
        run_train.Options(data=str(data), run=str(tmp_path / "table"), **SMALL | options)
    )
    configs = {}
    for name in ablation.VARIANTS:
        run = Run(tmp_path / "table" / name)
        assert run.folds[0].is_finished()
        configs[name] = run.config["options"]
    for name in ("ridge", "ridge-hest", "ridge-hest-no-pca"):  # the last is the table's
        assert configs[name]["model"] == name
    assert configs["latent-gate"]["gates"] == "latent"
    assert configs["regression"]["losses"] == "regression"
    assert configs["regression"]["init"] == configs["programs"]["init"] == "programs"
    assert configs["random-literal"]["attention"] == "literal"
    same = {key for key in configs["random"] if configs["random"][key] != configs["programs"][key]}
    assert same == {"run", "init", "programs"}
    state = weights(tmp_path / "table/no-gate")
    assert not any("logit" in name for name in state)
    described = json.loads(
        next((tmp_path / "table/programs").glob("folds/*/model.json")).read_text()
    )
    assert described["arguments"]["prototype_names"] == ["FIRST", "SECOND"]


def test_ablation_refuses_what_it_varies(data, tmp_path, pathways):
    for options, text in (
        ({}, "give --programs FILE.gmt"),
        ({"programs": pathways, "gates": "none"}, "--gates is what --ablate varies"),
        ({"programs": pathways, "model": "mlp"}, "--ablate takes --model bpbooster apart"),
    ):
        with pytest.raises(InputError, match=text):
            train(data, tmp_path / "run", ablate=True, **options)


def test_linear_evaluation_serves_the_readout(data, tmp_path, one_fold):
    from histokit import ops
    from histokit.data.sparse import csr_tensor

    fold = train(data, tmp_path / "run", folds=one_fold, epochs=10).folds[0]
    from histokit.data.cohort import Cohort

    slide = Cohort(data, "tiny").load("D1", list(fold.genes.gene))
    model = fold.load_model()
    pcc, _ = ops.linear_pearson(
        model.embed(slide.features, "PRAD"), model.head.weight, model.head.bias,
        csr_tensor(slide.counts),
    )  # fmt: skip
    y = model.predict(slide.features, "PRAD").numpy()
    truth = slide.counts.toarray()
    expected = [np.corrcoef(y[:, g], truth[:, g])[0, 1] for g in range(30)]
    np.testing.assert_allclose(pcc.detach().numpy(), expected, atol=1e-4)


def test_controls_keep_the_programs_of_the_real_counts(data, tmp_path, one_fold, pathways):
    options = {"init": "programs", "programs": pathways, "num_svgs": 25, "folds": one_fold}
    run = train(data, tmp_path / "run", epochs=1, controls=True, **options)
    real = (run.folds[0].folder / "programs.csv").read_text()
    dealt = sorted((run.folder / "controls/shuffled-spots/folds").glob("*/programs.csv"))
    assert len(dealt) == 5
    assert {path.read_text() for path in dealt} == {real}
