import dataclasses
import json

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
from histokit.evaluate.topics.ablation import APART
from histokit.models import HistoPrism
from histokit.models.places import sinusoids
from histokit.train.options import FREE

SIZES = {"input_dim": 32, "num_genes": 11, "cancers": ["IDC", "PRAD"]}
SIZES |= {"hidden_dim": 16, "feedforward_dim": 24}
SMALL = {"model": "histoprism", "encoder": "tiny", "hidden_dim": 16, "feedforward_dim": 16}
SMALL |= {"num_layers": 1, "epochs": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_cohort(tmp_path_factory.mktemp("cohort"))
    return write_cohort(folder, encoder="other")


def options(data, folder, **changed):
    return run_train.Options(data=str(data), run=str(folder), **SMALL | changed)


def positioned(**changed):
    return HistoPrism(**SIZES | {"positions": "sinusoidal"} | changed).eval()


def grid(n, pitch=100.0):
    return torch.tensor([[i % 4, i // 4] for i in range(n)]) * pitch + 37


# ---- the options of the model --------------------------------------------------------------------


def test_defaults_are_the_published_model():
    plain, same = HistoPrism(**SIZES), HistoPrism(**SIZES, conditioning="on", positions="none")
    assert plain.state_dict().keys() == same.state_dict().keys()
    assert positioned().state_dict().keys() == plain.state_dict().keys()
    assert not plain.uses_coords
    assert plain.cancers == ["IDC", "PRAD"]


def test_sinusoids_by_hand():
    found = sinusoids(
        torch.tensor([[10.0, 5.0], [30.0, 5.0], [10.0, 45.0]], dtype=torch.float64), 8
    )
    # a pitch of 20: columns 0, 1, 0 and rows 0, 0, 2; frequencies 1 and 1 / 100
    x, y = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 2.0])
    parts = [f(place * w) for place in (x, y) for f in (np.sin, np.cos) for w in (1, 0.01)]
    np.testing.assert_allclose(found.numpy(), np.stack(parts, 1), rtol=1e-12)


@pytest.mark.parametrize("change", [lambda c: c + 5000, lambda c: c * 7, lambda c: c.double()])
def test_neither_origin_nor_unit_of_coordinates_matters(change):
    model, x, coords = positioned(), torch.randn(13, 32), grid(13)
    expected = model.predict(x, "IDC", coords)
    torch.testing.assert_close(model.predict(x, "IDC", change(coords)), expected)


def test_places_matter_and_order_does_not():
    model, x, coords = positioned(), torch.randn(13, 32), grid(13)
    expected, order = model.predict(x, "IDC", coords), torch.randperm(13)
    assert torch.equal(model.predict(x, "IDC", coords), expected)
    torch.testing.assert_close(model.predict(x[order], "IDC", coords[order]), expected[order])
    assert not torch.allclose(model.predict(x, "IDC", coords[order]), expected)
    plain = HistoPrism(**SIZES).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain.predict(x, "IDC", coords), expected)


@pytest.mark.parametrize("coords", [grid(1), torch.full((5, 2), 60.0), grid(2).repeat(3, 1)])
def test_one_spot_and_spots_at_one_place(coords):
    x = torch.randn(len(coords), 32)
    assert positioned().predict(x, "IDC", coords).isfinite().all()


def test_missing_coordinates_and_unknown_options_are_named():
    with pytest.raises(InputError, match="uses the place of each patch; give its coordinates"):
        positioned().predict(torch.randn(3, 32), "IDC")
    with pytest.raises(InputError, match="--positions must be none or sinusoidal, got 'learnt'"):
        positioned(positions="learnt")
    with pytest.raises(InputError, match="--conditioning must be on or off"):
        positioned(conditioning="none")
    with pytest.raises(InputError, match="a multiple of 4, not 10"):
        positioned(hidden_dim=10, num_heads=2)


@pytest.mark.parametrize("max_patches", [None, 4])
def test_packed_slides_have_places_of_their_own(max_patches):
    model = positioned(max_patches=max_patches)
    sizes, x = [5, 9, 1], torch.randn(15, 32)
    coords = torch.cat([grid(n, pitch) for n, pitch in zip(sizes, (100.0, 30.0, 1.0), strict=True)])
    index = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    packed = model(x, torch.tensor([0, 1, 0]), index, coords)
    parts = zip(x.split(sizes), (0, 1, 0), coords.split(sizes), strict=True)
    alone = torch.cat([model(features, code, None, place) for features, code, place in parts])
    torch.testing.assert_close(packed, alone)


def test_without_conditioning_no_cancer_is_told(tmp_path):
    arguments = SIZES | {"conditioning": "off", "input_dim": 30}  # no heads divide the features
    model = HistoPrism(**arguments).eval()
    names = set(HistoPrism(**SIZES).state_dict()) - set(model.state_dict())
    assert {name.split(".")[0] for name in names} == {"onco_embedder", "conditioner"}
    x = torch.randn(6, 30)
    whole = model.predict(x, "IDC")
    assert torch.equal(whole, model.predict(x, "PRAD"))
    assert torch.equal(whole, model.predict(x, "COAD"))  # never trained on, and never asked
    by_hand = model.transformer(model.input_proj(x)[None])[0]
    torch.testing.assert_close(model.gene_regression_head(by_hand), whole)
    models.save(model, "histoprism", arguments, tmp_path)
    assert torch.equal(models.load(tmp_path).predict(x, "IDC"), whole)


@pytest.mark.parametrize("conditioning", ["on", "off"])
def test_gradients_are_finite(conditioning):
    model = positioned(conditioning=conditioning).train()
    model(torch.randn(9, 32), 0, None, grid(9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---- its ablation --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablated(data, tmp_path_factory):
    place = tmp_path_factory.mktemp("ablation")
    folds = place / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nB1,train\nC1,val\nA2,test\nD1,test\n")
    run_train.main(
        options(data, place / "run", ablate=True, ablate_seeds=2, seed=5, folds=str(folds),
                allow_leakage=True)
    )  # fmt: skip
    return place / "run"


def test_every_cell_and_seed_is_a_run(ablated):
    names = {
        f"cross-attention-{c}-positions-{p}-seed-{s}"
        for c in ("on", "off") for p in ("none", "sinusoidal") for s in (5, 6)
    }  # fmt: skip
    assert {path.name for path in ablated.iterdir()} == names
    for name in names:
        run = Run(ablated / name)
        found = run.config["options"]
        assert name.startswith(f"cross-attention-{found['conditioning']}-")
        assert name.endswith(f"positions-{found['positions']}-seed-{found['seed']}")
        assert found["ablate_seeds"] is None
        arguments = json.loads((run.folds[0].folder / "model.json").read_text())["arguments"]
        assert arguments["positions"] == found["positions"]
        state = load_file(run.folds[0].folder / "model.safetensors")
        assert ("onco_embedder.weight" in state) == (found["conditioning"] == "on")


def evaluate(call, runs, out):
    made = call(run_eval, "--run", *map(str, runs), "--out", out, "--no-pictures",
                "--no-predictions")  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made


def test_the_comparison_averages_over_seeds(ablated, tmp_path, call):
    made = evaluate(call, sorted(ablated.glob("*-seed-*")), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/ablation.csv", keep_default_na=False)
    factors = ["conditioning", "positions", "encoder"]
    assert sorted(map(tuple, table[factors].to_numpy())) == [
        (c, p, "tiny") for c in ("off", "on") for p in ("none", "sinusoidal")
    ]
    assert (table["seeds"] == 2).all()
    row = table.set_index(factors).loc[("on", "sinusoidal", "tiny")]
    seeds = [
        pd.read_csv(ablated / f"cross-attention-on-positions-sinusoidal-seed-{s}/eval/slides.csv")
        for s in (5, 6)
    ]
    for metric in ("pcc_hvg", "mse"):
        values = [slides[metric].mean() for slides in seeds]
        assert float(row[metric]) == pytest.approx(np.mean(values))
        assert float(row[f"{metric}_sd"]) == pytest.approx(np.std(values, ddof=1))
        assert float(row[f"{metric}_sd"]) > 0
    page = (tmp_path / "out/report.html").read_text()
    assert "Parts of HistoPrism" in page
    assert "cross-attention is empty" not in page
    assert "Ablation" in made.stdout


def test_runs_that_differ_otherwise_are_not_averaged(data, ablated, tmp_path, call):
    first, second = sorted(ablated.glob("*-none-seed-5"))
    slower = json.loads((first / "config.json").read_text())["options"]
    slower |= {"lr": 1e-4, "run": str(tmp_path / "slower"), "seed": 6}
    run_train.main(run_train.Options(**slower))
    evaluate(call, [first, second, tmp_path / "slower"], tmp_path / "out")
    assert not (tmp_path / "out/ablation.csv").exists()
    assert "not averaged over seeds: they also differ in --lr." in (
        tmp_path / "out/report.html"
    ).read_text()  # fmt: skip
    evaluate(call, [first, tmp_path / "slower"], tmp_path / "two")  # no factor varies
    assert "Ablation" not in (tmp_path / "two/report.html").read_text()


def test_one_cancer_leaves_the_cross_attention_empty(data, tmp_path, call):
    folds = tmp_path / "folds.csv"
    folds.write_text("slide_id,split\nA1,train\nA2,train\nC1,test\n")
    for attends in ("on", "off"):
        run_train.main(options(data, tmp_path / attends, conditioning=attends, folds=str(folds)))
    made = evaluate(call, [tmp_path / "on", tmp_path / "off"], tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "cross-attention is empty: all training slides have one cancer code (IDC)" in page
    assert "cross-attention is empty" in made.stdout
    assert "One seed has no deviation" in page
    table = pd.read_csv(tmp_path / "out/ablation.csv")
    assert table["pcc_hvg_sd"].isna().all()


def test_a_second_encoder_is_the_third_factor(data, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(run_train, "train", lambda cfg, team: made.append(cfg))
    run_train.main(options(data, tmp_path / "run", ablate=True, ablate_encoder="other"))
    assert len({cfg.run for cfg in made}) == len(made) == 24
    assert {(cfg.encoder, cfg.seed) for cfg in made} == {
        (encoder, seed) for encoder in ("tiny", "other") for seed in (0, 1, 2)
    }
    assert all(f"/{cfg.encoder}-cross-attention" in cfg.run for cfg in made)


def test_bad_ablations_are_refused(data, tmp_path):
    for changed, text in (
        ({"ablate": True, "positions": "none"}, "--positions is what --ablate varies"),
        ({"ablate": True, "conditioning": "off"}, "--conditioning is what --ablate varies"),
        ({"ablate": True, "ablate_encoder": "tiny"}, "--ablate-encoder tiny is --encoder too"),
        ({"ablate_seeds": 2}, "go with --ablate; add it"),
        ({"ablate": True, "model": "ridge"}, "bpbooster apart, or histoprism, not ridge"),
        ({"ablate": True, "model": "bpbooster", "programs": "x.gmt", "ablate_seeds": 2},
         "--ablate-seeds applies only to --model histoprism"),
        ({"model": "mlp", "feedforward_dim": None, "num_layers": None, "positions": "none"},
         "--positions applies only to --model histoprism"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            run_train.main(options(data, tmp_path / "run", **changed))


def test_options_that_may_differ_are_those_of_a_training_that_goes_on():
    fields = dataclasses.fields(run_train.Options)
    free = {field.name for field in fields if field.metadata["group"] in FREE}
    assert {*APART} == free | {"run"}
