"""The arithmetic of the benchmarks over patients, by hand."""

import new_patient
import numpy as np
import pandas as pd
import pytest
import stain
import zoo
import zoo_models
import zoo_run
import zoo_table


def test_features_are_chosen_without_the_patient_that_they_are_tested_on():
    """B's figures say "plain", the other two patients say "best": B gets best, A and C plain."""
    scores = {"A>B": (0.9, 0.1), "B>A": (0.9, 0.1), "B>C": (0.9, 0.1), "C>B": (0.9, 0.1)}
    scores |= {"A>C": (0.2, 0.3), "C>A": (0.2, 0.3)}
    choosing = pd.DataFrame(scores, index=["plain", "best"]).T
    chosen = {patient: new_patient.best_for(patient, choosing) for patient in "ABC"}
    assert chosen == {"A": "plain", "B": "best", "C": "plain"}


def test_a_patient_counts_once_whatever_it_has_of_slides_and_seeds():
    rows = [("A", "A1", 0, 0.1), ("C", "C2", 0, 0.2), ("C", "C3", 0, 0.4), ("C", "C3", 1, 0.6)]
    scores = pd.DataFrame(rows, columns=["fold", "slide_id", "seed", "pcc_zero"])
    found = zoo_table.by_unit(scores.assign(model="m", protocol="patients"), "patients")
    assert found["m"].to_dict() == pytest.approx({"A": 0.1, "C": (0.2 + 0.5) / 2})


def test_every_row_of_the_table_is_a_run_that_the_zoo_can_make():
    for model, kind in new_patient.ROWS:
        task = zoo_run.Task("work", "log1p", model, kind, None, 0, 0, ("A", "C3"))
        assert task.options["encoder"]
        assert task.options["data"] == f"work/{'normalized' if 'stain' in kind else 'data'}"
        assert task.stamp["folds"] == ["A", "C3"]
    folders = {
        zoo_run.Task("work", "log1p", *row, None, 0, 0, ("A",)).folder for row in new_patient.ROWS
    }
    assert len(folders) == len(new_patient.ROWS)


def test_no_model_of_one_benchmark_takes_the_place_of_another():
    assert not set(zoo_models.ZOO) & set(zoo_models.MORE)
    assert not set(zoo_models.FEATURES) & set(zoo_models.MORE_FEATURES)


def test_normalized_tissue_has_one_color_and_glass_stays():
    draw = np.random.default_rng(0)
    slides = [
        np.clip(draw.normal(color, 12, (400, 400, 3)), 0, 255).astype(np.uint8)
        for color in ((190, 120, 180), (150, 90, 130))
    ]
    for slide in slides:
        slide[:80], slide[80:160] = 250, 0  # glass, and a black surround
    changed = [stain.one_color(slide) for slide in slides]
    tissue = [stain.rgb2lab(image[160:]).reshape(-1, 3) for image in changed]
    for lab in tissue:
        np.testing.assert_allclose(lab.mean(axis=0), stain.MEAN, atol=1.5)
    assert all((image[:80] == 250).all() and (image[80:160] == 0).all() for image in changed)


def test_cohorts_are_copied_with_all_their_files(tmp_path):
    source = tmp_path / "cohort"
    (source / "images").mkdir(parents=True)
    (source / "spots.csv").write_text("barcode,x,y\n")
    pixels = np.random.default_rng(1).integers(90, 200, (64, 64, 3), dtype=np.uint8)
    stain.Image.fromarray(pixels).save(source / "images" / "S1.png")
    out = stain.normalized(source, tmp_path / "out")
    assert (out / "spots.csv").read_text() == "barcode,x,y\n"
    found = np.asarray(stain.Image.open(out / "images" / "S1.png"))
    np.testing.assert_array_equal(found, stain.one_color(pixels))


def test_a_document_without_a_place_for_the_table_is_refused(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n<!-- zoo:begin -->\n<!-- zoo:end -->\n")
    zoo_table.check(path, "zoo")
    with pytest.raises(zoo_table.InputError, match=r"new-patient:begin.*new-patient:end"):
        zoo_table.check(path, "new-patient")


def _scores(**pcc) -> pd.DataFrame:
    rows = [("log1p", "200", "plain", model, "A", "A1", value) for model, value in pcc.items()]
    columns = ["target", "genes", "features", "model", "fold", "slide_id", "pcc_zero"]
    return pd.DataFrame(rows, columns=columns).replace("reference", zoo.REFERENCE)


def _asked(*models: str) -> zoo.Options:
    return zoo.Options(source="a", third="b", target="log1p", models=list(models))


def test_models_that_were_not_asked_for_keep_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "SCORES", tmp_path / "zoo.csv")
    _scores(reference=0.2, mlp=0.1, knn=0.3).to_csv(zoo.SCORES, index=False)
    found = zoo.with_others(_scores(reference=0.2, mlp=0.15), _asked("mlp"))
    pcc = found.set_index("model")["pcc_zero"].to_dict()
    assert pcc == {zoo.REFERENCE: 0.2, "mlp": 0.15, "knn": 0.3}
    assert len(found) == 3
    whole = zoo.with_others(_scores(reference=0.2, mlp=0.15), _asked())
    assert set(whole["model"]) == {zoo.REFERENCE, "mlp"}


def test_rows_that_were_made_otherwise_are_not_kept_beside_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "SCORES", tmp_path / "zoo.csv")
    _scores(reference=0.2, knn=0.3).to_csv(zoo.SCORES, index=False)
    with pytest.raises(zoo.InputError, match=r"reaches 0\.2200 on A1 and reached 0\.2000"):
        zoo.with_others(_scores(reference=0.22, mlp=0.15), _asked("mlp"))
