from types import SimpleNamespace

import numpy as np
import scipy.sparse as sp
import torch

from histokit.evaluate.residuals import headline_residuals
from histokit.evaluate.topics.residuals import ends


def test_residuals_are_those_of_genes_that_are_measured_and_known():
    target = np.arange(12, dtype=np.float32).reshape(3, 4)
    hvg, mse = np.array([True, True, False, True]), np.array([0.1, np.nan, 0.2, 0.3])
    score = SimpleNamespace(hvg=hvg, mse=mse)
    view = SimpleNamespace(score=score, target=sp.csr_matrix(target), prediction=torch.ones(3, 4))
    np.testing.assert_array_equal(headline_residuals(view), target[:, [0, 3]] - 1)


def test_best_and_worst_are_of_the_slides_own_scored_headline_genes():
    pcc = np.array([0.9, 0.2, np.nan, -0.3, 0.5])
    score = SimpleNamespace(hvg=np.array([False, True, True, True, True]), pcc=pcc)
    assert ends(score) == {"best of 3": 4, "worst of 3": 3}
    score.hvg = np.array([True, False, True, False, False])
    assert ends(score) == {"best of 1": 0}
    score.hvg = np.array([False, False, True, False, False])
    assert ends(score) == {}
