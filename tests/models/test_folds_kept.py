"""HistoPrism in evaluation: a cancer's context is folded once, and gives the same."""

import pytest
import torch

from histokit import ops
from histokit.models import HistoPrism


def model():
    return HistoPrism(16, 5, ["A", "B"], hidden_dim=8, num_layers=1, num_heads=2).eval()


@pytest.fixture
def folds(monkeypatch):
    """A list that grows with every fold."""
    found, fold = [], ops.fold_context
    monkeypatch.setattr(ops, "fold_context", lambda *a, **k: (found.append(1), fold(*a, **k))[1])
    return found


def test_a_cancer_is_folded_once(folds):
    own, x = model(), torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = [own.embed(x[0], "A"), own.embed(x[1], "B"), own.embed(x[1], "A")]
        assert not folds
        own.keep_folds()
        found = [own.embed(x[0], "A"), own.embed(x[1], "B"), own.embed(x[1], "A")]
    assert len(folds) == 2
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_training_and_other_weights_are_folded_anew(folds):
    own, x = model(), torch.randn(7, 16)
    own.keep_folds()
    with torch.no_grad():
        before = own.embed(x, "A")
    assert len(folds) == 1
    own.train()
    own(x, 0).sum().backward()  # with gradients, which nothing kept would carry
    assert own.conditioner.attention.out_proj.weight.grad.abs().sum() > 0
    assert len(folds) == 1
    own.conditioner.attention.out_proj.weight.data.mul_(3)
    own.keep_folds()
    with torch.no_grad():
        assert not torch.equal(own.embed(x, "A"), before)
    assert len(folds) == 2
