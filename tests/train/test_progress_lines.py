"""What a log is told of a training's progress: where it is, and no share of an unknown end."""

import re

import pytest
from cohorts import write_cohort

import run_train
from histokit.core import progress

FEW = {"encoder": "tiny", "lr": 1e-3, "patience": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def lines(data, tmp_path, capsys, monkeypatch):
    """Lines of stderr of a training, however short it is."""
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)

    def train(**options):
        options = {"data": str(data), "run": str(tmp_path / "run"), "encoder": "tiny"} | options
        run_train.main(run_train.Options(**options))
        return capsys.readouterr().err.splitlines()

    return train


def epochs_of(said):
    return [line for line in said if "patience" in line]


def test_early_stopping_claims_no_end(lines, one_fold):
    said = lines(model="mlp", preset="small", epochs=40, folds=one_fold, refit=False, **FEW)
    found = epochs_of(said)
    assert found
    assert not any("%" in line for line in found)
    for line in found:
        done, best, waited = re.match(
            r"fold 1 of 1: epoch (\d+), best (\d+) \(patience (\d+)/3\)", line
        ).groups()
        assert int(done) - int(best) == int(waited) <= 3
        assert f" {done}epoch" in line


def test_a_training_to_its_last_epoch_has_an_end(lines, one_fold):
    said = lines(model="mlp", preset="small", epochs=4, folds=one_fold, val_fraction=0.0,
                 encoder="tiny")  # fmt: skip
    # the split names a validation slide, so the second training, on all slides, is what ends there
    known = [line for line in said if "epochs" in line and "%" in line]
    assert known
    assert all(line.startswith("fold 1 of 1: epochs: ") for line in known)


@pytest.mark.parametrize("model", ["ridge-by-gene", "knn"])
def test_closed_forms_say_fold_slide_and_part(lines, model):
    said = lines(model=model, folds="leave-one-patient-out")
    for fold in range(1, 5):
        for slide in ("A1", "C1"):
            assert any(f"fold {fold} of 4: reading {slide}" in line for line in said) == (
                (fold, slide[0]) not in ((1, "A"), (3, "C"))
            )
    parts = [line for line in said if "fold 2 of 4: choosing the penalty" in line]
    assert bool(parts) == (model == "ridge-by-gene")


def test_auto_says_inner_fold_and_candidate(lines):
    said = lines(model="auto", folds="2", epochs=2)
    whole = "\n".join(said)
    for place in (
        "fold 1 of 2: inner fold 1 of 2: ridge-by-gene: choosing the penalty",
        "fold 1 of 2: inner fold 2 of 2: mlp: epoch",
        "fold 2 of 2: inner fold 2 of 2: bpbooster: epoch",
        "fold 2 of 2: inner fold 1 of 2: histoprism: epoch",
    ):
        assert place in whole
