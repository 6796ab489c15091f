import time
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cohorts import GENES, write_cohort

from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.gene_sets import load_gene_sets
from histokit.data.genes import normalize
from histokit.data.graph import TOUCHING, morans_i, spot_graph
from histokit.train import gene_programs

TARGET = "counts10k-log1p"
SETS = {"FIRST": GENES[:14], "SECOND": [*GENES[10:25], "OTHER"], "SMALL": GENES[:9]}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return Cohort(write_cohort(tmp_path_factory.mktemp("cohort")), "tiny")


def test_genes_are_ranked_by_mean_moran_over_slides(cohort):
    slides = ["A1", "B1", "C1"]
    genes, y = gene_programs.spatially_variable_genes(cohort, slides, TARGET, 20)
    means = []
    for slide_id in slides:
        slide = cohort.load(slide_id, GENES)
        expression = normalize(slide.counts, slide.library_size, TARGET)
        means.append(morans_i(expression, spot_graph(slide.centers, TOUCHING))["I"])
    means = np.mean(means, axis=0)
    best = np.argsort(-means)[:20]
    assert list(genes["gene"]) == [GENES[i] for i in best]
    np.testing.assert_allclose(genes["moran_i"], means[best])
    assert list(genes["svg_rank"]) == list(range(1, 21))
    assert y.shape == (40 + 45 + 38, 20)
    last = cohort.load("C1", list(genes["gene"]))
    expected = normalize(last.counts, last.library_size, TARGET)
    np.testing.assert_array_equal(y[-38:].toarray(), expected.toarray())


def test_rare_genes_and_genes_of_some_slides_take_no_part(tmp_path):
    folder = write_cohort(tmp_path, genes={"A1": GENES[3:]})
    path = folder / "expression/B1.h5ad"
    data = anndata.read_h5ad(path)
    counts = data.X.toarray()
    counts[4:, 5] = 0  # GENE5 in 4 of 45 spots
    data.X = sp.csr_matrix(counts)
    data.write_h5ad(path)
    genes, _ = gene_programs.spatially_variable_genes(
        Cohort(folder, "tiny"), ["A1", "B1"], TARGET, 30
    )
    assert set(genes["gene"]) == set(GENES[3:]) - {"GENE5"}


def test_programs_have_ten_genes(cohort):
    found = gene_programs.gene_programs(cohort, ["A1", "B1"], SETS, TARGET, 30)
    assert list(found.members) == ["FIRST", "SECOND"]
    assert found.members["SECOND"] == GENES[10:25]
    assert found.profiles.shape == (2, 30)
    table = found.table()
    assert list(table["num_genes"]) == [14, 15]
    assert table["genes"][0].split() == GENES[:14]


def test_profiles_are_the_equations():
    rng = np.random.default_rng(0)
    y = rng.random((6, 4)) - 0.5
    membership = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    expected = []
    for j in range(2):
        activity = [sum(y[n, k] * membership[k, j] for k in range(4)) for n in range(6)]
        weight = 1 / (1 + np.exp(-np.array(activity)))
        expected.append(sum(weight[n] * y[n] for n in range(6)) / weight.sum())
    np.testing.assert_allclose(gene_programs.profiles(sp.csr_matrix(y), membership), expected)


def test_saturated_sigmoid_gives_equal_profiles_and_standardizing_does_not(cohort):
    plain, standard = (
        gene_programs.gene_programs(cohort, ["A1", "B1"], SETS, TARGET, 30, standardize)
        for standardize in (False, True)
    )
    assert plain.similarity > 0.9999
    assert standard.similarity < 0.9
    # A standardized profile says what the program's spots express more than others: its genes.
    for profile, members in zip(standard.profiles, standard.members.values(), strict=True):
        own = standard.genes["gene"].isin(members).to_numpy()
        assert profile[own].mean() > 1.5 * profile[~own].mean()


def test_projection_keeps_lengths_and_unit_scales_them():
    profiles = np.random.default_rng(0).random((4, 50))
    prototypes = gene_programs.project(profiles, 4096)
    assert prototypes.dtype == torch.float32
    ratio = prototypes.square().sum(1).numpy() / 4096 / (profiles**2).mean(1)
    np.testing.assert_allclose(ratio, 1, atol=0.15)
    assert gene_programs.project(profiles, 64, unit=True).square().mean().item() == pytest.approx(1)


def test_no_pathway_large_enough(cohort):
    with pytest.raises(InputError, match="the best of 1, SMALL, has 9: raise --num-svgs"):
        gene_programs.gene_programs(cohort, ["A1", "B1"], {"SMALL": GENES[:9]}, TARGET, 30)


def test_fewer_spots_than_genes(tmp_path):
    folder = write_cohort(tmp_path, {"A1": ("IDC", "A", 12), "B1": ("IDC", "B", 9)})
    with pytest.raises(InputError, match=r"have 21 spots, fewer than the 25 genes .* --num-svgs"):
        gene_programs.gene_programs(Cohort(folder, "tiny"), ["A1", "B1"], SETS, TARGET, 25)


@pytest.mark.parametrize("how", ["absent", "nan"])
def test_slide_without_coordinates_is_named(tmp_path, how):
    folder = write_cohort(tmp_path)
    path = folder / "expression/B1.h5ad"
    data = anndata.read_h5ad(path)
    if how == "nan":
        data.obsm["spatial"][:] = np.nan
    else:
        del data.obsm["spatial"]
    data.write_h5ad(path)
    with pytest.raises(InputError, match=r"B1.* coordinates"):
        gene_programs.gene_programs(Cohort(folder, "tiny"), ["A1", "B1"], SETS, TARGET, 30)


def test_initialization_is_fast():
    rng = np.random.default_rng(0)
    y = sp.random(10_000, 200, 0.6, format="csr", random_state=0)
    centers = np.stack([np.arange(10_000) % 100, np.arange(10_000) // 100], 1) * 100.0
    membership = (rng.random((200, 64)) < 0.1).astype(float)
    morans_i(y[:, :2], spot_graph(centers, TOUCHING))  # imports and compiles
    start = time.perf_counter()
    morans_i(y, spot_graph(centers, TOUCHING))
    gene_programs.project(gene_programs.profiles(y, membership), 256)
    assert time.perf_counter() - start < 2


@pytest.mark.real
def test_hallmark_programs_of_real_sections(shared):
    extracted = Path(__file__).resolve().parents[2] / "work/results/data"
    if not extracted.is_dir():
        pytest.skip(f"no extracted sections in {extracted}")
    cohort = Cohort(extracted, "efficientnet-lite0")
    sets = load_gene_sets(str(shared / "genesets/h.all.v2025.1.Hs.symbols.gmt"))
    found = gene_programs.gene_programs(cohort, ["C2", "C3", "C4", "C5"], sets, TARGET)
    assert "HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION" in found.members
    assert found.similarity > 0.999
