"""Which genes are trusted: held-out correlations beside chance, from tables of known answer."""

import types

import numpy as np
import pandas as pd
import pytest

from histokit.core.errors import InputError
from histokit.maps.trust import gene_trust

SLIDES = {"a": "P1", "b": "P2", "c": "P3", "d": "P4"}


def evaluation(folder, pcc, patients=SLIDES, spots=101):
    """The two tables of an evaluation that trust is read from."""
    folder.mkdir(parents=True)
    table = pd.DataFrame(pcc, index=list(patients)).T.rename_axis("gene")
    table.to_csv(folder / "pcc_by_slide.csv")
    slides = pd.DataFrame({"slide_id": list(patients), "patient": list(patients.values())})
    slides.assign(spots=spots).to_csv(folder / "slides.csv", index=False)


def trust(tmp_path, genes=("good", "chance", "control", "absent")):
    return gene_trust(types.SimpleNamespace(folder=tmp_path), pd.Index(genes))


PCC = {
    "good": [0.5, 0.6, 0.55, 0.58],
    "chance": [0.1, -0.1, 0.05, -0.04],
    "control": [0.5, 0.6, 0.55, 0.58],  # and the model of shuffled spots reaches as much
}


def test_a_gene_is_trusted_if_the_interval_of_its_difference_to_chance_is_above_zero(tmp_path):
    evaluation(tmp_path / "eval", PCC)
    evaluation(
        tmp_path / "controls/shuffled-spots/eval",
        {"good": [0, 0.1, 0, 0], "chance": [0] * 4, "control": [0.52, 0.58, 0.56, 0.57]},
    )
    found = trust(tmp_path)
    assert found.table["trusted"].to_dict() == {
        "good": True, "chance": False, "control": False, "absent": False,
    }  # fmt: skip
    row = found.table.loc["good"]
    assert row["pcc"] == pytest.approx(np.mean(PCC["good"]))
    assert row["pcc_low"] < row["pcc"] < row["pcc_high"]
    assert np.isnan(found.table.loc["absent", "pcc"])
    assert found.table["rank"].tolist()[:3] == [1, 3, 2]
    assert found.said == [
        "1 of 4 genes have a held-out PCC above shuffled spots, over 4 patients; the others are "
        "gray."
    ]


def test_without_a_control_chance_is_zero_and_that_is_said(tmp_path):
    evaluation(tmp_path / "eval", PCC)
    found = trust(tmp_path)
    assert found.table["trusted"].tolist() == [True, False, True, False]
    assert "no control of shuffled spots was trained" in found.said[0]


def test_two_patients_have_no_interval_and_need_twice_the_error_on_every_slide(tmp_path):
    patients = {"a": "P1", "b": "P2"}
    margin = 2 / np.sqrt(100)
    evaluation(
        tmp_path / "eval",
        {"good": [margin + 0.01] * 2, "chance": [margin + 0.01, margin - 0.01], "control": [0, 0]},
        patients,
    )
    found = trust(tmp_path)
    assert found.table["trusted"].tolist() == [True, False, False, False]
    assert found.table["pcc_low"].isna().all()


def test_slides_of_few_spots_have_no_say(tmp_path):
    evaluation(tmp_path / "eval", {"good": [0.5, 0.5, 0.5, -1]}, spots=[101, 101, 101, 5])
    assert trust(tmp_path, ["good"]).table.loc["good", "pcc"] == pytest.approx(0.5)


def test_a_run_that_was_never_evaluated_trusts_no_gene(tmp_path):
    found = trust(tmp_path)
    assert not found.table["trusted"].any()
    assert found.table["pcc"].isna().all()
    assert "run_eval.py --run" in found.said[0]
    with pytest.raises(InputError, match="is no evaluation"):
        gene_trust(types.SimpleNamespace(folder=tmp_path), pd.Index(["g"]), tmp_path)


def test_a_gene_that_is_predicted_the_wrong_way_is_never_trusted(tmp_path):
    evaluation(tmp_path / "eval", {"good": [-0.2, -0.21, -0.19, -0.2]})
    evaluation(tmp_path / "controls/shuffled-spots/eval", {"good": [-0.5, -0.51, -0.49, -0.5]})
    assert not trust(tmp_path, ["good"]).table["trusted"].any()
