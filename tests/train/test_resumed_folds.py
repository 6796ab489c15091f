"""What a training that goes on has to find as it was, and losses that no training survives."""

from cohorts import GENES, write_cohort

import run_train


def test_other_members_of_the_same_folds_are_refused(tmp_path, one_fold, call):
    """Names of folds and numbers of slides alone do not tell a split from another."""
    data = write_cohort(tmp_path / "data")
    given = ["--data", data, "--encoder", "tiny", "--model", "mean", "--folds", one_fold]
    given += ["--run", tmp_path / "run", "--allow-leakage"]
    assert call(run_train, *given).returncode == 0
    weights = tmp_path / "run/folds/0/model.safetensors"
    weights.unlink()  # killed before its end
    with open(one_fold) as file:
        text = file.read()
    with open(one_fold, "w") as file:
        file.write(text.replace("C1,train", "B2,train"))
    done = call(run_train, *given)
    assert done.returncode == 2
    assert "was begun with other fold members" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not weights.exists()
    with open(one_fold, "w") as file:
        file.write(text)
    assert call(run_train, *given).returncode == 0
    assert weights.is_file()


def test_a_validation_loss_that_is_no_number_is_refused(tmp_path, one_fold, call):
    """A slide that measures no gene of the panel has none: no epoch would ever be the best."""
    data = write_cohort(tmp_path / "data", genes={"B1": GENES[20:]})
    panel = tmp_path / "panel.txt"
    panel.write_text("\n".join(GENES[:20]))
    given = ["--data", data, "--encoder", "tiny", "--model", "histoprism", "--folds", one_fold]
    given += ["--run", tmp_path / "run", "--panel", panel, "--epochs", 2, "--preset", "small"]
    done = call(run_train, *given)
    assert done.returncode == 2
    assert "the loss of validation slide B1 is nan" in done.stderr
    assert not (tmp_path / "run/folds/0/model.safetensors").exists()
