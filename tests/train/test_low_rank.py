"""Ridge with targets shrunk toward their first components."""

import numpy as np
import pytest
import scipy.sparse as sp

from histokit.train import low_rank
from histokit.train.spots import Spots


def make(sizes=(40, 50, 45), dims=12, genes=60, seed=0, missing=()):
    """Slides whose targets share three patterns, with levels of their own."""
    random = np.random.default_rng(seed)
    n = sum(sizes)
    slide = np.repeat(np.arange(len(sizes)), sizes)
    x = random.normal(size=(n, dims)) + slide[:, None]
    y = x[:, :3] @ random.normal(size=(3, genes)) + 3 * random.normal(size=(n, genes))
    y = np.maximum(y + 2 * slide[:, None], 0)
    measured = np.ones((len(sizes), genes), bool)
    for s, gene in missing:
        measured[s, gene] = False
        y[slide == s, gene] = 0
    return Spots(x.astype(np.float32), sp.csr_matrix(y.astype(np.float32)), measured, slide, slide)


def within(values, slide):
    out = np.array(values, dtype=np.float64)
    for s in np.unique(slide):
        out[slide == s] -= out[slide == s].mean(axis=0)
    return out


def by_hand(spots, alpha):
    """(N, G) predictions at a penalty, in plain NumPy."""
    x = within(spots.x, spots.slide)
    x /= x.std(axis=0)
    y = spots.y.toarray().astype(np.float64)
    spread = within(y, spots.slide)
    deviation = np.sqrt((spread**2).mean(axis=0))
    targets = spread.copy()
    for s in np.unique(spots.slide):
        targets[spots.slide == s] /= spread[spots.slide == s].std(axis=0)
    inverse = np.linalg.inv(x.T @ x + alpha * np.eye(x.shape[1]))
    right = np.linalg.svd(targets, full_matrices=False)[2]
    parts = [targets @ right[:k].T @ right[:k] for k in low_rank.RANKS]
    mean = np.mean([inverse @ x.T @ part for part in (*parts, targets)], axis=0)
    raw = within(spots.x, spots.slide).std(axis=0)
    return (spots.x - spots.x.mean(axis=0)) / raw @ (mean * deviation) + y.mean(axis=0)


def predict(model, x):
    import torch

    from histokit.models.base import Batch

    hidden = model.hidden(Batch(torch.from_numpy(x), (), torch.zeros(len(x), dtype=torch.long)))
    return model.head(hidden).detach().numpy()


@pytest.mark.parametrize("genes", [60, 20])  # fewer genes than ranks too
def test_is_the_mean_over_ranks(genes):
    spots = make(genes=genes)
    model, alpha = low_rank.fit_low_rank(spots)
    assert alpha in low_rank.ALPHAS
    np.testing.assert_allclose(predict(model, spots.x), by_hand(spots, alpha), atol=2e-4)


def test_penalty_has_the_best_correlation_on_held_out_groups():
    spots = make(sizes=(30, 30, 30), dims=60, seed=3)
    total = np.zeros(len(low_rank.ALPHAS))
    for held in range(3):
        train = spots.slide != held
        part = spots.rows(np.flatnonzero(train))
        y = spots.y.toarray()
        spread = within(y[train], spots.slide[train]).std(axis=0)
        top = np.argsort(-spread)[: low_rank.GENES]
        fitted = low_rank._decompose(part, True)
        for k, alpha in enumerate(low_rank.ALPHAS):
            model = fitted.linear_map(alpha)
            p, t = predict(model, spots.x[~train])[:, top], y[~train][:, top]
            total[k] += np.mean([np.corrcoef(p[:, g], t[:, g])[0, 1] for g in range(len(top))])
    _, alpha = low_rank.fit_low_rank(spots)
    assert alpha == low_rank.ALPHAS[total.argmax()]


def test_each_part_and_the_whole_are_decomposed_once_for_all_penalties(monkeypatch):
    calls = []

    def counted(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(name) or original(*a, **k))

    counted(low_rank.PCA, "fit")
    counted(low_rank, "svds")
    low_rank.fit_low_rank(make())  # three slides, held out in turn
    assert calls == ["fit", "svds"] * (3 + 1)


def test_slides_on_which_no_gene_varies_have_no_say():
    spots = make()
    train, held = np.flatnonzero(spots.slide == 0), np.flatnonzero(spots.slide > 0)
    silent = spots.y.tolil()
    silent[spots.slide == 2] = 0.3
    silent = Spots(spots.x, silent.tocsr(), spots.measured, spots.slide, spots.group)
    alone = low_rank.correlations(spots, train, np.flatnonzero(spots.slide == 1))
    np.testing.assert_allclose(low_rank.correlations(silent, train, held), alone / 2, rtol=1e-12)


def test_levels_of_slides_do_not_matter():
    spots = make()
    x = spots.x + 100 * spots.slide[:, None].astype(np.float32)
    moved = Spots(x, spots.y, spots.measured, spots.slide, spots.group)
    model, alpha = low_rank.fit_low_rank(spots)
    other, same = low_rank.fit_low_rank(moved)
    assert alpha == same
    np.testing.assert_allclose(model.head.weight.detach(), other.head.weight.detach(), atol=1e-3)


def test_unmeasured_genes_take_no_part_where_they_were_not_measured():
    spots = make(missing=[(0, 5)])
    targets, deviation = low_rank.within_slides(spots)
    dense = targets.matmat(np.eye(60))
    assert not dense[spots.slide == 0, 5].any()
    rows = spots.slide != 0
    value = within(spots.y.toarray()[rows], spots.slide[rows])[:, 5]
    assert deviation[5] == pytest.approx(value.std(), rel=1e-5)
    for s in (1, 2):
        own = value[spots.slide[rows] == s]
        np.testing.assert_allclose(dense[spots.slide == s, 5], own / own.std(), atol=1e-5)
    model, _ = low_rank.fit_low_rank(spots)
    assert model.head.bias[5].item() == pytest.approx(spots.y.toarray()[rows, 5].mean(), rel=1e-5)


def test_genes_that_do_not_vary_are_their_mean():
    spots = make()
    y = spots.y.tolil()
    y[:, 7] = 2
    spots = Spots(spots.x, y.tocsr(), spots.measured, spots.slide, spots.group)
    model, _ = low_rank.fit_low_rank(spots)
    np.testing.assert_allclose(predict(model, spots.x)[:, 7], 2, atol=1e-6)


def test_fewer_spots_than_ranks():
    spots = make(sizes=(6, 5), dims=40)
    model, _ = low_rank.fit_low_rank(spots)
    assert np.isfinite(predict(model, spots.x)).all()


def test_penalty_leaves_half_of_the_first_component():
    """A correlation is blind to the size of what is predicted; the prediction is not flattened."""
    spots = make(sizes=(30, 30, 30), dims=8, seed=1)
    noise = np.random.default_rng(2).permutation(len(spots))
    mixed = Spots(spots.x[noise], spots.y, spots.measured, spots.slide, spots.group)
    for given in (spots, mixed):
        _, alpha = low_rank.fit_low_rank(given)
        first = low_rank._decompose(given, True).pca.singular_values_[0] ** 2
        assert alpha <= first
