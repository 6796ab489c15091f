import gzip

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tiny_slides import counts_table

from histokit.core.errors import InputError
from histokit.data.counts import read_counts


def write_10x(path, counts: pd.DataFrame, ids, kinds) -> None:
    matrix = sp.csr_matrix(counts.to_numpy())
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = matrix.data, matrix.indices
        group["indptr"], group["shape"] = matrix.indptr, matrix.shape[::-1]
        group["barcodes"] = [b.encode() for b in counts.index]
        group["features/name"] = [n.encode() for n in counts.columns]
        group["features/id"] = [i.encode() for i in ids]
        group["features/feature_type"] = [k.encode() for k in kinds]


def test_every_format_gives_the_same_counts(tmp_path):
    table = counts_table()
    ids = [f"ENSG{i:011d}" for i in range(table.shape[1])]
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv.gz", sep="\t")
    var = pd.DataFrame({"gene_ids": ids}, index=table.columns)
    obs = pd.DataFrame(index=table.index)
    anndata.AnnData(table.to_numpy().astype(np.float32), obs, var).write_h5ad(tmp_path / "a.h5ad")
    write_10x(tmp_path / "a.h5", table, ids, ["Gene Expression"] * len(ids))
    for name in ("a.csv", "a.tsv.gz", "a.h5ad", "a.h5"):
        found = read_counts(tmp_path / name, "a")
        assert found.X.format == "csr"
        assert found.X.dtype == np.float32
        np.testing.assert_array_equal(found.X.toarray(), table.to_numpy())
        assert found.obs_names.tolist() == table.index.tolist()
        assert found.var_names.tolist() == table.columns.tolist()
        assert found.var["measured"].all()
        if "h5" in name:
            assert found.var["gene_id"].tolist() == ids


def test_10x_keeps_gene_expression_alone(tmp_path):
    table = counts_table()
    kinds = ["Gene Expression"] * 5 + ["Antibody Capture"]
    write_10x(tmp_path / "a.h5", table, ["x"] * 6, kinds)
    assert read_counts(tmp_path / "a.h5", "a").var_names.tolist() == table.columns[:5].tolist()


def test_text_without_a_name_for_the_barcode_column(tmp_path):
    (tmp_path / "a.tsv").write_text("EPCAM\tKRT8\ns1\t1\t0\ns2\t0\t2.0\n")
    found = read_counts(tmp_path / "a.tsv", "a")
    assert found.var_names.tolist() == ["EPCAM", "KRT8"]
    np.testing.assert_array_equal(found.X.toarray(), [[1, 0], [0, 2]])


def test_control_probes_are_dropped_and_counted(tmp_path):
    controls = [
        "BLANK_0001",
        "NegControlProbe_00042",
        "NegControlCodeword_0500",
        "NegPrb3",
        "UnassignedCodeword_0001",
        "antisense_PROKR2",
        "DeprecatedCodeword_0321",
    ]
    table = counts_table(genes=8)
    table.columns = ["BLNK", *controls]
    table.to_csv(tmp_path / "a.csv")
    found = read_counts(tmp_path / "a.csv", "a")
    assert found.var_names.tolist() == ["BLNK"]
    assert found.uns["control_probes"] == len(controls)


def test_symbols_with_distinct_ids_are_made_unique(tmp_path):
    table = counts_table(genes=3)
    ids = ["ENSG00000000001", "ENSG00000000002.7", "ENSG00000000003"]
    var = pd.DataFrame({"gene_ids": ids}, index=["PINX1", "PINX1", "ACTB"])
    with pytest.warns(UserWarning, match="not unique"):
        data = anndata.AnnData(table.to_numpy(), pd.DataFrame(index=table.index), var)
    data.write_h5ad(tmp_path / "a.h5ad")
    found = read_counts(tmp_path / "a.h5ad", "a")
    assert found.var_names.tolist() == ["PINX1", "PINX1-1", "ACTB"]
    assert found.var["gene_id"].tolist() == [i[:15] for i in ids]
    assert found.var["symbol"].tolist() == ["PINX1", "PINX1", "ACTB"]
    assert found.uns["renamed_genes"] == 1


def test_ensembl_names_give_way_to_symbols(tmp_path):
    table = counts_table(genes=2)
    names = ["ENSG00000119888", "ENSG00000170421"]
    var = pd.DataFrame({"feature_name": ["EPCAM", "nan"]}, index=names)
    obs = pd.DataFrame(index=table.index)
    anndata.AnnData(table.to_numpy(), obs, var).write_h5ad(tmp_path / "a.h5ad")
    found = read_counts(tmp_path / "a.h5ad", "a")
    assert found.var_names.tolist() == ["EPCAM", "ENSG00000170421"]
    assert found.var["gene_id"].tolist() == names


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "is not a number"), (-1, "is negative"), (0.5, "is not a whole number")],
)
@pytest.mark.parametrize("suffix", [".csv", ".h5ad"])
def test_counts_that_are_not_raw(tmp_path, value, message, suffix):
    table = counts_table().astype(float)
    table.loc["spot4", "CD3E"] = value
    if suffix == ".csv":
        table.to_csv(tmp_path / "a.csv")
    else:
        anndata.AnnData(table).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match=f"slide S: .*CD3E in barcode spot4 {message}"):
        read_counts(tmp_path / f"a{suffix}", "S")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b,EPCAM,EPCAM\ns1,1,0\n", "gene 'EPCAM' twice"),
        ("b,EPCAM,KRT8\ns1,1,0\ns1,2,1\n", "barcode 's1' twice"),
        ("b,EPCAM,KRT8\ns1,1,0\ns2,1\n", "cut short"),
        ("b,EPCAM,KRT8\ns1,1,many\n", "no number"),
        ("", "empty"),
        ("b,EPCAM\n", "no rows"),
    ],
)
def test_bad_text(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_counts(tmp_path / "a.csv", "S")


def test_truncated_files(tmp_path):
    table = counts_table()
    anndata.AnnData(table.astype(float)).write_h5ad(tmp_path / "a.h5ad")
    whole = (tmp_path / "a.h5ad").read_bytes()
    (tmp_path / "a.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table.to_csv().encode())[:-30])
    for name in ("a.h5ad", "a.csv.gz"):
        with pytest.raises(InputError, match=r"truncated file|cut short|ended before"):
            read_counts(tmp_path / name, "S")
    with pytest.raises(InputError, match="does not exist"):
        read_counts(tmp_path / "absent.csv", "S")
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(InputError, match="no known counts format"):
        read_counts(tmp_path / "a.xlsx", "S")
