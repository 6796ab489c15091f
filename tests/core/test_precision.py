"""The precision of products: switches that are put back, types, and what older runs call it."""

import pandas as pd
import pytest
import torch
from cohorts import write_cohort

import run_eval
import run_train
from histokit.core.files import read_json, write_json
from histokit.core.precision import from_autocast, lower_type, products, tensor_float
from histokit.evaluate.runs import Run


def switches():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_tf32_is_allowed_for_a_while():
    before = switches()
    with tensor_float("tf32", "cuda:0"):
        assert switches() == ("tf32", "tf32")
    assert switches() == before
    with pytest.raises(KeyError), products("tf32", "cuda"):
        raise KeyError
    assert switches() == before


def test_a_cpu_has_no_tf32(capsys):
    before = switches()
    with products("tf32", "cpu"):
        assert switches() == before
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert "--precision tf32 changes nothing on cpu" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_products_have_the_type(precision):
    fast = torch.backends.mha.get_fastpath_enabled()
    with products(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, precision)
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_encoders_of_torch_take_a_lower_type_in_evaluation():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layers = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    with torch.no_grad(), products("bfloat16", "cpu"):
        found = layers(torch.randn(1, 3, 8).bfloat16())
    assert found.isfinite().all()


def test_names_of_types():
    found = [lower_type(name) for name in ("float32", "tf32", "bfloat16", "float16")]
    assert found == [None, None, torch.bfloat16, torch.float16]


def test_older_options():
    assert from_autocast({"lr": 1, "autocast": "none"}) == {"lr": 1, "precision": "float32"}
    assert from_autocast({"autocast": "float16"}) == {"precision": "float16"}
    assert from_autocast({"precision": "tf32"}) == {"precision": "tf32"}


def test_a_run_that_calls_it_autocast_goes_on_and_is_evaluated(call, tmp_path, one_fold):
    data, run = write_cohort(tmp_path / "cohort"), tmp_path / "run"
    given = ["--data", data, "--encoder", "tiny", "--model", "mlp", "--folds", one_fold]
    given += ["--epochs", 1, "--no-refit", "--run", run]
    assert call(run_train, *given).returncode == 0
    config = read_json(run / "config.json")
    assert config["options"].pop("precision") == "float32"
    config["options"]["autocast"] = "none"
    write_json(run / "config.json", config)
    assert call(run_train, *given).returncode == 0
    other = call(run_train, *given, "--precision", "bfloat16")
    assert other.returncode == 2
    assert "--precision" in other.stderr
    assert Run(run).config["options"]["precision"] == "float32"
    means = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        done = call(run_eval, "--run", run, "--out", out, "--precision", precision,
                    "--no-pictures", "--no-predictions")  # fmt: skip
        assert done.returncode == 0, done.stderr
        means[precision] = (out / "genes.csv").read_text()
        said = pd.read_csv(out / "summary.csv")
        assert ("precision" in said) == (precision != "float32")
    assert means["float32"] != means["bfloat16"]
