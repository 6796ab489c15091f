"""Every model whose products are of a lower precision: it trains, and about as well."""

import pandas as pd
import pytest
from cohorts import write_cohort

import run_train
from histokit.evaluate.runs import Run
from histokit.models.registry import MODELS, OFFERED

TINY = {  # of the small presets, what takes seconds
    "stem": ["--hidden-dim", 16, "--num-layers", 1, "--samples", 1, "--stem-steps", 3],
    "stpath": ["--hidden-dim", 16],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.mark.parametrize("model", OFFERED)
def test_trains_in_bfloat16(call, data, tmp_path, one_fold, model):
    preset = "small" if "small" in MODELS[model].presets else "paper"
    given = ["--data", data, "--encoder", "tiny", "--model", model, "--preset", preset]
    given += ["--folds", one_fold, "--epochs", 1, "--no-refit", *TINY.get(model, ())]
    found = {}
    for kind in ("float32", "bfloat16"):
        done = call(run_train, *given, "--run", tmp_path / kind, "--precision", kind)
        assert done.returncode == 0, done.stderr
        fold = Run(tmp_path / kind).folds[0]
        state = fold.load_model().state_dict().values()
        assert all(t.isfinite().all() for t in state if t.is_floating_point())
        curve = fold.folder / "metrics.csv"
        found[kind] = pd.read_csv(curve) if curve.is_file() else None
    if found["float32"] is not None:
        losses = [table.train_loss.item() for table in found.values()]
        assert losses[1] == pytest.approx(losses[0], rel=0.05)
