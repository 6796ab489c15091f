import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cohorts import write_cohort
from sklearn.linear_model import LinearRegression

import run_eval
import run_train
from histokit.cohort import Cohort
from histokit.controls import (
    LibrarySizeCohort,
    ShuffledCohort,
    controls_of,
    fit_library_size,
    open_cohort,
)
from histokit.errors import InputError
from histokit.runs import Run

OPTIONS = {"encoder": "tiny", "model": "ridge", "controls": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for target in ("counts10k-log1p", "log1p"):
        place = str(folder / target)
        run_train.main(run_train.Options(data=str(data), run=place, target=target, **OPTIONS))
    return Run(folder / "log1p")


def test_shuffling_keeps_images_and_breaks_the_pairing(data):
    plain, shuffled = Cohort(data, "tiny"), ShuffledCohort(Cohort(data, "tiny"), 0)
    a, b, c = plain.load("A1"), shuffled.load("A1"), shuffled.load("A1")
    assert torch.equal(a.features, b.features)
    np.testing.assert_array_equal(a.centres, b.centres)
    assert not np.array_equal(a.counts.toarray(), b.counts.toarray())
    np.testing.assert_array_equal(b.counts.toarray(), c.counts.toarray())
    np.testing.assert_array_equal(b.counts.toarray().sum(axis=1), b.library_size)
    rows = lambda slide: sorted(map(tuple, slide.counts.toarray()))  # noqa: E731
    assert rows(a) == rows(b)
    other = ShuffledCohort(plain, 1).load("A1")
    assert not np.array_equal(b.counts.toarray(), other.counts.toarray())


def test_library_size_line_equals_scikit_learn():
    rng = np.random.default_rng(0)
    x, slide = rng.normal(8, 1, (60, 1)).astype(np.float32), np.repeat([0, 1], [25, 35])
    measured = np.array([[True] * 5, [True, False, True, True, True]])
    y = rng.poisson(3, (60, 5)) * x
    y[slide == 1, 1] = 0
    y[:, 4] = 2
    model = fit_library_size(x, sp.csr_matrix(y), measured, slide)
    test = torch.linspace(4, 12, 7)[:, None]
    for gene in range(5):
        rows = measured[slide, gene]
        line = LinearRegression().fit(x[rows].astype(float), y[rows, gene])
        expected = line.predict(test.numpy())
        got = model.predict(test, "IDC")[:, gene].numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_controls_are_runs_of_their_own(run, data):
    found = controls_of(run)
    assert list(found) == ["shuffled spots", "library size"]
    library = found["library size"]
    assert library.config["control"] == {"kind": "library-size", "encoder": "tiny"}
    cohort = open_cohort(library)
    assert isinstance(cohort, LibrarySizeCohort)
    slide = cohort.load("A1")
    np.testing.assert_allclose(slide.features[:, 0], np.log1p(slide.library_size), rtol=1e-6)
    prediction = library.folds[0].load_model().predict(slide.features, slide.cancer)
    assert prediction.shape == (40, 30)
    for label in found:
        assert not (found[label].folder / "audit").exists()
        assert [f.name for f in found[label].folds] == [f.name for f in run.folds]
        for own, theirs in zip(run.folds, found[label].folds, strict=True):
            pd.testing.assert_frame_equal(own.split, theirs.split)


def test_the_report_holds_the_controls(run, capsys):
    run_eval.main(run_eval.Options(run=[str(run.folder)], num_hvg=8, bootstrap=200, pictures=False))
    printed = capsys.readouterr().out
    assert "shuffled spots" in printed
    html = (run.folder / "eval" / "report.html").read_text()
    for text in ("Against controls", "library size", "What to distrust", "Trained on shuffled"):
        assert text in html
    scores = {
        label: pd.read_csv(folder / "eval" / "slides.csv")["pcc_hvg"].mean()
        for label, folder in (
            ("run", run.folder),
            ("shuffled", run.folder / "controls" / "shuffled"),
            ("library", run.folder / "controls" / "library-size"),
        )
    }
    assert scores["run"] > 0.5
    assert abs(scores["shuffled"]) < 0.25
    assert 0.1 < scores["library"] < scores["run"]  # raw counts grow with the library
    assert not (run.folder / "controls" / "shuffled" / "eval" / "predictions").exists()


def test_controls_stand_behind_the_runs_they_belong_to(run):
    other = run.folder.parent / "counts10k-log1p"
    options = {"num_hvg": 8, "bootstrap": 200, "pictures": False, "predictions": False}
    run_eval.main(run_eval.Options(run=[str(run.folder), str(other)], **options))
    table = pd.read_csv(run.folder.parent / "comparison" / "comparison.csv")
    rows = table[table["by"] == "all"]
    assert rows.groupby("transform").size().tolist() == [3, 3]
    for transform, block in rows.groupby("transform"):
        assert block["run"].iloc[0] == transform
        assert block["difference"].isna().tolist() == [True, False, False]


def test_a_control_that_was_stopped_is_named(data, run, tmp_path):
    config = json.loads((run.folder / "config.json").read_text())
    place = tmp_path / "run"
    run_train.main(run_train.Options(data=str(data), run=str(place), model="mean", encoder="tiny"))
    (place / "controls" / "shuffled").mkdir(parents=True)
    (place / "controls" / "shuffled" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"control .* is not trained to its end"):
        run_eval.main(run_eval.Options(run=[str(place)]))
