"""Expression from hidden layers: a linear head's, and a hidden layer that is the expression."""

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from histokit.evaluate.scores import Prediction, _pearson
from histokit.models.outputs import Direct, Outputs


def heads(genes: int = 6, width: int = 4):
    torch.manual_seed(0)
    head, hidden = nn.Linear(width, genes), torch.randn(40, width)
    return head, hidden, head(hidden).detach()


def test_outputs_of_both_heads_are_the_same_columns():
    head, hidden, whole = heads()
    linear, direct = Outputs.of(head), Outputs.of(Direct(6))
    chosen = torch.tensor([4, 1, 3])
    for genes in (slice(1, 5), chosen, 2):
        torch.testing.assert_close(linear[genes](hidden), whole[:, genes])
        torch.testing.assert_close(direct[genes](whole), whole[:, genes])
    assert len(linear[chosen]) == len(direct[chosen]) == 3
    torch.testing.assert_close(direct[chosen][1:](whole), whole[:, [1, 3]])


def test_scores_of_both_heads_agree():
    head, hidden, whole = heads()
    with torch.no_grad():
        head.weight[2] = 0  # a constant prediction
    whole = head(hidden).detach()
    rng = np.random.default_rng(1)
    target = sp.csr_matrix(rng.poisson(0.5, (40, 6)).astype(np.float32))
    closed = _pearson(Prediction(hidden, head), target)
    formed = _pearson(Prediction(whole, Direct(6)), target)
    for a, b in zip(closed, formed, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, equal_nan=True)
    expected = np.corrcoef(whole[:, 0].double(), target[:, 0].toarray()[:, 0])[0, 1]
    assert abs(float(formed[0][0]) - expected) < 1e-6
    assert torch.isnan(formed[0][2])
    assert torch.isfinite(formed[1][2])


def test_one_block_does_not_change_the_scores(monkeypatch):
    _, _, whole = heads()
    target = sp.csr_matrix(np.random.default_rng(1).poisson(0.5, (40, 6)).astype(np.float32))
    one = _pearson(Prediction(whole, Direct(6)), target)
    monkeypatch.setattr("histokit.evaluate.scores._BLOCK", 4)
    for a, b in zip(one, _pearson(Prediction(whole, Direct(6)), target), strict=True):
        assert torch.equal(a, b)


def test_an_infinite_weight_is_found():
    head, _, _ = heads()
    assert Outputs.of(head).is_finite()
    assert Outputs.of(Direct(3)).is_finite()
    with torch.no_grad():
        head.weight[0, 0] = float("inf")
    assert not Outputs.of(head).is_finite()
