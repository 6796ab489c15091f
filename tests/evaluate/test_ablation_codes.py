"""When the factor cross-attention tells a model nothing of a slide."""

import types

import pandas as pd
import pytest

from histokit.evaluate.topics.ablation import _empty_factor


def said(*folds):
    """Folds as the oncotree codes of their training slides; the test slide has another."""
    splits = [
        pd.DataFrame({"cancer": [*codes, "PRAD"], "split": ["train"] * len(codes) + ["test"]})
        for codes in folds
    ]
    own = [types.SimpleNamespace(name=str(i), split=split) for i, split in enumerate(splits)]
    run = types.SimpleNamespace(folds=own)
    return _empty_factor({"run": types.SimpleNamespace(job=types.SimpleNamespace(run=run))})


@pytest.mark.parametrize("codes", [["IDC", "ILC"], ["IDC", ""], ["", "IDC", "ILC"]])
def test_slides_of_two_kinds_make_a_factor(codes):
    assert said(codes) == ""


def test_slides_of_one_kind_make_none():
    assert "is empty: all training slides have one cancer code (IDC)" in said(["IDC", "IDC"])
    assert "is empty: all training slides have one cancer code (none)" in said(["", ""])
    assert "empty in 1 fold of 2" in said(["IDC", ""], ["IDC"])
