"""Predicted times of an H100 beside measured ones, which are made up here."""

import csv
import importlib
import re

import gpu_tensor_cores
import predicted
import pytest
from op_cases import CASES, distances
from op_checks import needs_kernels

from histokit.ops import dispatch

ROW = dict.fromkeys(("freed_memory", "ratio_wanted", "fraction_of"), "") | {
    "op": "distance_attention", "size": "N 12000, h 4, d 128", "provider": "histokit",
    "kind": "ours", "ms_p50": 21.5, "ratio": 1.0, "rate": 13.7, "rate_unit": "GFLOP/s",
    "fraction": 0.3,
}  # fmt: skip
SCALED = ("cancer_cross_attention", "cancer_cross_attention T4", "prototype_attention",
          "csr_transpose_matmul", "linear_mse", "linear_pearson")  # fmt: skip


def rows():
    with open(predicted.FILE, newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_prediction_is_found_and_is_a_number_or_a_range():
    for row in rows():
        cores = row["kernels"] == "tensor cores"
        assert cores or row["kernels"] == "plain"
        found = predicted.predicted(row["op"], row["case"], cores)
        assert found == row["predicted_ms"]
        low, *high = map(float, found.split("-"))
        assert 0 < low < (high or [100])[-1]
    assert predicted.predicted("distance_attention", "N 1, h 4, d 128", False) == ""


@needs_kernels
@pytest.mark.parametrize("name", SCALED)
def test_cases_are_those_of_the_benchmark(name):
    size = CASES[name]("cpu", 0.01).size
    size = re.sub(r"N (\d+)", lambda match: f"N {100 * int(match[1])}", size)
    assert size in {row["case"] for row in rows() if row["op"] == name}


@needs_kernels
def test_cases_of_attention_are_those_of_the_benchmark():
    size = distances(1_200_000, "cpu", 0.01).size
    assert size in {row["case"] for row in rows() if row["op"] == "distance_attention"}


@needs_kernels
@pytest.mark.parametrize(("switch", "said"), [("0", "predicted: 20)"), ("1", "predicted: 4.5-5)")])
def test_a_measured_row_shows_what_was_predicted(monkeypatch, capsys, switch, said):
    bench_ops = importlib.import_module("bench_ops")  # which imports the kernels
    monkeypatch.setattr(dispatch, "TENSOR_CORES", switch)
    other = ROW | {"provider": "flex_attention, compiled", "kind": "careful", "rate": ""}
    bench_ops.show([row | {"predicted_ms": bench_ops.predicted_of(row)} for row in (ROW, other)])
    ours, theirs = capsys.readouterr().out.splitlines()
    assert "21.50 ms" in ours
    assert ours.endswith(said)
    assert "predicted" not in theirs
    bench_ops.show([ROW])  # of a run on the CPU
    assert "predicted" not in capsys.readouterr().out


def test_tensor_cores_are_shown_beside_their_own_prediction(monkeypatch, capsys):
    made_up = {
        "verify": True, "verify_sparse": True, "inputs": None, "sparse_inputs": None,
        "sparse_calls": None, "times": (0.1, 0.05),
    }  # fmt: skip
    for name, value in made_up.items():
        monkeypatch.setattr(gpu_tensor_cores, name, lambda *_, value=value: value)
    gpu_tensor_cores.main(gpu_tensor_cores.Options())
    lines = capsys.readouterr().out.splitlines()
    plain, cores = "plain 100.00 ms", "tensor cores 50.00 ms"
    attention = "verified; N 12000, h 4, d 128, forward and backward"
    assert f"distance_attention float16: {attention}: {plain}, {cores}" in lines
    plain, cores = f"{plain} (H100, predicted: 100-105)", f"{cores} (H100, predicted: 5-6)"
    assert f"distance_attention bfloat16: {attention}: {plain}, {cores}" in lines
    assert sum("predicted: 3.4-3.8)" in line for line in lines) == 2  # the sparse products
    assert lines[-1] == "turn it on: HISTOKIT_TENSOR_CORES=1"
