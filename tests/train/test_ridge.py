import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histokit.train import ridge as fit
from histokit.train.spots import Spots

ALL = np.ones((1, 9), bool)
ONE = np.zeros(120, int)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 20)).astype(np.float32) * rng.lognormal(0, 1, 20).astype(np.float32)
    y = x @ rng.normal(size=(20, 9)) + rng.normal(size=(120, 9)) * 3 + 2
    y[rng.random(y.shape) < 0.4] = 0
    return x, sp.csr_matrix(y.astype(np.float32)), np.repeat(np.arange(6), 20)


def predict(model, x):
    return model.predict(torch.from_numpy(x), "IDC").numpy()


def test_mean(data):
    x, y, _ = data
    expected = np.tile(y.toarray().mean(0), (len(x), 1))
    np.testing.assert_allclose(
        predict(fit.fit_mean(Spots(x, y, ALL, ONE, ONE)), x), expected, rtol=1e-5
    )


def test_hest_recipe_is_the_definition(data):
    x, y, _ = data
    pipeline = make_pipeline(StandardScaler(), PCA(20, random_state=1)).fit(x)
    scores = pipeline.transform(x).astype(np.float32)
    ridge = Ridge(
        100 / (20 * 50), solver="lsqr", fit_intercept=False, max_iter=1000, random_state=1
    ).fit(scores, y.toarray())
    np.testing.assert_allclose(
        predict(fit.fit_ridge_hest(x, y), x), ridge.predict(scores), rtol=1e-3, atol=1e-3
    )


def oracle(x, y, alpha):
    """Standardize, PCA and scikit-learn's ridge with intercept."""
    pca = PCA(min(256, len(x) - 1, x.shape[1]), random_state=1)
    return make_pipeline(StandardScaler(), pca, Ridge(alpha, solver="svd")).fit(x, y)


def test_ridge_is_scikit_learns_at_the_alpha_that_cross_validation_chooses(data):
    x, y, groups = data
    dense = y.toarray().astype(np.float64)
    errors = [
        sum(
            np.square(oracle(x[a], dense[a], alpha).predict(x[b]) - dense[b]).sum()
            for a, b in GroupKFold(5).split(x, groups=groups)
        )
        for alpha in fit.ALPHAS
    ]
    model, alpha = fit.fit_ridge(Spots(x, y, ALL, ONE, groups))
    assert alpha == fit.ALPHAS[np.argmin(errors)]
    assert fit.ALPHAS[0] < alpha < fit.ALPHAS[-1]
    np.testing.assert_allclose(predict(model, x), oracle(x, dense, alpha).predict(x), atol=1e-4)


def test_ridge_takes_unmeasured_entries_at_the_mean(data):
    x, y, groups = data
    measured = np.ones((6, 9), bool)
    measured[:2, 4] = False
    dense = np.where(measured[groups], y.toarray(), 0)
    model, alpha = fit.fit_ridge(Spots(x, sp.csr_matrix(dense), measured, groups, groups))
    filled = dense.copy()
    filled[groups < 2, 4] = dense[groups >= 2, 4].mean()
    np.testing.assert_allclose(predict(model, x), oracle(x, filled, alpha).predict(x), atol=1e-4)


def test_more_dimensions_than_spots(data):
    _, y, groups = data
    wide = np.random.default_rng(1).normal(size=(120, 400)).astype(np.float32)
    model, _ = fit.fit_ridge(Spots(wide, y, ALL, ONE, groups))
    assert len(model.components) == 119
    assert np.isfinite(predict(model, wide)).all()
    assert len(fit.fit_ridge_hest(wide, y).components) == 120


def test_all_components_are_ridge_on_the_features_themselves(data):
    _, y, groups = data
    wide = np.random.default_rng(1).normal(size=(120, 300)).astype(np.float32)
    dense, scaler = y.toarray().astype(np.float64), StandardScaler()

    def plain(train, alpha):
        return make_pipeline(scaler, Ridge(alpha)).fit(wide[train], dense[train])

    errors = [
        sum(
            np.square(plain(a, alpha).predict(wide[b]) - dense[b]).sum()
            for a, b in GroupKFold(5).split(wide, groups=groups)
        )
        for alpha in fit.ALPHAS
    ]
    model, alpha = fit.fit_ridge(Spots(wide, y, ALL, ONE, groups), components=None)
    assert alpha == fit.ALPHAS[np.argmin(errors)]
    np.testing.assert_allclose(
        predict(model, wide), plain(slice(None), alpha).predict(wide), atol=1e-4
    )
    fewer = fit.fit_ridge(Spots(wide, y, ALL, ONE, groups), components=10)[0]
    assert len(fewer.components) == 10


def test_penalties_by_gene(data):
    """Three genes that the features show, six of noise: the errors are scikit-learn's."""
    x, y, groups = data
    dense = y.toarray().astype(np.float64)
    dense[:, 3:] = np.random.default_rng(3).normal(size=(120, 6))
    errors = [
        sum(
            np.square(oracle(x[a], dense[a], alpha).predict(x[b]) - dense[b]).sum(axis=0)
            for a, b in GroupKFold(5).split(x, groups=groups)
        )
        for alpha in fit.ALPHAS
    ]
    relative = np.array(errors) / np.min(errors, axis=0)
    expected = fit.ALPHAS[(relative + relative.mean(axis=1, keepdims=True)).argmin(axis=0)]
    model, alpha = fit.fit_ridge(Spots(x, sp.csr_matrix(dense), ALL, ONE, groups), by_gene=True)
    np.testing.assert_array_equal(alpha, expected)
    assert alpha[:3].max() < alpha[3:].min()
    each = [oracle(x, dense[:, [g]], a).predict(x).ravel() for g, a in enumerate(alpha)]
    np.testing.assert_allclose(predict(model, x), np.stack(each, axis=1), atol=1e-4)


def test_penalties_by_gene_where_some_genes_were_not_measured(data):
    """A gene's penalty comes from the slides that measured it; a constant one has any."""
    x, y, groups = data
    measured = np.ones((6, 9), bool)
    measured[:2, 4] = False
    dense = np.where(measured[groups], y.toarray(), 0)
    dense[:, 8] = 0
    model, alpha = fit.fit_ridge(
        Spots(x, sp.csr_matrix(dense), measured, groups, groups), by_gene=True
    )
    assert alpha.shape == (9,)
    assert np.isfinite(predict(model, x)).all()
    assert np.abs(predict(model, x)[:, 8]).max() == 0


def test_noise_is_shrunk_to_the_mean(data):
    _, y, groups = data
    noise = np.random.default_rng(2).normal(size=(120, 20)).astype(np.float32)
    model, _ = fit.fit_ridge(Spots(noise, y, ALL, ONE, groups))
    fitted = predict(model, noise)
    free = LinearRegression().fit(noise, y.toarray()).predict(noise)
    assert fitted.std(0).mean() < 0.2 * free.std(0).mean()
