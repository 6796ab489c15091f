import gzip
import itertools
import random
import time
from fractions import Fraction

import gseapy
import pandas as pd
import pytest

from histokit.core.errors import InputError
from histokit.data.gene_sets import load_gene_sets, read_gmt, read_universe, rename
from histokit.evaluate.curation import curate, curate_for_panel, curate_with_table


def jaccard(a, b):
    a, b = set(a), set(b)
    return Fraction(len(a & b), len(a | b))


def random_sets(seed, num_sets=40, num_genes=60):
    rng = random.Random(seed)
    genes = [f"G{i}" for i in range(num_genes)]
    return {f"S{i}": rng.sample(genes, rng.randint(3, 12)) for i in range(num_sets)}


def released_rule(sets, tau):
    """The authors' rule by its definition: all pairs, exact fractions."""
    kept = []
    for name in sorted(sets, key=lambda name: -len(sets[name])):
        if all(jaccard(sets[name], sets[other]) <= tau for other in kept):
            kept.append(name)
    return kept


def paper_rule(sets, tau):
    """Remove the larger of a violating pair, the one with the smallest smaller set first."""
    order = sorted(sets, key=lambda name: len(sets[name]))
    while True:
        pairs = [p for p in itertools.combinations(order, 2) if jaccard(*map(sets.get, p)) > tau]
        if not pairs:
            return order
        order.remove(min(pairs, key=lambda p: order.index(p[0]))[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tau", [0.1, 0.25])
def test_both_rules_equal_their_definition(seed, tau):
    sets = random_sets(seed)
    limits = {"min_size": 1, "max_size": None, "max_jaccard": tau}
    assert list(curate(sets, **limits)) == released_rule(sets, Fraction(str(tau)))
    smaller = curate(sets, keep="smaller", **limits)
    assert list(smaller) == paper_rule(sets, Fraction(str(tau)))


def test_a_jaccard_index_of_exactly_a_tenth_stays():
    a = [f"A{i}" for i in range(10)]
    b = [f"B{i}" for i in range(10)] + ["A0", "A1"]  # 2 of 20
    assert 2 / 20 <= 0.1
    assert len(curate({"a": a, "b": b}, min_size=1)) == 2
    thirds = {"a": ["X", "Y"], "b": ["Y", "Z"]}  # 1 of 3, which no float equals
    assert len(curate(thirds, min_size=1, max_jaccard=Fraction(1, 3))) == 2
    assert len(curate(thirds, min_size=1, max_jaccard=0.3333333333333333)) == 1
    border = {"a": [f"G{i}" for i in range(20)], "b": [f"G{i}" for i in range(17, 30)]}  # 3 of 30
    assert len(curate(border, min_size=1)) == 2
    border["b"].pop()  # 3 of 29
    assert len(curate(border, min_size=1)) == 1


def test_the_table_says_why():
    sets = {
        "big": [f"G{i}" for i in range(8)],
        "large": [f"G{i}" for i in range(6)],
        "like": [f"G{i}" for i in range(1, 6)],
        "small": ["G9"],
        "foreign": ["X", "Y"],
    }
    universe = [f"G{i}" for i in range(20)]
    kept, table = curate_with_table(sets, universe, min_size=2, max_size=6)
    assert list(kept) == ["large"]
    table = table.set_index("name")
    assert table["kept"].to_dict() == {name: name == "large" for name in sets}
    assert table.loc["like", ["conflict", "jaccard"]].tolist() == ["large", 5 / 6]
    assert table["reason"].to_dict() == {
        "big": "more than 6 genes",
        "large": "",
        "like": "Jaccard index over 0.1",
        "small": "fewer than 2 genes",
        "foreign": "no gene in the universe",
    }


def test_the_universe_counts_before_the_size():
    sets = {"a": ["G0", "G1", "X", "G1"]}
    assert curate(sets, ["G1", "G0"], min_size=2, max_size=2) == {"a": ["G0", "G1"]}


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"max_jaccard": -0.1}, r"max_jaccard must lie in \[0, 1\]"),
        ({"max_jaccard": 1.5}, r"max_jaccard must lie in \[0, 1\], got 1.5"),
        ({"max_jaccard": float("nan")}, "max_jaccard"),
        ({"min_size": 9, "max_size": 3}, "got 9 to 3"),
        ({"min_size": 0}, "1 <= minimum"),
        ({"keep": "both"}, "keep must be larger or smaller"),
    ],
)
def test_limits_no_set_can_meet_are_refused(limits, match):
    with pytest.raises(InputError, match=match):
        curate({"a": ["G"]}, **limits)


def test_gmt_is_read_as_gseapy_reads_it(tmp_path):
    path = tmp_path / "a.gmt"
    path.write_text("ONE\tna\tA\tB\tC\nTWO\thttp://x\tB\tD\n\n")
    assert read_gmt(path) == gseapy.parser.read_gmt(str(path))
    with gzip.open(tmp_path / "a.gmt.gz", "wt") as file:
        file.write(path.read_text())
    assert load_gene_sets(str(tmp_path / "a.gmt.gz")) == read_gmt(path)


def test_two_go_terms_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "a.gmt").write_text("NAD\tGO:1\tA\tB\nNAD\tGO:2\tB\n")
    assert read_gmt(tmp_path / "a.gmt") == {"NAD (GO:1)": ["A", "B"], "NAD (GO:2)": ["B"]}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("A\tna\tG\nB\tna\n", "line 2 of .*a.gmt holds no gene set"),
        ("A\tna\tG\nB\n", "line 2"),
        ("A\tna\tG\n\nA\tna\tH\n", "line 3 of .* repeats the set A of line 1"),
        ("\n", "holds no gene set"),
    ],
)
def test_a_bad_gmt_is_named_with_its_line(tmp_path, text, match):
    (tmp_path / "a.gmt").write_text(text)
    with pytest.raises(InputError, match=match):
        read_gmt(tmp_path / "a.gmt")


def test_a_truncated_gzip_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.gmt.gz").write_bytes(gzip.compress(b"A\tna\tG\n" * 50)[:-9])
    with pytest.raises(InputError, match="not a whole GMT file"):
        read_gmt(tmp_path / "a.gmt.gz")
    with pytest.raises(InputError, match="does not exist"):
        load_gene_sets(str(tmp_path / "none.gmt"))


def test_a_library_that_cannot_be_fetched_asks_for_a_file(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(gseapy, "get_library", unreachable)
    with pytest.raises(InputError, match=r"MSigDB_Hallmark_2020 is neither a file nor .* GMT file"):
        load_gene_sets("MSigDB_Hallmark_2020")


PANEL = pd.DataFrame(
    {
        "gene": ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"],
        "gene_id": ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"],
        "symbol": ["TP53", "ERBB2", "ERBB2"],
    }
)


def test_symbols_are_translated_to_the_panels_ensembl_ids_and_losses_counted():
    sets, match = rename({"a": ["TP53", "ERBB2", "LOST"], "b": ["LOST"]}, PANEL)
    assert sets == {"a": ["ENSG00000000001", "ENSG00000000002"], "b": []}
    assert (match.column, match.named, match.lost) == ("symbol", 3, ("LOST",))
    sets, match = rename({"a": ["ENSG00000000003.7"]}, PANEL)
    assert sets == {"a": ["ENSG00000000003"]}


def test_names_of_another_kind_are_refused_with_the_remedy():
    bare = PANEL.assign(symbol="")
    with pytest.raises(InputError, match=r"name symbols, the panel Ensembl ids; .* genes\.csv"):
        rename({"a": ["TP53"]}, bare)
    with pytest.raises(InputError, match=r"none of the 1 genes of the sets \(such as Trp53\)"):
        curate({"a": ["Trp53"]}, ["TP53", "ERBB2"])


def test_hallmark_is_only_intersected():
    sets = {"HALLMARK_A": ["TP53", "X"], "HALLMARK_B": ["TP53"]}
    kept, table, _ = curate_for_panel(sets, PANEL)
    assert list(kept) == ["HALLMARK_A", "HALLMARK_B"]
    assert table["size"].tolist() == [2, 1]


def test_the_command_writes_sets_and_reasons(tmp_path, children):
    (tmp_path / "go.gmt").write_text("A\tna\tTP53\tERBB2\nB\tna\tTP53\nC\tna\tERBB2\tTP53\n")
    PANEL.to_csv(tmp_path / "genes.csv", index=False)
    command = ["histokit.evaluate.curation", "--gene-sets", tmp_path / "go.gmt", "--universe",
               tmp_path / "genes.csv", "--min-size", "2"]  # fmt: skip
    done = children.run(*command, "--out", tmp_path / "out.gmt", check=True)
    assert "2 of 2 genes" in done.stdout
    assert list(read_gmt(tmp_path / "out.gmt")) == ["A"]
    assert len(pd.read_csv(tmp_path / "out_curation.csv")) == 3
    done = children.run(*command, "--max-jaccard", "2", "--out", tmp_path / "b.gmt")
    assert done.returncode == 2
    assert done.stderr == "error: --max-jaccard must be at least 0 and at most 1, got 2.0\n"
    assert not (tmp_path / "b.gmt").exists()


@pytest.mark.real
def test_the_authors_87_sets_come_out_of_their_447(shared):
    sets = read_gmt(shared / "genesets" / "go_50to100.v2025.1.Hs.symbols.gmt")
    kept = curate(sets)
    assert (len(sets), len(kept)) == (447, 87)
    kinds = pd.Series([name.split("_")[0] for name in kept]).value_counts().to_dict()
    assert kinds == {"GOBP": 57, "GOCC": 16, "GOMF": 14}
    sizes = [len(genes) for genes in kept.values()]
    assert (min(sizes), max(sizes)) == (51, 100)
    assert sum(sizes) / 87 == pytest.approx(78.7, abs=0.05)


@pytest.mark.real
@pytest.mark.parametrize("keep", ["larger", "smaller"])
def test_all_of_go_is_curated_in_seconds(shared, keep):
    sets = read_gmt(shared / "genesets" / "go_orgHs_3.16.symbols.gmt.gz")
    assert len(sets) > 12_500
    start = time.process_time()
    kept = curate(sets, min_size=1, max_size=None, keep=keep)
    assert time.process_time() - start < 5
    for a, b in itertools.islice(itertools.combinations(kept.values(), 2), 20_000):
        assert jaccard(a, b) <= Fraction(1, 10)


@pytest.mark.real
def test_hallmark_and_an_ensembl_panel(shared):
    sets = read_gmt(shared / "genesets" / "h.all.v2025.1.Hs.symbols.gmt")
    assert len(sets) == 50
    assert sets == gseapy.parser.read_gmt(str(shared / "genesets/h.all.v2025.1.Hs.symbols.gmt"))
    panel = read_universe(shared / "genesets" / "stpath_genes.yaml")
    with pytest.raises(InputError, match="the sets name symbols, the panel Ensembl ids"):
        curate_for_panel(sets, panel)
