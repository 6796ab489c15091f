"""One slide is cut into stripes for cross-validation, whatever the shape of its tissue."""

import types

import numpy as np
import pytest

from histokit.train.ridge import fit_ridge
from histokit.train.spots import Spots, _groups


def stripes(centers):
    centers = np.asarray(centers, float)
    slide = types.SimpleNamespace(
        patient="A", slide_id="A1", centers=centers, barcodes=["b"] * len(centers)
    )
    return _groups([slide])


def test_a_slide_is_cut_along_x():
    x = np.arange(12)
    assert stripes(np.stack([x, x * 0], 1)).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("odd", [0, 1])
def test_spots_of_one_column_are_cut_along_it(odd):
    y = np.random.default_rng(0).permutation(16)
    centers = np.stack([np.full(16, 50.0), y * 100.0], 1)
    centers[:odd, 0] = 10.0  # a single spot beside the column
    found = stripes(centers)
    if not odd:
        assert found.tolist() == (y // 4).tolist()
    assert np.bincount(found).tolist() == [4] * 4


def test_ridge_is_fitted_on_one_column():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(24, 3)).astype(np.float32)
    y = x @ rng.normal(size=(3, 2))
    import scipy.sparse as sp

    group = stripes(np.stack([np.zeros(24), np.arange(24)], 1))
    spots = Spots(x, sp.csr_matrix(y), np.ones((1, 2), bool), np.zeros(24, int), group)
    model, alpha = fit_ridge(spots)
    assert alpha == 0.01
    import torch

    np.testing.assert_allclose(model.predict(torch.from_numpy(x), ""), y, atol=0.01)
