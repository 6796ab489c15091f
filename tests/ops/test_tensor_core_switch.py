"""HISTOKIT_TENSOR_CORES, and what the op takes from torch's setting of TF32."""

import os
import subprocess
import sys

import pytest
import torch
from op_checks import needs_kernels

from histokit import ops
from histokit.ops import dispatch


@pytest.fixture
def asked(monkeypatch):
    """How many products the registered op is asked for, forward and backward."""
    monkeypatch.setattr(dispatch, "TENSOR_CORES", "1")
    matmul, seen = torch.backends.cuda.matmul, []
    before = matmul.fp32_precision

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "histokit":
                seen.append(args[-1])
            return func(*args, **(kwargs or {}))

    def run(precision):
        matmul.fp32_precision = precision
        q = torch.randn(3, 2, 9, 4, requires_grad=True)
        slope = torch.ones(2, requires_grad=True)
        with Watch():
            ops.distance_attention(*q, torch.rand(9, 2), slope).sum().backward()
        return [seen.pop(0) for _ in range(2)]

    yield run
    matmul.fp32_precision = before


@needs_kernels
@pytest.mark.parametrize(("precision", "products"), [("tf32", 1), ("ieee", 3)])
def test_torch_says_whether_one_product_is_enough(asked, precision, products):
    assert asked(precision) == [products, products]


@needs_kernels
@pytest.mark.parametrize("switch", ["0", "1"])
def test_results_and_graphs_on_the_cpu_are_the_same(monkeypatch, switch):
    torch.manual_seed(0)
    q, coords, slope = torch.randn(3, 2, 9, 4), torch.rand(9, 2), torch.ones(2)
    expected = ops.distance_attention(*q, coords, slope)
    monkeypatch.setattr(dispatch, "TENSOR_CORES", switch)
    compiled = torch.compile(ops.distance_attention, fullgraph=True, backend="eager")
    for attend in (ops.distance_attention, compiled):
        torch.testing.assert_close(attend(*q, coords, slope), expected)


@pytest.mark.parametrize(("value", "said"), [("yes", "must be 0 or 1, got 'yes'"), ("1", "")])
def test_the_switch_is_0_or_1(value, said):
    done = subprocess.run(
        [sys.executable, "-c", "import histokit.ops"],
        env=os.environ | {"HISTOKIT_TENSOR_CORES": value}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode != 0) == bool(said)
    assert said in done.stderr
