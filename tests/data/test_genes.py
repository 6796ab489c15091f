import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.data.genes import (
    detected,
    dispersion,
    moments,
    normalize,
    rank_hvgs,
    read_gene_list,
    select_panel,
)


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    rate = rng.lognormal(0, 1, 60) * rng.lognormal(0, 0.5, (80, 60))
    return sp.csr_matrix(rng.poisson(rate).astype(np.float32))


def test_counts10k_is_scanpys(counts):
    size = np.asarray(counts.sum(axis=1)).ravel()
    data = anndata.AnnData(counts.copy())
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    ours = normalize(counts, size, "counts10k-log1p")
    np.testing.assert_allclose(ours.toarray(), data.X.toarray(), rtol=1e-6)


def test_raw_transforms(counts):
    size = np.asarray(counts.sum(axis=1)).ravel()
    dense = counts.toarray()
    for name, expected in (("log1p", np.log1p(dense)), ("log2", np.log2(dense + 1))):
        np.testing.assert_allclose(normalize(counts, size, name).toarray(), expected, rtol=1e-6)
    with pytest.raises(InputError, match="choose from counts10k-log1p, log1p, log2"):
        normalize(counts, size, "cpm")


def test_spot_without_counts_stays_zero():
    empty = sp.csr_matrix((2, 3), dtype=np.float32)
    assert normalize(empty, np.zeros(2), "counts10k-log1p").nnz == 0


def test_hvgs_are_scanpys_among_detected_genes(counts):
    size = np.asarray(counts.sum(axis=1)).ravel()
    eligible = detected(counts[:40]) & detected(counts[40:])
    ranks = rank_hvgs(dispersion(counts, size, eligible), eligible)
    dense = counts.toarray()
    assert np.array_equal(eligible, ((dense[:40] > 0).sum(0) >= 4) & ((dense[40:] > 0).sum(0) >= 4))
    assert np.array_equal(np.isfinite(ranks), eligible)
    assert sorted(ranks[eligible]) == list(range(1, eligible.sum() + 1))
    data = anndata.AnnData(normalize(counts, size, "counts10k-log1p")[:, eligible])
    sc.pp.highly_variable_genes(data, n_top_genes=10, flavor="seurat")
    top = np.flatnonzero(eligible)[data.var["highly_variable"].to_numpy()]
    assert set(top) == set(np.flatnonzero(ranks <= 10))


def test_hvgs_by_variance():
    variability = np.array([1.0, 3.0, 9.0, np.nan, 2.0])
    ranks = rank_hvgs(variability, np.array([True, True, False, True, True]))
    np.testing.assert_array_equal(ranks, [3, 1, np.nan, np.nan, 2])


def test_no_gene_is_detected_widely():
    rare = sp.csr_matrix((80, 60), dtype=np.float32)
    eligible = detected(rare)
    assert not eligible.any()
    assert np.isnan(rank_hvgs(np.ones(60), eligible)).all()
    assert np.isnan(dispersion(rare, np.zeros(80), eligible)).all()


def table(*names):
    return pd.DataFrame(
        {"gene_id": [f"ENSG{n}" for n in names], "symbol": list(names)},
        index=pd.Index(names, name="gene"),
    )


def test_panels(tmp_path, capsys):
    tables = {"s": table("A", "B", "C"), "t": table("C", "B", "D")}
    assert list(select_panel(tables, "common")["gene"]) == ["B", "C"]
    assert list(select_panel(tables, "union")["gene"]) == ["A", "B", "C", "D"]
    path = tmp_path / "panel.yaml"
    path.write_text("genes:\n- D\n- X  # unmeasured\n- A\n")
    chosen = select_panel(tables, str(path))
    assert list(chosen["gene"]) == ["D", "X", "A"]
    assert list(chosen["gene_id"]) == ["ENSGD", "", "ENSGA"]
    assert "2 of 3 genes are measured" in capsys.readouterr().out


def test_bad_panels(tmp_path):
    tables = {"s": table("A"), "t": table("B")}
    with pytest.raises(InputError, match="no gene is measured on all"):
        select_panel(tables, "common")
    path = tmp_path / "panel.txt"
    for text, message in (
        ("X\nY\n", "none of the 2 genes"),
        ("", "names no gene"),
        ("A\nA\n", "names A twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            select_panel(tables, str(path))
    with pytest.raises(InputError, match="does not exist"):
        read_gene_list(tmp_path / "absent.txt")


def test_moments_skip_unmeasured():
    rng = np.random.default_rng(1)
    slide = np.repeat([0, 1, 2], [8, 7, 5])
    y, measured = rng.normal(size=(20, 5)), rng.random((3, 5)) < 0.7
    measured[0, :4], measured[:, 4] = True, False
    mean, variance = moments(sp.csr_matrix(np.where(measured[slide], y, 0)), measured, slide)
    for g in range(4):
        values = y[measured[slide, g], g]
        np.testing.assert_allclose((mean[g], variance[g]), (values.mean(), values.var()))
    assert (mean[4], variance[4]) == (0, 0)
