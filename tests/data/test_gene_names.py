import pytest

from histokit.data.gene_names import full_name, names_of

ERBB2 = "ENSG00000141736"


@pytest.mark.parametrize(
    ("gene", "symbol", "gene_id", "expected"),
    [
        ("ERBB2", "ERBB2", ERBB2, ("ERBB2", ERBB2)),
        (ERBB2, "ERBB2", ERBB2, ("ERBB2", ERBB2)),
        (ERBB2, "ERBB2", "", ("ERBB2", ERBB2)),
        ("ERBB2", "ERBB2", "", ("ERBB2", "")),
        (ERBB2, "", ERBB2, (ERBB2, "")),
        ("HER2", "", "", ("HER2", "")),
    ],
)
def test_a_symbol_stands_before_its_id(gene, symbol, gene_id, expected):
    assert names_of(gene, symbol, gene_id) == expected
    name, other = expected
    assert full_name(gene, symbol, gene_id) == (f"{name} ({other})" if other else name)
