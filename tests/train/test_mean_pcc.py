"""Mean correlation of a slide's genes, by which training chooses."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from histokit.train.correlation import mean_pcc


def series(dtype=np.float64):
    random = np.random.default_rng(0)
    truth = random.normal(size=(50, 6)).astype(dtype)
    return truth + random.normal(size=truth.shape).astype(dtype), truth


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_the_mean_of_scipy(dtype):
    prediction, truth = series(dtype)
    expected = np.mean([pearsonr(prediction[:, g], truth[:, g])[0] for g in range(6)])
    given = (torch.from_numpy(x) for x in (prediction, truth))
    assert mean_pcc(*given) == pytest.approx(expected, abs=1e-6)


def test_constant_predictions_are_zero_and_constant_targets_do_not_count():
    prediction, truth = series()
    by_gene = [pearsonr(prediction[:, g], truth[:, g])[0] for g in range(6)]
    prediction[:, 1], truth[:, 4] = 2.3, 1.1
    by_gene[1] = 0
    del by_gene[4]
    given = (torch.from_numpy(x) for x in (prediction, truth))
    assert mean_pcc(*given) == pytest.approx(np.mean(by_gene), abs=1e-12)


def test_nothing_varies():
    prediction, truth = (torch.from_numpy(x) for x in series())
    assert np.isnan(mean_pcc(prediction, torch.full_like(truth, 0.3)))
