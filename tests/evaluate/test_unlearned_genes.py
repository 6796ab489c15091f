"""Genes without a count in training have no prediction, whatever the model's weights say."""

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import GENES, write_cohort
from numpy.testing import assert_array_equal

import run_eval
import run_train
from histokit.data.cohort import Cohort
from histokit.evaluate.gene_lists import GeneLists
from histokit.evaluate.protocol_scores import ProtocolScores
from histokit.evaluate.protocols import PROTOCOLS
from histokit.evaluate.runs import Run
from histokit.evaluate.scores import choose_hvgs
from histokit.evaluate.views import Views
from histokit.maps.ensemble import Ensemble
from histokit.models.outputs import Direct, Outputs

TRAIN, LOST = ("A1", "A2", "C1"), GENES[25:]  # B1 validates and measures what they do not
TINY = {
    "histoprism": {"preset": "paper", "epochs": 1},
    "stflow": {"hidden_dim": 32, "num_layers": 1, "samples": 3, "epochs": 1, "preset": "paper"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    genes = dict.fromkeys(TRAIN, GENES[:25])
    return write_cohort(tmp_path_factory.mktemp("cohort"), genes=genes)


@pytest.fixture
def trained(data, tmp_path, one_fold, capsys):
    """Trains a model that does not start at the mean; gives its run and what was printed."""

    def train(model, **more):
        given = {"data": str(data), "run": str(tmp_path / model), "folds": one_fold}
        given |= {"encoder": "tiny", "panel": "union", "model": model} | TINY[model] | more
        run_train.main(run_train.Options(**given))
        return Run(tmp_path / model), capsys.readouterr().out

    return train


@pytest.mark.parametrize("model", list(TINY))
def test_genes_of_no_training_slide_are_not_scored(model, trained, data):
    run, said = trained(model)
    assert "5 of 30 genes get no prediction" in said
    (fold,) = run.folds
    assert_array_equal(fold.learned, [name not in LOST for name in fold.genes["gene"]])
    listed = GeneLists({"": GENES[20:]})
    (view,) = Views(run, Cohort(data, "tiny"), listed=listed).of()
    score = view.score
    raw = Outputs.of(view.model.head)(view.prediction.hidden)
    assert (raw[:, 25:].std(dim=0) > 0).any()  # the weights alone would say something
    for values in (score.pcc, score.mse, score.variance, score.target_mean):
        assert_array_equal(np.isnan(values), ~fold.learned)
    assert score.measured.all()
    assert_array_equal(score.constant_pred, ~fold.learned)
    assert_array_equal(score.hvg, [g in GENES[20:25] for g in fold.genes["gene"]])
    assert torch.equal(view.prediction[:, np.arange(30)][:, 25:], torch.zeros(len(raw), 5))
    assert torch.equal(view.prediction[:, np.arange(30)][:, :25], raw[:, :25])


@pytest.mark.parametrize("model", list(TINY))
def test_written_predictions_are_nan_there(model, trained, call, tmp_path):
    run, _ = trained(model)
    listed = tmp_path / "genes.txt"
    listed.write_text("\n".join(GENES[20:]))
    given = ["--run", run.folder, "--no-pictures", "--predict-genes", "all", "--hvg-file", listed]
    done = call(run_eval, *given)
    assert done.returncode == 0, done.stderr
    (path,) = (run.folder / "eval/predictions").rglob("D1.h5ad")
    file = anndata.read_h5ad(path)
    lost = file.var_names.isin(LOST)
    assert_array_equal(np.isnan(file.X), np.broadcast_to(lost, file.shape))
    assert np.isfinite(file.layers["target"]).all()
    if "spread" in file.layers:
        assert_array_equal(np.isnan(file.layers["spread"]), np.broadcast_to(lost, file.shape))
    slides = pd.read_csv(run.folder / "eval/slides.csv").iloc[0]
    assert (slides["hvgs"], slides["genes_scored"], slides["genes_constant_prediction"]) == (
        5,
        25,
        5,
    )
    by_slide = pd.read_csv(run.folder / "eval/pcc_by_slide.csv", index_col="gene")
    assert by_slide.loc[LOST].isna().all(axis=None)


def test_a_map_holds_none_of_them_and_says_so(trained, data):
    run, _ = trained("histoprism")
    ensemble = Ensemble(run, run.folds)
    assert list(ensemble.genes.index) == GENES[:25]
    slide = Cohort(data, "tiny").load("D1", counts=False)
    assert any("5 genes of the panel are not predicted" in said for said in ensemble.said(slide))
    expected = run.folds[0].load_model().predict(slide.features, slide.cancer).numpy()[:, :25]
    np.testing.assert_allclose(ensemble.on(slide).block(0, 25), expected, atol=1e-5)


def test_a_protocol_leaves_them_out(trained, data):
    run, _ = trained("histoprism", target="log1p")
    scores = ProtocolScores(run, PROTOCOLS["histoprism"], GeneLists({"": GENES[20:]}))
    for view in Views(run, Cohort(data, "tiny")).of():
        scores.add(view)
    table = scores.table().set_index(["figure", "group"])
    score = view.score
    assert table.loc[("pcc-top50", "D1"), "genes_undefined"] == 5
    found = table.loc[[("pcc-top50", "D1"), ("pcc-all", "D1")], "value"].astype(float)
    np.testing.assert_allclose(found, [score.pcc[20:25].mean(), score.pcc[:25].mean()], atol=1e-5)


def test_training_again_with_the_validation_slides_learns_theirs(trained):
    run, said = trained("histoprism", refit=True)
    assert run.folds[0].learned.all()
    assert "get no prediction" not in said


def test_zeros_in_place_of_counts_teach_nothing(trained):
    run, said = trained("histoprism", refit=False, unmeasured="zero")
    assert "5 of 30 genes get no prediction" in said
    assert_array_equal(
        run.folds[0].learned, [name not in LOST for name in run.folds[0].genes["gene"]]
    )


def test_a_run_that_did_not_count_spots(trained):
    """Without the column, a gene without moments is one that nothing was learned about."""
    run, _ = trained("histoprism", refit=True)
    path = run.folds[0].folder / "genes.csv"
    table = pd.read_csv(path).drop(columns="train_spots")
    table.loc[table["gene"].isin(LOST), ["train_mean", "train_variance"]] = 0.0
    table.to_csv(path, index=False)
    (fold,) = Run(run.folder).folds
    assert_array_equal(fold.learned, [name not in LOST for name in fold.genes["gene"]])
    assert_array_equal(choose_hvgs(fold, 50, GENES), fold.learned)


def test_published_weights_are_taken_to_have_learned_all(trained):
    run, _ = trained("histoprism")
    path = run.folds[0].folder / "genes.csv"
    table = pd.read_csv(path).drop(columns="train_spots")
    table[["train_mean", "train_variance"]] = np.nan
    table.to_csv(path, index=False)
    assert Run(run.folder).folds[0].learned.all()


def test_silent_outputs_are_zero():
    head, hidden = torch.nn.Linear(4, 6), torch.randn(5, 4)
    learned = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        whole = head(hidden)
    for outputs, x in ((Outputs.of(head), hidden), (Outputs.of(Direct(6)), whole)):
        silent = outputs.silencing(learned)
        torch.testing.assert_close(silent(x), whole * learned)
        assert silent[1](x).count_nonzero() == 0
        torch.testing.assert_close(silent[2](x), whole[:, 2])
    assert Outputs.of(head).bias[1] != 0  # the model keeps its weights
