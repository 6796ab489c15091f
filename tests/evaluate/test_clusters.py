import tracemalloc
import types

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from histokit.evaluate.topics.clusters import (
    ROWS,
    Block,
    StreamingPCA,
    _first_pass,
    cluster_comparison,
    score_clusters,
)


def blocks(signal, slides=9, spots=40, genes=50, cancers="ABC"):
    """Slides of three cancers in parts, with a mean per cancer of the given size."""

    def make():
        rng = np.random.default_rng(0)
        means = signal * rng.normal(size=(len(cancers), genes))
        for slide in range(slides):
            kind = slide % len(cancers)
            for _ in range(2):
                values = means[kind] + rng.normal(size=(spots // 2, genes))
                yield Block(f"s{slide}", cancers[kind], values.astype(np.float32))

    return make


def test_cancers_that_differ_are_found_and_noise_is_not():
    clear = score_clusters(blocks(2.0), components=10, seeds=2).set_index(["level", "method"])
    assert clear.index.tolist() == [
        ("slide", "k-means"), ("slide", "leiden"), ("spot", "k-means"), ("spot", "leiden"),
    ]  # fmt: skip
    assert clear["items"].tolist() == [9, 9, 360, 360]
    assert (clear.loc[[("slide", "k-means"), ("spot", "k-means")], "ami"] > 0.99).all()
    assert clear.loc[("spot", "leiden"), "ami"] > 0.7
    noise = score_clusters(blocks(0.0), components=10, seeds=1).set_index(["level", "method"])
    assert (noise.loc["spot", ["ami", "ari"]].abs() < 0.05).all(axis=None)


def test_many_spots_are_clustered():
    """More than the 4,096 up to which scanpy searches neighbors exactly by itself."""
    table = score_clusters(blocks(2.0, spots=500), components=10, seeds=1)
    spots = table.set_index(["level", "method"]).loc["spot"]
    assert (spots["items"] == 4500).all()
    assert spots.loc["k-means", "ami"] > 0.99
    assert spots.loc["leiden", "ami"] > 0.5


def test_streaming_components_are_those_of_all_rows_together():
    rng = np.random.default_rng(0)
    size = 3.0 ** -np.arange(12)
    rows = (rng.normal(size=(500, 12)) * size) @ rng.normal(size=(12, 80)) + 5 + np.arange(80)
    rows = rows.astype(np.float32)
    pca = StreamingPCA(6)
    for part in np.split(rows, [3, 100, 101, 350]):
        pca.update(part)
    scores, exact = pca.transform(rows), PCA(6).fit_transform(rows)
    for k in range(3):
        assert abs(np.corrcoef(scores[:, k], exact[:, k])[0, 1]) > 0.9999
    np.testing.assert_allclose(scores.std(0)[:3], exact.std(0)[:3], rtol=1e-3)
    np.testing.assert_allclose(pca.mean, rows.mean(0), rtol=1e-5)


def test_one_cancer_cannot_be_scored():
    with pytest.raises(ValueError, match="at least two cancer types"):
        score_clusters(blocks(1.0, cancers="A"))


def test_runs_without_clusters_are_told_why(tmp_path):
    runs = dict.fromkeys("ab", types.SimpleNamespace(clusters=pd.DataFrame()))
    (section,) = cluster_comparison(runs, tmp_path)
    assert "of one cancer" in section.text
    assert not list(tmp_path.iterdir())


def test_constant_predictions_agree_with_nothing():
    def constant():
        for slide in range(4):
            yield Block(f"s{slide}", "AB"[slide % 2], np.ones((20, 12), np.float32))

    assert (score_clusters(constant, seeds=1)["ami"] == 0).all()


def test_memory_does_not_grow_with_spots():
    def peak(slides):
        def many():
            for slide in range(slides):
                rng = np.random.default_rng(slide)
                for _ in range(2):
                    values = rng.normal(slide % 2, 1, (ROWS, 1000)).astype(np.float32)
                    yield Block(f"s{slide % 4}", "AB"[slide % 2], values)

        tracemalloc.start()
        _first_pass(many(), 10)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(2)  # imports
    few, many = peak(3), peak(12)
    assert many < 1.1 * few
    assert few < 20 * ROWS * 1000 * 4
