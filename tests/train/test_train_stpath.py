"""STPath from the command line: it learns what was planted, and twice the same."""

import cohorts
import pandas as pd
from safetensors.torch import load_file

import run_eval
import run_train

TINY = "--preset small --hidden-dim 32 --feedforward-dim 32 --num-layers 1 --encoder tiny".split()


def test_masked_genes_teach_what_the_image_tells(call, tmp_path, one_fold):
    data = cohorts.write_cohort(tmp_path / "data")
    command = ["--data", data, "--model", "stpath", "--folds", one_fold, *TINY]
    run = ["--run", tmp_path / "run", "--epochs", 15, "--lr", "5e-3"]
    assert call(run_train, *command, *run).returncode == 0
    scored = ["--run", tmp_path / "run", "--num-hvg", 8, "--no-pictures", "--no-predictions"]
    assert call(run_eval, *scored).returncode == 0
    slides = pd.read_csv(tmp_path / "run" / "eval" / "slides.csv")
    assert slides["pcc_hvg"].item() > 0.6  # the training mean has none
    assert slides["mse"].item() < 0.8 * slides["target_variance"].item()


def test_one_seed_draws_the_same_masks(call, tmp_path, one_fold):
    data = cohorts.write_cohort(tmp_path / "data")
    command = ["--data", data, "--model", "stpath", "--folds", one_fold, *TINY, "--epochs", 2]
    states = []
    for name, more in (("a", []), ("b", []), ("c", ["--seed", 1]), ("d", ["--slides-per-step", 2])):
        assert call(run_train, *command, "--run", tmp_path / name, *more).returncode == 0
        states.append(load_file(tmp_path / name / "folds" / "0" / "model.safetensors"))
    key = "network.gene_exp_head.1.weight"
    first, again, other, packed = (state[key] for state in states)
    assert first.equal(again)
    assert not first.equal(other)
    assert packed.isfinite().all()
