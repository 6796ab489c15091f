"""How unlike the training patches a patch is, where the answer is known."""

import types

import numpy as np
import pandas as pd
import pytest
import torch

from histokit.maps import novelty
from histokit.maps.novelty import DIRECTIONS, Gaussian, Reference, make_reference
from histokit.models.base import Standardizer


def patches(count, dim=48, shift=0.0, seed=0):
    """Gaussian patches of which a few directions vary most."""
    scale = np.r_[np.full(8, 5.0), np.full(dim - 8, 0.5)]
    values = np.random.default_rng(seed).normal(size=(count, dim)) * scale + shift
    return torch.from_numpy(values.astype(np.float32))


def test_the_distance_is_mahalanobis_under_the_ppca_covariance():
    train, new = patches(500), patches(20, seed=1)
    gaussian = Gaussian.fit(train.double().numpy())
    rest = np.eye(48) - gaussian.directions.T @ gaussian.directions
    covariance = gaussian.directions.T * gaussian.variances @ gaussian.directions
    covariance += gaussian.rest * rest
    away = new.double().numpy() - gaussian.mean
    squares = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    np.testing.assert_allclose(gaussian.distance(new), np.sqrt(squares / 48), rtol=1e-6)
    assert len(gaussian.variances) == DIRECTIONS


def test_patches_of_the_same_kind_lie_about_one_deviation_away():
    gaussian = Gaussian.fit(patches(4000).double().numpy())
    assert gaussian.distance(patches(2000, seed=1)).mean() == pytest.approx(1, abs=0.03)
    assert gaussian.distance(patches(2000, shift=3, seed=1)).mean() > 3


def reference(outside):
    train = patches(2000)
    gaussian = Gaussian.fit(train.double().numpy())
    usual = float(np.quantile(gaussian.distance(patches(2000, seed=1)), 0.95))
    return Reference([Standardizer("none")], [gaussian], usual, outside)


def test_one_in_twenty_patches_of_a_usual_slide_lies_beyond_one():
    known = reference([0.04, 0.08])
    novelty = known.novelty(patches(4000, seed=2))
    assert novelty.dtype == np.float32
    assert (novelty > 1).mean() == pytest.approx(0.05, abs=0.015)
    assert known.verdict(novelty).startswith("The slide looks like the training slides")


def test_a_slide_of_another_kind_is_told_in_one_sentence():
    known = reference([0.04, 0.08])
    far = known.verdict(known.novelty(patches(500, shift=4, seed=2)))
    assert far.startswith("The slide lies outside what the model was trained on: 100%")
    some = torch.cat([patches(800, seed=2), patches(200, shift=4, seed=3)])
    assert known.verdict(known.novelty(some)).startswith("The slide may lie outside")
    assert "once in 3 times" in known.verdict(known.novelty(some))


def test_one_odd_held_out_slide_does_not_switch_the_check_off():
    known = reference([0.02] * 19 + [1.0])
    assert "lies outside" in known.verdict(known.novelty(patches(500, shift=4, seed=2)))


def test_constant_features_have_a_distance():
    gaussian = Gaussian.fit(np.ones((30, 5)))
    assert np.isfinite(gaussian.distance(torch.ones(3, 5))).all()
    assert gaussian.distance(torch.ones(3, 5) * 2).min() > 100


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (4, [0, 1, 2, 3]), (9, [0, 2, 4, 6, 8]), (10, [0, 2, 4, 7, 9])],
)
def test_the_folds_of_the_calibration_are_spread_over_all(count, expected, monkeypatch):
    """Folds stand in the order of slides: the first five may all hold out one patient."""
    read = []

    def load(slide_id, counts):
        read.append(slide_id)
        return types.SimpleNamespace(features=patches(30))

    monkeypatch.setattr(novelty, "open_cohort", lambda run, data: types.SimpleNamespace(load=load))
    split = {"split": ["train", "test"]}
    folds = [
        types.SimpleNamespace(split=pd.DataFrame(split | {"slide_id": ["train", f"test {i}"]}))
        for i in range(count)
    ]
    models = [types.SimpleNamespace(standardizer=Standardizer("none"))] * count
    make_reference(types.SimpleNamespace(official={}), folds, models)
    assert [s for s in read if s != "train"] == [f"test {i}" for i in expected]
