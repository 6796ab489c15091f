import numpy as np
import pandas as pd
import pytest

from histokit.core.errors import InputError
from histokit.evaluate.topics.pathway_plots import signature_bars
from histokit.evaluate.topics.signatures import (
    _labeled,
    find_genes,
    random_genes,
    read_signature,
    score_signature,
)


def panel(*genes):
    return pd.DataFrame({"gene": list(genes), "gene_id": "", "symbol": ""})


def test_pam50_has_fifty_genes_under_new_and_former_names():
    pam50 = read_signature("pam50")
    assert len(pam50.genes) == 50
    found = find_genes(pam50, panel("ACTB", "KNTC2", "NUF2", "CDCA1", "ERBB2"))
    assert found.to_dict() == {"ERBB2": 4, "NDC80": 1, "NUF2": 2}


def test_score_is_the_correlation_of_mean_z_scores():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(50, 4)) * [1, 5, 0.1, 2] + 3
    prediction = target + rng.normal(size=(50, 4))
    target[:, 3] = np.nan
    prediction[:, 2] = 7.0
    result = score_signature(prediction, target)
    assert result["genes"] == 2
    z = [((x - x.mean(0)) / x.std(0)).mean(1) for x in (prediction[:, :2], target[:, :2])]
    assert result["pcc"] == pytest.approx(np.corrcoef(*z)[0, 1])


def test_nothing_that_varies_has_no_score():
    result = score_signature(np.ones((5, 3)), np.random.default_rng(0).normal(size=(5, 3)))
    assert np.isnan(result["pcc"])
    assert result["genes"] == 0
    one = score_signature(np.arange(5.0)[:, None], -np.arange(5.0)[:, None])
    assert one == {"pcc": pytest.approx(-1.0), "genes": 1}


def test_random_genes_vary_alike_and_are_others():
    variance = np.random.default_rng(0).permutation(np.linspace(0, 10, 2000))
    variance[:20] = np.nan
    places = np.array([5, 100, 200, 300])
    draws = random_genes(places, variance, 5)
    assert len(draws) == 5
    for draw in draws:
        assert len(set(draw)) == 3  # gene 5 was not measured
        assert not set(draw) & set(places)
        assert np.abs(np.sort(variance[draw]) - np.sort(variance[places[1:]])).max() < 0.6
    assert any(set(draw) != set(draws[0]) for draw in draws)


def test_bad_signatures_are_named(tmp_path):
    with pytest.raises(InputError, match=r"neither a file nor one of .*pam50"):
        read_signature("pam51")
    (tmp_path / "s.txt").write_text("A|B\nC|B\n")
    with pytest.raises(InputError, match="names B twice"):
        read_signature(str(tmp_path / "s.txt"))
    (tmp_path / "s.txt").write_text("A\nB\n")
    with pytest.raises(InputError, match="none of the 2 genes of the signature s"):
        find_genes(read_signature(str(tmp_path / "s.txt")), panel("ENSG1"))


def test_bars_name_genes_as_the_signature_does_with_their_ids():
    found = pd.DataFrame(
        {
            "gene": ["KNTC2", "ENSG00000141736", "NUF2", "ACTB"],
            "symbol": ["KNTC2", "ERBB2", "NUF2", "ACTB"],
            "gene_id": ["ENSG00000080986", "ENSG00000141736", "", "ENSG00000075624"],
            "pcc": [0.1, 0.4, 0.3, 0.2],
            "pcc_lowest": 0.0,
            "pcc_highest": 0.5,
        },
        index=pd.Index(["NDC80", "ENSG00000141736", "NUF2", "ACTB"], name="name"),
    )
    axis = signature_bars(_labeled(found), 0.5, 0.3, 0.2).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        "ERBB2 (ENSG00000141736)",
        "NUF2",
        "ACTB (ENSG00000075624)",
        "NDC80 (ENSG00000080986)",
    ]
