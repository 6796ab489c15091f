"""Symbols to Ensembl ids by a given table, and symbols that share one."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.data.gene_map import GeneMap, read_gene_map

IDS = {"A": "ENSG00000000001", "A2": "ENSG00000000001", "B": "ENSG00000000002"}
NAMES = ["A", "B", "A2", "C", "D"]
COUNTS = sp.csr_matrix(np.array([[1, 5, 2, 0, 7], [0, 0, 3, 4, 0]], dtype=np.float32))


def genes(measured=(True,) * 5, ids=("",) * 5):
    return pd.DataFrame({"gene_id": ids, "symbol": NAMES, "measured": measured}, index=NAMES)


def merged(merge, **columns):
    table, place = (given := GeneMap(IDS, merge)).apply(genes(**columns))
    return table, given.merged(COUNTS, place, len(table)).toarray()


def test_genes_of_one_id_are_one():
    table, counts = merged("sum")
    assert table.index.tolist() == ["A", "B", "C", "D"]
    assert table["gene_id"].tolist() == ["ENSG00000000001", "ENSG00000000002", "", ""]
    assert counts.tolist() == [[3, 5, 0, 7], [3, 0, 4, 0]]
    assert merged("first")[1].tolist() == [[1, 5, 0, 7], [0, 0, 4, 0]]


def test_log_sum_is_the_sum_of_logarithms_as_the_authors_add():
    table, counts = merged("log-sum")
    logs = pd.DataFrame(np.log1p(COUNTS.toarray()), columns=NAMES)
    names = {name: IDS.get(name, name) for name in NAMES}
    theirs = logs.T.groupby(names).sum().T
    own = pd.DataFrame(np.log1p(counts), columns=[i or g for g, i in table["gene_id"].items()])
    pd.testing.assert_frame_equal(own[theirs.columns], theirs, check_dtype=False)
    assert counts[0, 0] == (1 + 1) * (1 + 2) - 1
    assert counts.dtype == np.float32


def test_what_is_not_measured_has_no_part():
    table, counts = merged("sum", measured=(False, True, True, True, True))
    assert table.index.tolist() == ["B", "A2", "C", "D"]
    assert counts[:, 1].tolist() == [2, 3]
    table, _ = merged("sum", measured=(False, True, False, True, True))
    assert table["measured"].tolist() == [False, True, True, True]


def test_ids_of_the_slide_stay():
    table, _ = merged("sum", ids=("", "ENSG00000000009", "", "", ""))
    assert table.loc["B", "gene_id"] == "ENSG00000000009"


def test_maps_are_read(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"A": "ENSG00000000001.5"}))
    assert read_gene_map(tmp_path / "m.json").ids == {"A": "ENSG00000000001"}
    given = GeneMap(IDS, "first")
    given.write(tmp_path / "m.csv")
    assert read_gene_map(tmp_path / "m.csv", "first") == given


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.json", '{"A": 5}', "maps 'A' to '5'; an Ensembl gene id"),
        ("m.json", "{}", "maps no symbol"),
        ("m.csv", "symbol,gene_id\nA,ENSG00000000001\nA,ENSG00000000002\n", "'A' to ENSG0.*1 and"),
        ("m.csv", "name,id\nA,ENSG00000000001\n", "has no column 'symbol'"),
    ],
)
def test_wrong_maps_are_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_gene_map(tmp_path / name)
