"""The benchmark of the ops runs and verifies; what is for CUDA is tried as far as it can be."""

import csv
import importlib
from pathlib import Path

import pytest
import torch
from op_checks import needs_kernels

from histokit import ops
from histokit.profile import rivals

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = needs_kernels


@pytest.fixture
def module(monkeypatch):
    """Imports a file of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_one_op_on_the_cpu(module, call, tmp_path, monkeypatch):
    bench = module("bench_ops")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench.profile_measure, "rates", lambda *_: dict.fromkeys(
        ("copy", "fresh", "read", "matrix"), 10.0))  # fmt: skip
    given = ["--only", "prototype_attention", "--scale", 0.01, "--repeat", 2, "--no-memory"]
    done = call(bench, *given, "--threads", torch.get_num_threads())
    assert done.returncode == 0, done.stderr
    assert "scaled_dot_product_attention" in done.stdout
    assert not list(tmp_path.iterdir())  # not at the table's size


def test_new_columns_join_an_older_table(module, tmp_path, monkeypatch):
    bench = module("bench_ops")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    here = {"device": "2 threads", "instruction_set": "x86-64-v3 (AVX2)"}
    bench.write([{"op": "linear_mse", "provider": "x"} | here])
    bench.write([{"op": "linear_pearson", "provider": "y", "host_ms": 3} | here])
    bench.write([{"op": "linear_mse", "provider": "z", "host_ms": 4} | here])
    with open(tmp_path / "ops-cpu-avx2.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(r["op"], r["provider"], r["host_ms"]) for r in rows] == [
        ("linear_pearson", "y", "3"), ("linear_mse", "z", "4"),
    ]  # fmt: skip


def test_the_sparse_product_is_its_rivals(module):
    case = module("head_cases").sparse_product("cpu", 0.01)
    found = case.ours()
    for call in (*case.others.values(), *case.careful.values()):
        torch.testing.assert_close(call(), found, rtol=1e-4, atol=1e-4)
    assert not case.graph


def test_the_case_of_a_gpu_alone(module):
    """bfloat16: what does not need a compiler or a GPU agrees."""
    cases = module("op_cases")
    assert set(cases.CUDA_ALONE) <= set(cases.CASES)
    with torch.no_grad():
        case = cases.distances(4_000, "cpu", 0.01, dtype=torch.bfloat16)
        found = case.ours()
        assert found.dtype == torch.bfloat16
        assert any(name.startswith("flex") for name in case.careful)
        call = case.careful["scaled_dot_product_attention with a bias"]
        torch.testing.assert_close(call(), found, rtol=3e-2, atol=3e-2)


def test_a_token_folded_ahead():
    block, norm = torch.nn.MultiheadAttention(16, 4, batch_first=True), torch.nn.LayerNorm(16)
    x, context = torch.randn(9, 16), torch.randn(1, 16)
    found = norm(x + rivals.folded_token(context, block))
    torch.testing.assert_close(found, rivals.folded_attention(x, context, block, norm, 4))


@pytest.mark.parametrize(
    ("inputs", "cache", "copies"),
    [(0, 50, 1), (200, 50, 1), (100, 50, 1), (99, 50, 2), (20, 50, 5), (1, 50, 16)],
)
def test_copies_hold_twice_the_cache(module, inputs, cache, copies):
    assert module("device_time").copies_past_cache(inputs, cache) == copies


def test_copies_take_turns(module):
    seen = []
    module("device_time").in_turn([lambda: seen.append("a"), lambda: seen.append("b")], 5)
    assert seen == list("ababa")


def test_the_smoke_test_runs_and_finds_a_wrong_row(module, monkeypatch, capsys):
    smoke = module("gpu_smoke")
    monkeypatch.setattr(smoke, "DEVICE", "cpu")
    for form in ("dense", "int32", "int64"):
        smoke.linear(64, form)
    smoke.pearson(torch.float16, 134)
    smoke.distance(torch.float32, 20, 2, 64)
    assert "int32: ok" in capsys.readouterr().out
    right = torch.randn(300, 8)
    wrong = right.clone()
    wrong[7] = wrong[8]
    with pytest.raises(SystemExit, match="row 7"):
        smoke.close("x", [wrong], [right], 3e-2)
    smoke.close("x", [right], [right], 0.0)


def test_what_the_smoke_test_records_can_be_called(module):
    with torch.no_grad(), ops.use("kernels"):
        for call, inputs in module("gpu_smoke").graph_calls("cpu").values():
            first = call().clone()
            for tensor in inputs:
                tensor.copy_(torch.randn_like(tensor))
            assert not torch.equal(call(), first)
