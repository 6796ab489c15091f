import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import write_cohort

import run_eval
import run_train
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.topics import embeddings
from histokit.evaluate.topics.embeddings import (
    CLUSTERS,
    EXPRESSION,
    LEADING,
    REFINED,
    cluster_all,
    describe,
    effective_dimensions,
    explained_variance,
    sample_spots,
    training_pca,
    tsne,
    varying_expression,
)


@pytest.fixture
def planted():
    """Spots of six groups: far apart in ``raw``, mixed in ``refined``; genes that follow them."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(CLUSTERS), 20)
    raw = 10 * rng.normal(size=(CLUSTERS, 12))[groups] + rng.normal(size=(120, 12))
    expression = rng.normal(size=(CLUSTERS, 30))[groups] + 0.3 * rng.normal(size=(120, 30))
    expression = (expression - expression.mean(0)) / expression.std(0)
    return groups, {"raw": raw, REFINED: rng.normal(size=(120, 12))}, expression


def test_planted_clusters_are_found_and_explain_what_follows_them(planted):
    groups, embeddings, expression = planted
    found = cluster_all(embeddings)
    rows = pd.DataFrame(describe(found, expression)).set_index("embedding")
    assert len(set(zip(groups, found["raw"].labels, strict=True))) == CLUSTERS
    assert rows.loc["raw", "silhouette"] > 0.7
    assert rows.loc[REFINED, "silhouette"] < 0.2
    assert rows.loc["raw", "explained"] > 0.8
    assert rows.loc[REFINED, "explained"] < 0.1
    assert (rows["clusters"] == CLUSTERS).all()


def test_a_cluster_bears_the_number_of_the_raw_one_it_overlaps_most(planted):
    _, embeddings, _ = planted
    same = cluster_all({"raw": embeddings["raw"], REFINED: embeddings["raw"][:, ::-1] + 3})
    np.testing.assert_array_equal(same["raw"].labels, same[REFINED].labels)


def test_squeezing_raises_the_silhouette_and_not_what_is_explained(planted):
    _, embeddings, expression = planted
    noise = embeddings[REFINED]
    rows = pd.DataFrame(
        describe(cluster_all({"raw": noise, "PCA": noise * [1, *[0.01] * 11]}), expression)
    )
    assert rows["silhouette"][1] > rows["silhouette"][0] + 0.3
    assert rows["effective_dimensions"][1] == pytest.approx(1, abs=0.01)
    assert rows["explained"][1] < 0.15


def test_explained_variance_is_eta_squared(planted):
    groups, _, expression = planted
    between = pd.DataFrame(expression).groupby(groups).transform("mean").to_numpy()
    expected = np.mean(between.var(axis=0) / expression.var(axis=0))
    assert explained_variance(expression, groups) == pytest.approx(expected)
    shuffled = [np.random.default_rng(i).permutation(groups) for i in range(200)]
    mean = np.mean([explained_variance(expression, labels) for labels in shuffled])
    row = next(describe(cluster_all({"raw": expression}), expression))
    assert row["by_chance"] == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("shape", [(200, 8), (20, 50)])
def test_effective_dimensions_are_the_participation_ratio(shape):
    values = np.random.default_rng(0).normal(size=shape) * np.linspace(0.1, 2, shape[1])
    variances = np.linalg.eigvalsh(np.cov(values.T))
    assert effective_dimensions(values) == pytest.approx(
        variances.sum() ** 2 / (variances**2).sum()
    )


def test_a_collapsed_embedding_has_no_silhouette():
    found = cluster_all(
        {"raw": np.random.default_rng(0).normal(size=(40, 4)), "PCA": np.ones((40, 3))}
    )
    rows = list(describe(found, np.zeros((40, 0))))
    assert rows[1]["clusters"] == 1
    assert rows[1]["effective_dimensions"] == 0
    assert np.isnan(rows[1]["silhouette"])
    assert np.isnan(rows[1]["explained"])
    assert not tsne(np.ones((40, 3))).any()


@pytest.mark.parametrize("spots", [1, 2, 3, 7])
def test_a_slide_of_few_spots_is_clustered_and_drawn(spots):
    values = np.random.default_rng(0).normal(size=(spots, 4))
    row = next(describe(cluster_all({"raw": values}), values))
    assert row["clusters"] == min(spots, 2)
    assert np.isnan(row["silhouette"]) == (spots < 3)
    assert tsne(values).shape == (spots, 2)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    data = write_cohort(folder / "data")
    run_train.main(
        run_train.Options(
            data=str(data), run=str(folder / "run"), model="bpbooster", encoder="tiny",
            latent_dim=8, num_hvgs=10, epochs=2, folds="leave-one-patient-out", val_fraction=0.0,
            standardize="train",
        )
    )  # fmt: skip
    run_eval.main(
        run_eval.Options(run=[str(folder / "run")], num_hvg=8, predictions=False, max_pictures=2)
    )
    return folder


def test_report_compares_embeddings(evaluated):
    out = evaluated / "run" / "eval"
    table = pd.read_csv(out / "embeddings.csv")
    assert set(table["slide_id"]) == {"A1", "A2", "B1", "B2", "C1", "D1"}
    assert set(table["embedding"]) == {"raw", "PCA", LEADING, REFINED, EXPRESSION}
    dimensions = table.groupby("embedding")["dimensions"].first()
    assert (dimensions["raw"], dimensions["PCA"], dimensions[REFINED]) == (16, 8, 8)
    assert table["silhouette"].between(-1, 1).all()
    own = table.pivot(index="slide_id", columns="embedding", values="explained")
    assert (own[EXPRESSION] > own["raw"]).all()
    pictures = list(out.glob("embeddings/*/*.png"))
    assert len(pictures) == 2
    assert min(p.stat().st_size for p in pictures) > 20_000
    report = (out / "report.html").read_text()
    assert "<h2>Embeddings</h2>" in report
    assert "above PCA</th>" in report


def test_components_are_of_the_training_slides_and_as_the_model_sees_them(evaluated):
    run, cohort = Run(evaluated / "run"), Cohort(evaluated / "data", "tiny")
    fold = run.folds[0]
    model = fold.load_model()
    pca = training_pca(model, lambda name: cohort.load(name, counts=False).features, fold)
    x = torch.cat([cohort.load(s).features for s in ("B1", "B2", "C1", "D1")])
    x = model.standardizer(x).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(pca.explained_variance_, values[:-9:-1], rtol=1e-4)
    np.testing.assert_allclose(np.abs(pca.components_ @ vectors[:, :-9:-1]), np.eye(8), atol=1e-2)


def test_large_slides_are_sampled_row_by_row(evaluated, monkeypatch):
    monkeypatch.setattr(embeddings, "SPOTS", 10)
    whole = Cohort(evaluated / "data", "tiny").load("A1")
    part = sample_spots(whole)
    rows = [whole.barcodes.index(b) for b in part.barcodes]
    assert len(set(rows)) == 10
    torch.testing.assert_close(part.features, whole.features[rows])
    np.testing.assert_array_equal(part.counts.toarray(), whole.counts[rows].toarray())
    np.testing.assert_array_equal(part.centers, whole.centers[rows])
    y = varying_expression(part, "counts10k-log1p")
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(y.var(0), 1, atol=1e-9)
