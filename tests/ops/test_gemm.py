"""Products by oneDNN against torch's own, in value, gradient and error."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from histokit import ops
from histokit.ops import gemm
from histokit.ops.gemm import Linear, linear, matmul, transposed_matmul

ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture(autouse=True)
def _on_any_cpu(monkeypatch):
    """The tests are of oneDNN, whichever CPU they run on."""
    monkeypatch.setattr(gemm, "USES_ONEDNN", True)


def calls_onednn(call) -> bool:
    with profile() as seen:
        call()
    return any(event.key == ONEDNN for event in seen.key_averages())


def strided(rows: int, columns: int, how: str) -> torch.Tensor:
    torch.manual_seed(rows + columns)
    whole = torch.randn(2 * rows, 2 * columns + 1)
    return {
        "contiguous": whole[:rows, :columns].contiguous(),
        "columns": whole[:rows, 1 : columns + 1],
        "steps": whole[::2, 1::2],
        "transposed": whole[:rows, :columns].T.contiguous().T,
        "expanded": whole[:rows, :1].expand(rows, columns),
        "negative": -whole[:rows, :columns],
    }[how]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square; a rounding of the largest result at least."""
    wrong = (found.double() - exact).square().mean().sqrt()
    return max(wrong, torch.finfo(torch.float32).eps * exact.abs().max()).item()


LAYOUTS = ("contiguous", "columns", "steps", "transposed", "expanded", "negative")


# Two expanded factors give one number everywhere, whose error is a matter of luck.
PAIRS = [pair for pair in itertools.product(LAYOUTS, LAYOUTS) if pair != ("expanded",) * 2]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_products_keep_torchs_error(first, second):
    """N above a block of rows and no multiple of it; odd sizes; any strides."""
    a, b = strided(2333, 67, first), strided(67, 33, second)
    exact = a.double() @ b.double()
    assert calls_onednn(lambda: matmul(a, b))
    assert error(matmul(a, b), exact) <= 2 * error(a @ b, exact)
    b = strided(2333, 131, second)
    exact = a.double().T @ b.double()
    for x, y, result in ((a, b, exact), (b, a, exact.T)):
        found = transposed_matmul(x, y)
        assert found.is_contiguous()
        assert error(found, result) <= 2 * error(x.T @ y, result)


@pytest.mark.parametrize("width", [256, 1024])
def test_long_sums_keep_torchs_error(width):
    torch.manual_seed(0)
    a, b = torch.randn(500, width), torch.randn(width, 256)
    exact = a.double() @ b.double()
    assert error(matmul(a, b), exact) <= 2 * error(a @ b, exact)


@pytest.mark.parametrize("shape", [(1500, 96), (3, 500, 96)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_a_layer(shape, with_bias):
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(130, 96, requires_grad=True)
    bias = torch.randn(260)[::2].requires_grad_() if with_bias else None
    given = [t for t in (x, weight, bias) if t is not None]
    grad = torch.randn(*shape[:-1], 130)
    found = torch.autograd.grad(linear(x, weight, bias), given, grad)
    plain = torch.autograd.grad(F.linear(x, weight, bias), given, grad)
    wide = [t.detach().double().requires_grad_() for t in given]
    exact = torch.autograd.grad(F.linear(*wide), wide, grad.double())
    for own, torchs, value in zip(found, plain, exact, strict=True):
        assert own.shape == value.shape
        assert own.is_contiguous()
        assert error(own, value) <= 2 * error(torchs, value)


def test_a_gradient_that_is_not_wanted_is_not_made():
    x, weight = torch.randn(2048, 64), torch.randn(64, 64, requires_grad=True)
    with profile() as seen:
        linear(x, weight).sum().backward()
    calls = [event for event in seen.key_averages() if event.key == ONEDNN]
    assert calls[0].count == 1 + 4  # forward, and the weight's gradient in four blocks of rows
    assert x.grad is None


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
def test_other_types_are_left_to_torch(dtype):
    x, weight = torch.randn(2048, 64, dtype=dtype), torch.randn(64, 64, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_reference_small_products_and_autocast_are_left_to_torch():
    layer, x = Linear(64, 64), torch.randn(2048, 64)
    assert calls_onednn(lambda: layer(x))
    assert not calls_onednn(lambda: layer(x[:8]))
    with ops.use("reference"):
        assert not calls_onednn(lambda: layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_empty_products():
    x, weight = torch.randn(0, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    linear(x, weight).sum().backward()
    assert weight.grad.abs().sum() == 0
    assert transposed_matmul(torch.ones(0, 3), torch.ones(0, 2)).equal(torch.zeros(3, 2))
    assert matmul(torch.ones(4, 0), torch.ones(0, 2)).equal(torch.zeros(4, 2))


def test_recorded_products_are_torchs():
    """The backward pass of an op multiplies too, and may itself be differentiated."""
    a, b = torch.randn(2048, 64, requires_grad=True), torch.randn(2048, 32)
    (grad,) = torch.autograd.grad(matmul(a, b[:64]).sum(), a)
    torch.testing.assert_close(grad, b[:64].sum(1).expand(2048, 64))
    (grad,) = torch.autograd.grad(transposed_matmul(a, b).sum(), a)
    torch.testing.assert_close(grad, b.sum(1)[:, None].expand(2048, 64))


def test_second_derivatives_are_refused():
    x = torch.randn(2048, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        linear(x, torch.randn(64, 64)).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_layer_keeps_the_names_of_its_parameters():
    assert list(Linear(3, 2).state_dict()) == ["weight", "bias"]


def test_products_are_mkls_where_they_are_not_onednns(monkeypatch):
    monkeypatch.setattr(gemm, "USES_ONEDNN", False)
    x, weight = torch.randn(2048, 64), torch.randn(64, 64)
    assert not calls_onednn(lambda: linear(x, weight))
    assert torch.equal(transposed_matmul(x, x), x.T @ x)


@pytest.mark.parametrize("onednn", [False, True])
def test_small_sums_over_rows_are_taken_in_float64(monkeypatch, onednn):
    monkeypatch.setattr(gemm, "USES_ONEDNN", onednn)
    torch.manual_seed(0)
    a, b = torch.randn(600, 8), torch.randn(600, 5)
    expected = (a.double().T @ b.double()).float()
    assert torch.equal(gemm.transposed_matmul(a, b), expected)
    with ops.use("reference"):
        assert torch.equal(gemm.transposed_matmul(a, b), a.T @ b)
