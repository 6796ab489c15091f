"""Sums of squared predictions of a linear layer: each form, and what depends on nothing."""

import pytest
import torch

from histokit import ops
from histokit.ops import dispatch, reference
from histokit.ops.linear_pearson import _quadratic_form, _takes_rows

SHAPES = {"rows": (30, 40, 9), "root": (300, 12, 400), "few genes": (300, 12, 5)}


def sample(shape, dtype=torch.float32):
    torch.manual_seed(0)
    rows, dim, genes = shape
    hidden = torch.randn(rows, dim, dtype=dtype)
    return torch.randn(genes, dim, dtype=dtype), hidden - hidden.mean(0)


def truth(weight, rows):
    return (rows.double() @ weight.double().T).square().sum(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda's form"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_form_is_as_exact_as_predictions(name, cuda, dtype, monkeypatch):
    weight, rows = sample(SHAPES[name], dtype)
    monkeypatch.setattr(dispatch, "on_cuda", lambda tensor: cuda)
    found, expected = _quadratic_form(weight, rows), truth(weight, rows)
    eager = (rows @ weight.T).square().sum(0).double()
    assert found.dtype == torch.float64
    bound = 2 * (eager - expected).abs().max() + 2 * torch.finfo(dtype).eps * expected.max()
    assert (found - expected).abs().max() <= bound


def test_the_cheaper_form_is_taken():
    assert _takes_rows(3000, 1280, 250)
    assert _takes_rows(300, 1280, 38_982)
    assert not _takes_rows(10_000, 256, 38_982)


def small_directions():
    """Weights that lie where the rows hardly vary, and rows of many more spots than genes."""
    torch.manual_seed(0)
    base = torch.randn(2000, 3)
    rows = torch.cat([base, base[:, :1] + 1e-3 * torch.randn(2000, 1)], 1)
    weight = torch.randn(3000, 4)
    weight[:, 1:] = 0
    weight[:, 3] = -weight[:, 0]
    return weight, rows - rows.mean(0)


@pytest.mark.parametrize("cuda", [False, True])
def test_small_directions_keep_digits(cuda, monkeypatch):
    weight, rows = small_directions()
    monkeypatch.setattr(dispatch, "on_cuda", lambda tensor: cuda)
    expected, gram = truth(weight, rows), rows.double().T @ rows.double()

    def error(found):
        return ((found.double() - expected) / expected).abs().max()

    values, vectors = torch.linalg.eigh(gram)
    symmetric = (vectors * values.clamp(min=0).sqrt()).float()
    assert error(_quadratic_form(weight, rows)) <= 2 * error((weight @ symmetric).square().sum(1))
    assert error(((weight @ gram.float()) * weight).sum(1)) > 1e-2


def test_columns_that_depend_on_each_other():
    weight, rows = sample((500, 6, 4000))
    rows = torch.cat([rows, rows[:, :2] + rows[:, 2:4], torch.zeros(500, 1)], 1)
    weight = torch.cat([weight, torch.randn(4000, 3)], 1)
    torch.testing.assert_close(
        _quadratic_form(weight, rows), truth(weight, rows), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("cuda", [False, True])
def test_weights_on_a_silent_feature_give_no_correlation(cuda, monkeypatch):
    """The feature is the same in all spots, so predictions are, and r is NaN, not noise."""
    torch.manual_seed(0)
    hidden, target = torch.randn(500, 6), torch.rand(500, 4000)
    hidden[:, 2] = 0.3
    weight = torch.zeros(4000, 6)
    weight[:, 2] = torch.randn(4000)
    weight[1::2, 3] = 1
    assert not _takes_rows(500, 6, 4000)
    monkeypatch.setattr(dispatch, "on_cuda", lambda tensor: cuda)
    r, _ = ops.linear_pearson(hidden, weight, None, target)
    assert r[::2].isnan().all()
    expected = reference.linear_pearson(hidden.double(), weight.double(), None, target)[0]
    torch.testing.assert_close(r[1::2], expected[1::2].float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_derivatives(name):
    weight, rows = (t.requires_grad_() for t in sample(SHAPES[name], torch.float64))
    weight, rows = weight[:8].detach().requires_grad_(), rows[:, :5].detach().requires_grad_()
    weight = weight[:, :5].detach().requires_grad_()
    assert torch.autograd.gradcheck(_quadratic_form, (weight, rows))
    assert torch.autograd.gradgradcheck(
        _quadratic_form, (weight, rows[:20].detach().requires_grad_())
    )


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 3, 0), (5, 0, 4)])
def test_nothing_sums_to_zero(shape):
    weight, rows = torch.ones(shape[2], shape[1], requires_grad=True), torch.ones(shape[:2])
    found = _quadratic_form(weight, rows)
    assert found.tolist() == [0.0] * shape[2]
    assert torch.autograd.grad(found.sum(), weight)[0].abs().sum() == 0
