"""Numbers that are no numbers, very large, very small, or nearly all explained."""

import sys

import pytest
import torch
from op_checks import DEVICES, needs_kernels

from histokit import ops, reference
from histokit.ops import dispatch


def linear_case(rows=40, genes=30, dim=5, dtype=torch.float32):
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, dim, dtype=dtype), torch.randn(genes, dim, dtype=dtype)
    return hidden, weight, torch.randn(genes, dtype=dtype), torch.rand(rows, genes, dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [1, 2, 5, 40])
@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_hidden_that_is_not_finite_gives_nan(bad, form, dim, device):
    hidden, weight, bias, target = (t.to(device) for t in linear_case(dim=dim))
    hidden[3, 0] = bad
    given = target.to_sparse_csr() if form == "csr" else target
    r, mse = ops.linear_pearson(hidden, weight, bias, given)
    expected, expected_mse = reference.linear_pearson(hidden, weight, bias, target)
    assert torch.equal(r.isnan(), expected.isnan())
    assert not (mse.isfinite() & ~expected_mse.isfinite()).any()
    assert r.isnan().all()
    loss = ops.linear_mse(hidden, weight, bias, given)
    assert not loss.isfinite()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1e20, 1e-25, 1e10, 1e-15])
@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_correlation_does_not_know_the_scale(which, scale, device):
    hidden, weight, _, target = (t.to(device) for t in linear_case())
    expected = reference.linear_pearson(*(t.double() for t in (hidden, weight)), None, target)[0]
    hidden, weight = (
        (t * scale).requires_grad_() if name == which else t.requires_grad_()
        for name, t in (("hidden", hidden), ("weight", weight))
    )
    r, _ = ops.linear_pearson(hidden, weight, None, target)
    torch.testing.assert_close(r.double(), expected, rtol=1e-4, atol=1e-5)
    scaled = hidden if which == "hidden" else weight
    (grad,) = torch.autograd.grad(r.sum(), scaled)
    unscaled = (scaled.detach().double() / scale).requires_grad_()
    others = [t.detach().double() for t in (hidden, weight)]
    others[which == "weight"] = unscaled
    (truth,) = torch.autograd.grad(
        reference.linear_pearson(*others, None, target)[0].sum(), unscaled
    )
    torch.testing.assert_close(grad.double() * scale, truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("left", [0.0, 1e-4, 1e-3, 1e-2, 0.05, 1.0])
def test_a_good_fit_keeps_its_digits(left, measured, form, device):
    """left: standard deviation of the residual as a share of the target's."""
    torch.manual_seed(0)
    hidden, weight, bias, _ = (t.double() for t in linear_case(600, 40, 8))
    target = hidden @ weight.T + bias
    target += left * target.std() * torch.randn_like(target)
    target = target.where(target > -2, 0)
    measured = torch.arange(40) % 5 > 0 if measured else None
    truth = reference.linear_mse(hidden, weight, bias, target, measured)
    if left == 0:
        hidden, weight, bias, target = (t.float() for t in (hidden, weight, bias, target))
        target = (hidden @ weight.T + bias).clone()
        truth = torch.zeros(())
    given = [t.float().to(device).requires_grad_() for t in (hidden, weight, bias)]
    value = target.float().to(device)
    value = value.to_sparse_csr() if form == "csr" else value
    loss = ops.linear_mse(*given, value, None if measured is None else measured.to(device))
    assert loss >= 0
    eps = torch.finfo(torch.float32).eps
    forms_residuals = not dispatch.on_cuda(given[0])  # the ways of CUDA run on the CPU too
    bound = 1e-4 * truth if forms_residuals else 4 * eps * target.square().mean()
    assert abs(loss.item() - truth.item()) <= bound + 64 * eps**2 * target.square().mean()


@needs_kernels
@pytest.mark.parametrize("rows", [70, 1500])
@pytest.mark.parametrize("entries", [7, 1 << 24])
def test_residuals_by_blocks_equal_the_reference(rows, entries, monkeypatch):
    monkeypatch.setattr(sys.modules["histokit.ops.linear_mse"], "RESIDUALS", entries * 30)
    hidden, weight, bias, target = (t.double() for t in linear_case(rows, 30, 40))
    measured = torch.arange(30) % 3 > 0
    for value in (target, target.where(target > 0.6, 0).to_sparse_csr()):
        found = []
        for module in (ops, reference):
            given = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
            loss = module.linear_mse(*given, value, measured)
            found.append([loss, *torch.autograd.grad(loss, given)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("device", DEVICES)
def test_an_infinite_gene_keeps_its_nan_moments(device):
    pred, target = torch.rand(2, 50, 3, device=device)
    pred[4, 1] = torch.inf
    states = torch.zeros(2, 6, 1, 3, dtype=torch.float64, device=device)
    ops.pearson_update(states[0], pred, target)
    reference.pearson_update(states[1], pred, target)
    assert torch.equal(states[0].isnan(), states[1].isnan())
    assert ops.pearson_compute(states[0])[0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("device", DEVICES)
def test_a_place_that_is_no_number_shows_without_a_slope(device):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 4, device=device)
    coords = torch.rand(9, 2, device=device)
    coords[2, 1] = torch.nan
    slope = torch.zeros(2, device=device)
    out = ops.distance_attention(q, k, v, coords, slope)
    assert torch.equal(out.isnan(), reference.distance_attention(q, k, v, coords, slope).isnan())
    assert out.isnan().any()


@needs_kernels
@pytest.mark.parametrize("device", DEVICES)
def test_attention_over_many_keys_is_within_budget(device):
    """Sums in one chain over 6,000 keys had 7 times eager's error."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 6000, 8)
    coords, slope = torch.rand(6000, 2), torch.tensor([-0.5])

    def run(function, kind, where="cpu"):
        given = [t.to(where, kind).requires_grad_() for t in (q, k, v, slope)]
        out = function(*given[:3], coords.to(where, kind), given[3])
        weight = torch.linspace(-1, 1, 6000, dtype=kind, device=where)[:, None]
        return [out, *torch.autograd.grad((out * weight).sum(), given)]

    truth = run(reference.distance_attention, torch.float64)
    eager = run(reference.distance_attention, torch.float32)
    ours = run(ops.distance_attention, torch.float32, device)
    for name, a, b, c in zip(("out", "q", "k", "v"), ours, eager, truth, strict=False):
        error, allowed = ((t.double().cpu() - c).square().mean().sqrt() for t in (a, b))
        assert error <= 2 * allowed, name


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match="the width must be at least 1"):
        ops.prototype_attention(*torch.ones(3, 4, 0), torch.ones(4), num_heads=1)
    with pytest.raises(ValueError, match="q must hold a head and a column"):
        ops.distance_attention(*torch.ones(3, 1, 4, 0), torch.ones(4, 2), torch.ones(1))
    shapes = [(4, 0), (1, 1, 0), (0, 0), (0,), (0, 0), (0,), (0,), (0,)]
    arguments = [torch.ones(shape) for shape in shapes]
    with pytest.raises(ValueError, match="the width must be at least 1"):
        ops.cancer_cross_attention(*arguments, num_heads=1)
