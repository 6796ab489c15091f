import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.data.moran import morans_i, neighbour_graph


def array(side, hexagonal=False):
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    shift = 0.5 * (y % 2) if hexagonal else 0
    return np.stack([(x + shift).ravel(), (y * (0.75**0.5 if hexagonal else 1)).ravel()], 1) * 100


def expression(num, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(num) / 7)[:, None] * rng.random(genes)
    return sp.csr_matrix(np.maximum(wave + rng.normal(0, 0.5, (num, genes)), 0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("hexagonal", "neighbours"), [(False, 4), (True, 6)])
def test_graph_and_statistic_are_squidpys(hexagonal, neighbours):
    squidpy = pytest.importorskip("squidpy")
    centres = array(12, hexagonal)
    data = anndata.AnnData(expression(len(centres)), obsm={"spatial": centres})
    squidpy.gr.spatial_neighbors(data, coord_type="grid", n_neighs=neighbours)
    graph = neighbour_graph(centres)
    assert (graph != data.obsp["spatial_connectivities"]).nnz == 0
    oracle = squidpy.gr.spatial_autocorr(data, mode="moran", copy=True, show_progress_bar=False)
    oracle = oracle.loc[data.var_names]
    ours = morans_i(data.X, graph)
    np.testing.assert_allclose(ours["I"], oracle["I"], atol=1e-6)
    np.testing.assert_allclose(ours["p"], oracle["pval_norm"], atol=1e-6)
    assert oracle["I"].max() > 0.1  # there is something to find


def test_is_the_definition_with_holes_and_a_lonely_spot():
    centres = np.delete(array(9), [3, 4, 20, 41], axis=0)
    centres = np.vstack([centres, [[5000.0, 5000.0]]])
    y, graph = expression(len(centres)), neighbour_graph(centres)
    assert graph[-1].nnz == 0
    weights = graph.toarray() / np.maximum(graph.toarray().sum(1, keepdims=True), 1)
    z = y.toarray() - y.toarray().mean(0)
    moran = np.einsum("ig,ij,jg->g", z, weights, z) / (z**2).sum(0) * len(z) / weights.sum()
    np.testing.assert_allclose(morans_i(y, graph)["I"], moran, atol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    graph, y = neighbour_graph(array(8)), expression(64)
    whole = morans_i(y, graph)
    monkeypatch.setattr("histokit.data.moran.BLOCK", 64 * 7)
    np.testing.assert_allclose(morans_i(y, graph), whole, rtol=1e-10)


def test_offsets_cost_no_digits_and_constant_genes_are_nan():
    graph, y = neighbour_graph(array(8)), expression(64).toarray()
    far = morans_i(sp.csr_matrix(y + 1e4), graph)
    np.testing.assert_allclose(far["I"], morans_i(sp.csr_matrix(y), graph)["I"], atol=1e-6)
    flat = morans_i(sp.csr_matrix(np.full((64, 1), 0.1)), graph)
    assert flat.isna().all(axis=None)


def test_noise_is_rarely_significant():
    graph = neighbour_graph(array(20))
    noise = sp.csr_matrix(np.random.default_rng(0).normal(size=(400, 2000)))
    share = (morans_i(noise, graph)["p"] < 0.05).mean()
    assert 0.07 < share < 0.13  # squidpy's p is one-tailed on either side: twice the nominal share


@pytest.mark.parametrize(
    ("centres", "text"),
    [(np.full((5, 2), np.nan), "not finite"), (np.zeros((5, 2)), "fewer than three places")],
)
def test_spots_without_places(centres, text):
    with pytest.raises(InputError, match=text):
        neighbour_graph(centres)
