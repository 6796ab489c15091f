import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import squidpy
import torch
from cohorts import write_cohort

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.graph import AROUND, TOUCHING, morans_i, spot_graph, with_neighbors
from histokit.models.base import Standardizer

SQUARE = np.stack(np.divmod(np.arange(25), 5), axis=1) * 200.0


def hexagonal(rows=5, columns=5):
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x + 0.5 * (y % 2), y * np.sqrt(0.75)], axis=1) * 100


def test_neighbors_on_both_grids():
    degree = np.asarray(spot_graph(SQUARE, AROUND).sum(axis=1)).ravel()
    assert (degree[12], degree[0], degree[2]) == (8, 3, 5)
    graph = spot_graph(hexagonal(), AROUND)
    assert graph[12].nnz == 6
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0


def test_mean_is_the_mean_of_the_neighbors():
    x = torch.randn(25, 3)
    found = with_neighbors(x, SQUARE, "mean")
    assert found.shape == (25, 6)
    assert torch.equal(found[:, :3], x)
    around = [6, 7, 8, 11, 13, 16, 17, 18]
    torch.testing.assert_close(found[12, 3:], x[around].mean(0))
    assert with_neighbors(x, SQUARE, "none") is x


def test_attention_prefers_patches_that_look_the_same():
    x = torch.zeros(25, 2)
    x[:, 0] = torch.tensor((SQUARE[:, 0] > 400).astype(np.float32) * 2 - 1)
    x[:, 1] = torch.randn(25) * 1e-3
    mean, attention = (with_neighbors(x, SQUARE, how)[:, 2] for how in ("mean", "attention"))
    border = 12  # its neighbors lie on both sides
    assert attention[border] < mean[border] < 0
    everything = with_neighbors(torch.ones(25, 2), SQUARE, "attention")
    torch.testing.assert_close(everything, torch.ones(25, 4))


@pytest.mark.parametrize("how", ["mean", "attention"])
def test_spots_without_neighbors_get_their_own_features(how):
    for centers in (np.zeros((0, 2)), np.zeros((1, 2)), np.array([[0, 0], [1, 0], [90.0, 0]])):
        x = torch.randn(len(centers), 3)
        found = with_neighbors(x, centers, how)
        assert found.shape == (len(x), 6)
        if len(x):
            torch.testing.assert_close(found[-1], x[-1].repeat(2))


@pytest.fixture
def two_encoders(tmp_path):
    folder = write_cohort(tmp_path / "data", dim=16, encoder="wide")
    other = write_cohort(tmp_path / "other", dim=4, encoder="slim", seed=1)
    (other / "features/slim").rename(folder / "features/slim")
    return folder


def test_two_encoders_side_by_side(two_encoders):
    wide, slim = (Cohort(two_encoders, name).load("A1") for name in ("wide", "slim"))
    assert wide.barcodes != slim.barcodes  # rows are joined by barcode
    order = [slim.barcodes.index(b) for b in wide.barcodes]
    both = Cohort(two_encoders, "wide+slim")
    slide = both.load("A1")
    assert torch.equal(slide.features, torch.cat([wide.features, slim.features[order]], dim=1))
    provenance = both.provenance("A1")
    assert (provenance["encoder"], provenance["patch_um"]) == ("wide + slim", 112)
    assert (provenance["dimension"], provenance["blocks"]) == (20, [16, 4])
    around = Cohort(two_encoders, "wide+slim", "mean")
    assert around.load("A1").features.shape == (40, 40)
    assert around.provenance("A1")["blocks"] == [32, 8]
    with pytest.raises(InputError, match="holds no features of none"):
        Cohort(two_encoders, "wide+none")


@pytest.mark.parametrize("how", ["train", "slide"])
def test_standardized_encoders_count_alike(how):
    x = torch.randn(50, 20) * 7 + 3
    found = Standardizer.fit(how, x, (16, 4))(x)
    wide, slim = found[:, :16].square().sum(), found[:, 16:].square().sum()
    torch.testing.assert_close(wide, slim)
    torch.testing.assert_close(wide + slim, torch.tensor(50 * 20.0))
    alone = Standardizer.fit(how, x, (20,))(x)
    torch.testing.assert_close(alone, Standardizer.fit(how, x)(x))


@pytest.mark.parametrize("model", ["ridge", "mlp"])
def test_training_and_evaluation_see_the_same_features(two_encoders, tmp_path, model):
    run = tmp_path / "run"
    options = {"data": str(two_encoders), "run": str(run), "model": model}
    options |= {"encoder": "wide+slim", "neighbors": "mean", "standardize": "slide"}
    options |= {"preset": "small", "epochs": 40, "lr": 1e-3}
    run_train.main(run_train.Options(**options))
    run_eval.main(run_eval.Options(run=[str(run)], predictions=False, pictures=False))
    summary = pd.read_csv(run / "eval" / "summary.csv")
    pcc = summary.query("by == 'all' and metric == 'pcc_hvg'")["value"].iloc[0]
    assert pcc > 0.3
    with pytest.raises(InputError, match="holds a run with --neighbors mean, not none"):
        run_train.main(run_train.Options(**options | {"neighbors": "none"}))


# ---- Moran's I -------------------------------------------------------------------------------


def array(side, hexagonal=False):
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    shift = 0.5 * (y % 2) if hexagonal else 0
    return np.stack([(x + shift).ravel(), (y * (0.75**0.5 if hexagonal else 1)).ravel()], 1) * 100


def expression(num, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(num) / 7)[:, None] * rng.random(genes)
    return sp.csr_matrix(np.maximum(wave + rng.normal(0, 0.5, (num, genes)), 0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("hexagonal", "neighbors"), [(False, 4), (True, 6)])
def test_radius_is_the_grid_and_the_statistic_squidpys(hexagonal, neighbors):
    centers = array(12, hexagonal)
    data = anndata.AnnData(expression(len(centers)), obsm={"spatial": centers})
    squidpy.gr.spatial_neighbors(data, coord_type="grid", n_neighs=neighbors)
    graph = spot_graph(centers, TOUCHING)
    assert (graph != data.obsp["spatial_connectivities"]).nnz == 0
    oracle = squidpy.gr.spatial_autocorr(data, mode="moran", copy=True, show_progress_bar=False)
    oracle = oracle.loc[data.var_names]
    ours = morans_i(data.X, graph)
    np.testing.assert_allclose(ours["I"], oracle["I"], atol=1e-6)
    np.testing.assert_allclose(ours["p"], oracle["pval_norm"], atol=1e-6)
    assert oracle["I"].max() > 0.1  # there is something to find


def test_is_the_definition_with_holes_and_a_lonely_spot():
    centers = np.delete(array(9), [3, 4, 20, 41], axis=0)
    centers = np.vstack([centers, [[5000.0, 5000.0]]])
    y, graph = expression(len(centers)), spot_graph(centers, TOUCHING)
    assert graph[-1].nnz == 0
    weights = graph.toarray() / np.maximum(graph.toarray().sum(1, keepdims=True), 1)
    z = y.toarray() - y.toarray().mean(0)
    moran = np.einsum("ig,ij,jg->g", z, weights, z) / (z**2).sum(0) * len(z) / weights.sum()
    np.testing.assert_allclose(morans_i(y, graph)["I"], moran, atol=1e-12)


def test_offsets_cost_no_digits_and_constant_genes_are_nan():
    graph, y = spot_graph(array(8), TOUCHING), expression(64).toarray()
    far = morans_i(sp.csr_matrix(y + 1e4), graph)
    np.testing.assert_allclose(far["I"], morans_i(sp.csr_matrix(y), graph)["I"], atol=1e-6)
    flat = morans_i(sp.csr_matrix(np.full((64, 1), 0.1)), graph)
    assert flat.isna().all(axis=None)


def test_noise_is_rarely_significant():
    graph = spot_graph(array(20), TOUCHING)
    noise = sp.csr_matrix(np.random.default_rng(0).normal(size=(400, 2000)))
    share = (morans_i(noise, graph)["p"] < 0.05).mean()
    assert 0.07 < share < 0.13  # squidpy's p is one-tailed on either side: twice the nominal share


@pytest.mark.parametrize(
    ("centers", "text"),
    [(np.full((5, 2), np.nan), "not finite"), (np.zeros((5, 2)), "at the place of another one")],
)
def test_spots_without_places(centers, text):
    with pytest.raises(InputError, match=text):
        spot_graph(centers, TOUCHING)
