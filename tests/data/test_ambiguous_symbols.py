"""Symbols that stand for several genes place none; a map of symbols takes genes at once."""

import time

import numpy as np
import pandas as pd
import pytest
from cohorts import GENES, write_cohort
from numpy.testing import assert_array_equal

from histokit.data.cohort import Cohort
from histokit.data.gene_keys import positions
from histokit.data.gene_map import GeneMap

IDS = [f"ENSG{i:011d}" for i in range(6)]


def genes(names, ids=None, symbols=None):
    return pd.DataFrame(
        {"gene": names, "gene_id": ids or [""] * len(names), "symbol": symbols or names},
        index=names,
    )


@pytest.mark.parametrize("panel_id", [IDS[0], ""])
def test_a_symbol_that_a_slide_has_twice_places_no_gene(panel_id):
    slide = genes(["TBCE", "TBCE-1", "B"], symbols=["TBCE", "TBCE", "B"])
    panel = genes(["B", "TBCE"], ["", panel_id])
    assert positions(slide, panel).tolist() == [2, -1]
    with_ids = genes(["TBCE", "TBCE-1", "B"], [IDS[1], IDS[2], ""], ["TBCE", "TBCE", "B"])
    assert positions(with_ids, panel).tolist() == [2, -1]


def test_a_symbol_that_the_panel_has_twice_is_placed_by_id_alone():
    panel = genes(["TBCE", "TBCE-1", "B"], IDS[:3], ["TBCE", "TBCE", "B"])
    assert positions(genes(["B", "TBCE"]), panel).tolist() == [-1, -1, 0]
    named = genes(["TBCE", "B"], [IDS[1], IDS[2]])
    assert positions(named, panel).tolist() == [-1, 0, 1]


def test_a_slides_own_names_are_one_gene_each(tmp_path):
    write_cohort(tmp_path, {"A1": ("IDC", "A", 9)})
    cohort = Cohort(tmp_path, "tiny")
    whole = cohort.load("A1").counts.toarray()
    import anndata

    path = tmp_path / "expression/A1.h5ad"
    data = anndata.read_h5ad(path)
    data.var["symbol"] = ["GENE0", "GENE0", *GENES[2:]]
    data.write_h5ad(path)
    found = cohort.load("A1", ["GENE1", "GENE0", "GENE7"])
    assert found.measured.all()
    assert_array_equal(found.counts.toarray(), whole[:, [1, 0, 7]])


def by_loop(gene_map, var):
    """``GeneMap.apply``, one gene after another."""
    ids = [i or gene_map.ids.get(s, "") for i, s in zip(var["gene_id"], var["symbol"], strict=True)]
    leader = {}
    for measured in (True, False):
        for row in np.flatnonzero(var["measured"].to_numpy() == measured):
            leader.setdefault(ids[row] or ("no id", row), row)
    first = np.array([leader[i or ("no id", row)] for row, i in enumerate(ids)])
    kept = np.unique(first)
    place = np.searchsorted(kept, first)
    own = first == np.arange(len(first))
    out = ~own & ((gene_map.merge == "first") | ~var["measured"].to_numpy())
    return var.assign(gene_id=ids).iloc[kept], np.where(out, -1, place)


@pytest.mark.parametrize("merge", ["sum", "first", "log-sum"])
@pytest.mark.parametrize("seed", range(5))
def test_a_map_takes_genes_at_once_as_one_after_another(merge, seed):
    rng = np.random.default_rng(seed)
    names = [f"G{i}" for i in range(200)]
    pool = [f"ENSG{i:011d}" for i in range(90)]
    gene_map = GeneMap({n: str(rng.choice(pool)) for n in names if rng.random() < 0.7}, merge)
    var = genes(names, [str(rng.choice(pool)) if rng.random() < 0.2 else "" for _ in names])
    var["measured"] = rng.random(200) < 0.8
    table, place = gene_map.apply(var)
    expected, places = by_loop(gene_map, var)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert_array_equal(place, places)


def test_a_map_is_no_walk_through_genes():
    """39,000 genes are mapped at each reading of a slide: a loop took longer than the reading."""
    names = [f"G{i}" for i in range(39_000)]
    gene_map = GeneMap({name: f"ENSG{i % 35_000:011d}" for i, name in enumerate(names)})
    var = genes(names).assign(measured=True)
    gene_map.apply(var)
    begun = time.process_time()
    gene_map.apply(var)
    quick = time.process_time() - begun
    begun = time.process_time()
    by_loop(gene_map, var)
    assert quick < time.process_time() - begun
