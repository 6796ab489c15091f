"""Counts as people have them: layers, antibodies, versions, spreadsheets, damage."""

import gzip
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from cohorts import write_cohort

from histokit.core import tables
from histokit.core.errors import InputError
from histokit.data import counts_hdf5
from histokit.data.cohort import Cohort
from histokit.data.counts import read_counts
from histokit.data.gene_keys import gene_key, positions
from histokit.data.gene_sets import read_gmt, read_universe
from histokit.data.genes import read_gene_list, select_panel

NAMES = ["EPCAM", "KRT8", "CD3E", "COL1A1"]
IDS = [f"ENSG0000000000{i}" for i in range(4)]
COUNTS = np.array([[1, 0, 2, 5], [0, 3, 0, 1], [4, 0, 0, 2]])


def adata(x=COUNTS, names=NAMES, **var):
    table = anndata.AnnData(sp.csr_matrix(x.astype(np.float32)))
    table.obs_names = [f"b{i}" for i in range(len(x))]
    table.var_names = names
    for key, values in var.items():
        table.var[key] = values
    return table


def write_10x(path, x=COUNTS, kinds=None, ids=IDS, names=NAMES):
    matrix = sp.csr_matrix(x)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = (
            matrix.data, matrix.indices, matrix.indptr,
        )  # fmt: skip
        group["shape"] = [x.shape[1], x.shape[0]]
        group["barcodes"] = [f"b{i}".encode() for i in range(len(x))]
        features = group.create_group("features")
        features["id"], features["name"] = [list(map(str.encode, v)) for v in (ids, names)]
        features["feature_type"] = [k.encode() for k in kinds or ["Gene Expression"] * len(ids)]
        features["genome"] = [b"GRCh38"] * len(ids)
    return path


def test_antibodies_are_no_genes(tmp_path):
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression", "Gene Expression"]
    adata(feature_types=kinds).write_h5ad(tmp_path / "a.h5ad")
    write_10x(tmp_path / "a.h5", kinds=kinds)
    for name in ("a.h5ad", "a.h5"):
        found = read_counts(tmp_path / name, "S")
        assert found.var_names.tolist() == ["EPCAM", "CD3E", "COL1A1"]
        assert found.X.toarray().tolist() == COUNTS[:, [0, 2, 3]].tolist()
        assert found.uns["other_features"] == 1
        assert found.uns["note"] == "left out 1 Antibody Capture"
    adata(feature_types="Antibody Capture").write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match="no feature of the type 'Gene Expression'"):
        read_counts(tmp_path / "a.h5ad", "S")
    adata(feature_types=["protein_coding", "lncRNA", "IG_C_gene", "Peaks"]).write_h5ad(
        tmp_path / "a.h5ad"
    )
    assert read_counts(tmp_path / "a.h5ad", "S").n_vars == 3  # biotypes are genes, peaks are none


def test_row_numbers_are_no_names(tmp_path):
    path = tmp_path / "a.h5ad"
    adata(names=["0", "1", "2", "3"], gene_name=NAMES).write_h5ad(path)
    assert read_counts(path, "S").var_names.tolist() == NAMES
    adata(names=["0", "1", "2", "3"]).write_h5ad(path)
    with pytest.raises(InputError, match="these are row numbers"):
        read_counts(path, "S")


def test_genes_of_slides_in_another_order_are_joined_by_name_not_by_number(shared, tmp_path):
    case = shared / "cases" / "h5ad-var-names-are-numbers" / "counts"
    slides = [read_counts(case / f"S{i}.h5ad", "S") for i in (1, 2)]
    assert "TP53" in slides[0].var_names
    assert slides[0].var_names.tolist() != slides[1].var_names.tolist()
    assert set(slides[0].var_names) == set(slides[1].var_names)


def test_a_normalized_x_names_the_layer_that_holds_the_counts(tmp_path):
    path = tmp_path / "a.h5ad"
    table = adata(COUNTS / 3)
    table.layers["counts"] = sp.csr_matrix(COUNTS.astype(np.float32))
    table.layers["scaled"] = COUNTS / 7
    table.raw = adata()
    table.write_h5ad(path)
    with pytest.raises(InputError, match="raw counts are in counts, raw, give --layer counts"):
        read_counts(path, "S")
    for layer in ("counts", "raw"):
        assert read_counts(path, "S", layer).X.toarray().tolist() == COUNTS.tolist()
    with pytest.raises(InputError, match="has no layer 'nope'; there are counts, scaled, raw"):
        read_counts(path, "S", "nope")
    with pytest.raises(InputError, match="is not a whole number"):
        read_counts(path, "S", "scaled")
    adata(COUNTS / 3).write_h5ad(path)
    with pytest.raises(InputError, match="is not a whole number"):
        read_counts(path, "S")


def test_an_absent_x_names_the_layers(tmp_path):
    path = tmp_path / "a.h5ad"
    table = adata()
    table.layers["raw_counts"] = table.X
    del table.X
    table.write_h5ad(path)
    with pytest.raises(InputError, match="has no X; it has the layers raw_counts, give --layer"):
        read_counts(path, "S")
    assert read_counts(path, "S", "raw_counts").X.sum() == COUNTS.sum()


def test_rounded_and_scaled_values_are_no_counts(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(20, (40, 300)).astype(float)
    names = [f"G{i}" for i in range(300)]
    adata(x, names).write_h5ad(tmp_path / "raw.h5ad")
    assert read_counts(tmp_path / "raw.h5ad", "S").n_vars == 300
    adata(np.round(x / x.sum(1, keepdims=True) * 1e4), names).write_h5ad(tmp_path / "cpm.h5ad")
    with pytest.raises(InputError, match=r"all spots add up to about (9,99|10,00)"):
        read_counts(tmp_path / "cpm.h5ad", "S")


def test_the_format_is_told_by_content(tmp_path):
    write_10x(tmp_path / "a.h5ad")
    adata().write_h5ad(tmp_path / "b.h5")
    for name in ("a.h5ad", "b.h5"):
        assert read_counts(tmp_path / name, "S").X.toarray().tolist() == COUNTS.tolist()
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["something"] = [1]
    with pytest.raises(InputError, match=r"neither AnnData .* nor 10x .* it holds something"):
        read_counts(tmp_path / "c.h5", "S")


def test_elements_of_a_newer_anndata_do_not_matter(tmp_path):
    path = tmp_path / "a.h5ad"
    table = adata()
    table.uns["note"] = "x"
    table.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["uns/note"].attrs["encoding-type"] = "from-the-future"
        file.create_group("unknown").attrs["encoding-type"] = "zebra"
    assert read_counts(path, "S").X.toarray().tolist() == COUNTS.tolist()


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_delimiters_are_told_by_content_and_blanks_do_not_count(tmp_path, delimiter, suffix):
    path = tmp_path / f"a{suffix}"
    rows = [["", "EPCAM ", " KRT8"], ["b0", "1", "0"], ["b1", "0", "3"]]
    text = "\n".join(delimiter.join(row) for row in rows) + "\n\n"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    found = read_counts(path, "S")
    assert found.var_names.tolist() == ["EPCAM", "KRT8"]
    assert found.X.toarray().tolist() == [[1, 0], [0, 3]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b,EPCAM,in_tissue,array_row\nb0,1,1,3\n", r"no genes \(in_tissue, array_row\)"),
        ("b,EPCAM,leiden\nb0,1,3\n", r"no genes \(leiden\)"),
        ("b,BLANK_1,NegControlProbe_1\nb0,1,3\n", "holds no gene: all of its 2"),
        ("b,EPCAM\nb0,1.5\n", "is not a whole number"),
        ("b,V1,V2\nb0,1,3\n", "these are numbers of columns"),
        ("b,EPCAM,pct_counts_mt\nb0,1,3\n", r"no genes \(pct_counts_mt\)"),
        ("b;EPCAM;KRT8\nb0;1,5;2\n", "is no number"),
        ("b,EPCAM\n", "has a header and no rows"),
        ("b,EPCAM,\nb0,1,2\n", r"a gene without a name \(number 2\)"),
        ("b,EPCAM\nb0,20000001\n", "is above 16,777,216"),
        (f"b,EPCAM,{IDS[0]}|GENE|0a1b\nb0,1,2\n", "counts probes, several of them a gene"),
        ("", "is empty"),
        ("b,EPCAM\nb\u00e9,1\n".encode("latin-1"), "is not UTF-8"),
        (b"b,EPCAM\nb0," + b"1" * 200_000 + b"\n", "field larger than field limit"),
    ],
)
def test_tables_that_are_no_counts_end_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said) as caught:
        read_counts(path, "S")
    assert "a.csv" in str(caught.value)


def test_names_that_became_dates_are_dropped_unless_an_id_says_what_they_were(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("b,EPCAM,1-Mar,1-Mar,2-Sep,Dec-1,43891,2001-03-01,JUN-1\nb0,1,2,3,4,5,6,7,8\n")
    found = read_counts(path, "S")
    assert found.var_names.tolist() == ["EPCAM", "JUN-1"]
    assert found.uns["date_names"] == 6
    adata(names=["EPCAM", "1-Mar", "2-Sep", "KRT8"], gene_id=IDS).write_h5ad(tmp_path / "a.h5ad")
    found = read_counts(tmp_path / "a.h5ad", "S").var
    assert found["gene_id"].tolist() == IDS
    assert found.index.tolist() == ["EPCAM", IDS[1], IDS[2], "KRT8"]


def test_probes_are_no_genes(tmp_path):
    ids = [f"{i}|{n}|0a1b" for i, n in zip(IDS, NAMES, strict=True)]
    with pytest.raises(InputError, match="counts probes and not genes"):
        read_counts(write_10x(tmp_path / "raw_probe_bc_matrix.h5", ids=ids), "S")


# ---- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "place", "value", "said"),
    [
        ("indices", 2, 99_999_999, "is in column 99999999 of 4"),
        ("indices", 2, -1, "is in column -1 of 4"),
        ("indices", 1, 0, "row 0 of the matrix holds column 0 twice"),
        ("indptr", 1, 100, "row offsets"),
        ("indptr", 3, 2, "row offsets"),
        ("indptr", 0, 1, "row offsets"),
    ],
)
@pytest.mark.parametrize("kind", ["10x", "h5ad"])
def test_a_damaged_index_never_reaches_the_arithmetic(tmp_path, kind, key, place, value, said):
    path, group = tmp_path / "a.h5", "matrix"
    write_10x(path)
    if kind == "h5ad":
        adata().write_h5ad(path)
        group = "X"
    with h5py.File(path, "r+") as file:
        array = file[f"{group}/{key}"][:]
        array[place] = value
        file[f"{group}/{key}"][:] = array
    with pytest.raises(InputError, match=said):
        read_counts(path, "S")


def test_columns_in_any_order_are_sorted(tmp_path):
    path = write_10x(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for key in ("data", "indices"):
            array = file[f"matrix/{key}"][:]
            array[:3] = array[:3][::-1]
            file[f"matrix/{key}"][:] = array
    assert read_counts(path, "S").X.toarray().tolist() == COUNTS.tolist()


def test_the_same_column_at_the_end_of_one_row_and_the_start_of_the_next_is_fine(tmp_path):
    x = np.array([[0, 1], [0, 2], [0, 0], [3, 0], [4, 0]])
    path = write_10x(tmp_path / "a.h5", x, ids=IDS[:2], names=NAMES[:2])
    assert read_counts(path, "S").X.toarray().tolist() == x.tolist()


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    path = write_10x(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        file["matrix"].create_dataset("data", (10**12,), np.int32, chunks=(10**6,))
    with pytest.raises(InputError, match="asks for 8,000 GB of memory"):
        read_counts(path, "S")


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LINE_LIMIT", 10_000)
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b"b\tEPCAM\n" + b"0\t" * 100_000))
    with pytest.raises(InputError, match="is longer than 10,000 characters"):
        read_counts(path, "S")


@pytest.mark.parametrize("change", ["missing", "scalar", "text", "kind"])
def test_hdf5_of_another_shape_ends_in_one_sentence(tmp_path, change):
    path = write_10x(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        group = file["matrix"]
        del group["indices"]
        if change == "scalar":
            group["indices"] = 3
        if change == "text":
            group["indices"] = ["a", "b"]
        if change == "kind":
            group.create_group("indices")
    with pytest.raises(InputError, match=r"a\.h5"):
        read_counts(path, "S")


def test_real_cases_are_read_or_refused(shared, tmp_path):
    cases = shared / "cases"
    found = read_counts(cases / "10x-h5-named-h5ad" / "counts" / "S1.h5ad", "S1")
    assert found.n_vars > 1
    found = read_counts(cases / "h5ad-antibody-features" / "counts" / "S1.h5ad", "S1")
    assert found.uns["other_features"] > 0
    assert read_counts(cases / "h5ad-of-newer-anndata" / "counts" / "S1.h5ad", "S1").n_vars > 1
    for path in (
        "fuzz-hest-h5/extra_root_key.h5ad",
        "fuzz-segv-10x-h5/a.h5",
        "fuzz-gz-bitflip/a.tsv.gz",
    ):
        with pytest.raises(InputError, match=path.rpartition("/")[2]):
            read_counts(cases / path, "S")


def test_space_ranger_matrices_are_read(real_data):
    for path in sorted((real_data / "spaceranger").rglob("*.h5")):
        found = read_counts(path, "S")
        assert found.n_obs > 10
        assert (found.var["gene_id"] != "").all()


# ---- which genes are the same ------------------------------------------------------------------


def genes(names, ids=None, symbols=None):
    ids = ids or [""] * len(names)
    return pd.DataFrame({"gene_id": ids, "symbol": symbols or names}, index=names)


def test_ids_join_genes_that_slides_call_differently():
    tables = {
        "A": genes(["OLD1", "B", "TBCE", "TBCE-1"], IDS, ["OLD1", "B", "TBCE", "TBCE"]),
        "B": genes(["TBCE", "NEW1", "B", "TBCE-1"], [IDS[3], IDS[0], IDS[1], IDS[2]],
                   ["TBCE", "NEW1", "B", "TBCE"]),
    }  # fmt: skip
    key = gene_key(tables.items())
    assert key.column == "gene_id"
    assert "4 genes, 4 on all slides; 3 are called differently" in str(key)
    panel = select_panel(tables, "common", key)
    assert panel["gene_id"].tolist() == IDS
    assert panel["gene"].is_unique
    assert positions(tables["A"], panel).tolist() == [0, 1, 2, 3]
    assert positions(tables["B"], panel).tolist() == [1, 2, 3, 0]


def test_one_slide_without_ids_makes_symbols_the_key_and_ambiguous_ones_take_no_part():
    tables = {
        "A": genes(["B", "TBCE", "TBCE-1"], IDS[:3], ["B", "TBCE", "TBCE"]),
        "B": genes(["TBCE", "B"]),
    }
    key = gene_key(tables.items())
    assert key.column == "symbol"
    assert key.ambiguous == ("TBCE",)
    assert "B names ids for half of its genes at most" in str(key)
    panel = select_panel(tables, "union", key)
    assert panel["gene"].tolist() == ["B"]
    assert [positions(table, panel).tolist() for table in tables.values()] == [[0], [1]]


def test_equal_symbols_with_other_ids_are_never_joined():
    panel = pd.DataFrame({"gene": ["X"], "gene_id": [IDS[0]], "symbol": ["X"]})
    other = genes(["X", "Y"], [IDS[1], ""])
    assert positions(other, panel).tolist() == [-1]
    assert positions(genes(["X", "Y"]), panel).tolist() == [0]


def test_versions_of_ids_do_not_split_genes(tmp_path):
    tables = {}
    for name, versions in (("A", "1234"), ("B", "1294")):
        names = [f"{i}.{v}" for i, v in zip(IDS, versions, strict=True)]
        adata(names=names).write_h5ad(tmp_path / f"{name}.h5ad")
        tables[name] = read_counts(tmp_path / f"{name}.h5ad", name).var
    panel = select_panel(tables, "common")
    assert panel["gene_id"].tolist() == IDS
    assert len(select_panel(tables, "union")) == 4


def test_ids_here_and_symbols_there_are_named(capsys):
    tables = {"A": genes(IDS, IDS), "B": genes(NAMES)}
    for panel in ("common", "union"):
        with pytest.raises(InputError, match="A names its genes by Ensembl ids alone and B by"):
            select_panel(tables, panel)
    named = {"A": genes(IDS, IDS), "C": genes(NAMES, IDS)}  # C says which are the same
    assert select_panel(named, "union")["gene_id"].tolist() == IDS


def test_a_panel_of_ids_keeps_the_names_of_its_genes(tmp_path):
    (tmp_path / "p.yaml").write_text(f"- {IDS[2]}.7\n- ENSG00000099999\n- {IDS[0]}\n")
    table = genes(NAMES, IDS)
    panel = select_panel({"A": table}, str(tmp_path / "p.yaml"))
    assert panel["gene"].tolist() == ["CD3E", "ENSG00000099999", "EPCAM"]
    assert panel["gene_id"].tolist() == [IDS[2], "ENSG00000099999", IDS[0]]
    assert panel["symbol"].tolist() == ["CD3E", "", "EPCAM"]
    assert positions(table, panel).tolist() == [2, -1, 0]
    (tmp_path / "p.yaml").write_text(f"- {IDS[2]}\n- CD3E\n")
    with pytest.raises(InputError, match=f"names one gene twice, as {IDS[2]} and as CD3E"):
        select_panel({"A": table}, str(tmp_path / "p.yaml"))


def test_the_papers_panel_can_be_scored_by_symbols(shared):
    listed = read_gene_list(shared / "genesets" / "stpath_genes.yaml")
    assert len(listed) == 38_982
    table = genes(["TP53", "ERBB2"], ["ENSG00000141510", "ENSG00000141736"])
    panel = select_panel({"A": table}, str(shared / "genesets" / "stpath_genes.yaml"))
    assert panel["gene"].tolist().count("TP53") == 1
    assert panel.set_index("gene").loc["ERBB2", "gene_id"] == "ENSG00000141736"


def test_a_slide_with_few_genes_is_named(capsys):
    names = [f"G{i}" for i in range(1000)]
    tables = {"A": genes(names), "B": genes(names), "X": genes(names[:313])}
    assert len(select_panel(tables, "common")) == 313
    assert "only 313 genes because slide X measured 313" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["list.json", "null.json", "panel.txt"])
def test_gene_lists_of_another_kind_end_in_one_sentence(shared, tmp_path, name):
    shutil.copy(shared / "cases" / "fuzz-gene-list" / name, tmp_path)
    with pytest.raises(InputError, match=name):
        read_gene_list(tmp_path / name)


def test_dense_matrices_go_in_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(counts_hdf5, "_ROWS", 2)
    table = adata()
    table.X = COUNTS.astype(np.float32)
    table.write_h5ad(tmp_path / "a.h5ad")
    assert read_counts(tmp_path / "a.h5ad", "S").X.toarray().tolist() == COUNTS.tolist()


def test_a_gmt_without_descriptions_and_an_empty_universe_are_refused(tmp_path):
    path = tmp_path / "a.gmt"
    path.write_text("ONE\tA\tB\tC\nTWO\tB\tA\tC\nTHREE\tC\tA\n")
    with pytest.raises(InputError, match="lack the second column"):
        read_gmt(path)
    path.write_text("ONE\tna\tB\tC\nTWO\tA\tB\tC\n")
    assert read_gmt(path) == {"ONE": ["B", "C"], "TWO": ["B", "C"]}
    (tmp_path / "genes.csv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_universe(tmp_path / "genes.csv")


def test_copies_on_chromosome_y_keep_their_ids(tmp_path):
    ids = ["ENSG00000182378.15", "ENSG00000182378.15_PAR_Y", IDS[2], IDS[3]]
    adata(gene_id=ids).write_h5ad(tmp_path / "a.h5ad")
    found = read_counts(tmp_path / "a.h5ad", "S").var["gene_id"].tolist()
    assert found == ["ENSG00000182378", "ENSG00000182378_PAR_Y", IDS[2], IDS[3]]


def test_one_gene_without_an_id_does_not_cost_the_others_theirs():
    names, ids = [f"G{i}" for i in range(100)], [f"ENSG{i:011d}" for i in range(100)]
    first = genes([*names, "EGFP"], [*ids, ""])
    renamed = ["NEW" if name == "G5" else name for name in names]
    second = genes(["EGFP", *renamed], ["", *ids])
    key = gene_key([("A", first), ("B", second)])
    assert key.column == "gene_id"
    assert "101 genes, 101 on all slides; 1 are called differently" in str(key)
    panel = select_panel({"A": first, "B": second}, "common", key)
    assert len(panel) == 101
    assert positions(second, panel).tolist() == [*range(1, 101), 0]
    without = genes(["NEW", "EGFP", "G7"], ["", "", ids[7]])  # NEW is placed by the one id it has
    assert positions(without, panel).tolist()[7] == 2
    key = gene_key([("A", first), ("B", second), ("C", without.iloc[[2, 0]]), ("D", second)])
    assert key.column == "symbol"  # C names half of its genes


def test_a_gene_without_an_id_is_placed_by_the_one_id_of_its_symbol():
    first = genes(["A", "B", "C"], [IDS[0], IDS[1], IDS[2]])
    second = genes(["C", "A", "B"], [IDS[2], IDS[0], ""])
    panel = select_panel({"S": first, "T": second}, "union")
    assert panel["gene"].tolist() == ["A", "B", "C"]
    assert positions(second, panel).tolist() == [1, 2, 0]


def test_few_spots_that_add_up_alike_are_scaled_too(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(50, (8, 40)) * rng.uniform(0.5, 2, (8, 1)) // 1
    names = [f"G{i}A" for i in range(40)]
    adata(x, names).write_h5ad(tmp_path / "raw.h5ad")
    assert read_counts(tmp_path / "raw.h5ad", "S").n_obs == 8
    adata(np.round(x / x.sum(1, keepdims=True) * 1e4), names).write_h5ad(tmp_path / "cpm.h5ad")
    with pytest.raises(InputError, match="these are scaled values"):
        read_counts(tmp_path / "cpm.h5ad", "S")


def test_files_of_anndata_before_0_7_keep_to_genes(tmp_path):
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        file["X"] = COUNTS.astype(np.float32)
        file["obs"] = np.array([(b"b0",), (b"b1",), (b"b2",)], [("index", "S10")])
        rows = [(name.encode(), int(i == 3)) for i, name in enumerate(NAMES)]
        file["var"] = np.array(rows, [("index", "S10"), ("feature_types", "i1")])
        file["uns/feature_types_categories"] = [b"Gene Expression", b"Antibody Capture"]
    found = read_counts(path, "S")
    assert found.var_names.tolist() == NAMES[:3]
    assert found.uns["other_features"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [("absent", "no feature_type"), ("short", "4 features for a matrix"), ("probes", "probes")],
)
def test_10x_files_that_do_not_say_what_is_a_gene_are_refused(tmp_path, change, said):
    ids = [IDS[0], IDS[0], IDS[2], IDS[3]] if change == "probes" else IDS
    path = write_10x(tmp_path / "a.h5", ids=ids)
    with h5py.File(path, "r+") as file:
        features = file["matrix/features"]
        if change == "probes":
            features["probe_region"] = [b"spliced"] * 4
        else:
            del features["feature_type"]
        if change == "short":
            features["feature_type"] = [b"Gene Expression"] * 3
    with pytest.raises(InputError, match=said):
        read_counts(path, "S")


def test_spike_ins_are_no_genes_and_symbols_are_found_however_they_are_spelled(tmp_path):
    path = tmp_path / "a.h5ad"
    adata(feature_biotype=["gene", "gene", "spike-in", "gene"]).write_h5ad(path)
    assert read_counts(path, "S").var_names.tolist() == ["EPCAM", "KRT8", "COL1A1"]
    for column in ("Symbol", "features"):
        adata(names=list("0123"), **{column: NAMES}).write_h5ad(path)
        assert read_counts(path, "S").var_names.tolist() == NAMES
    adata(names=[*IDS[:3], "Custom"], Symbol=[*NAMES[:3], "x"]).write_h5ad(path)
    found = read_counts(path, "S").var
    assert found.index.tolist() == [*NAMES[:3], "Custom"]
    assert found["gene_id"].tolist() == [*IDS[:3], ""]


def test_a_part_of_a_newer_anndata_that_is_needed_is_named(tmp_path):
    path = tmp_path / "a.h5ad"
    adata(gene_id=IDS).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["var/gene_id"].attrs["encoding-type"] = "from-the-future"
    with pytest.raises(InputError, match="update anndata"):
        read_counts(path, "S")


def test_gene_sets_of_ids_and_of_transcription_factors(tmp_path):
    path = tmp_path / "a.gmt"
    path.write_text(f"ONE\t{IDS[0]}\t{IDS[1]}\nTWO\t{IDS[2]}\t{IDS[3]}\n")
    with pytest.raises(InputError, match="lack the second column"):
        read_gmt(path)
    path.write_text("TP53_UP\tTP53\tMYC\nMYC_UP\tMYC\tTP53\n")
    assert read_gmt(path) == {"TP53_UP": ["MYC"], "MYC_UP": ["TP53"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [("barcodes", ["A1-0"] * 40), ("features", np.zeros((40, 16), int)),
     ("features", np.full((40, 16), b"x"))],
)  # fmt: skip
def test_features_that_are_none_are_refused(tmp_path, key, value):
    data = write_cohort(tmp_path / "data")
    with h5py.File(data / "features" / "tiny" / "A1.h5", "r+") as file:
        del file[key]
        file[key] = value
    with pytest.raises(InputError, match="floats and unique barcodes were expected"):
        Cohort(data, "tiny").load("A1")
