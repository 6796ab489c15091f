import dataclasses
import json
import re
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cohorts import GENES, write_cohort
from safetensors.torch import load_file
from sklearn.linear_model import LinearRegression

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.data.genes import normalize
from histokit.data.views import LibrarySizeCohort, ShuffledCohort
from histokit.evaluate.controls import controls_of, open_cohort
from histokit.evaluate.runs import Run
from histokit.evaluate.topics.controls import _draws
from histokit.train.ridge import fit_library_size, fit_ridge
from histokit.train.spots import Spots

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


MEMBERS = ["A1", "B1", "C1"]


def test_shuffling_keeps_images_and_deals_counts_over_the_slides(data):
    plain, shuffled = Cohort(data, "tiny"), ShuffledCohort(Cohort(data, "tiny"), MEMBERS, [0])
    pairs = [(plain.load(name, GENES), shuffled.load(name, GENES)) for name in MEMBERS]
    for a, b in pairs:
        assert torch.equal(a.features, b.features)
        np.testing.assert_array_equal(a.centers, b.centers)
        assert a.barcodes == b.barcodes
        np.testing.assert_array_equal(b.counts.toarray().sum(axis=1), b.library_size)
    rows = lambda slide: set(map(tuple, slide.counts.toarray()))  # noqa: E731
    assert set.union(*(rows(a) for a, _ in pairs)) == set.union(*(rows(b) for _, b in pairs))
    for _, b in pairs:  # each slide holds spots of every other
        assert all(rows(b) & rows(a) for a, _ in pairs)
    again = ShuffledCohort(plain, MEMBERS, [0]).load("A1", GENES)
    np.testing.assert_array_equal(pairs[0][1].counts.toarray(), again.counts.toarray())
    other = ShuffledCohort(plain, MEMBERS, [1]).load("A1", GENES)
    assert not np.array_equal(again.counts.toarray(), other.counts.toarray())
    test = shuffled.load("D1", GENES)
    np.testing.assert_array_equal(test.counts.toarray(), plain.load("D1", GENES).counts.toarray())


def test_slides_of_other_genes_are_dealt_apart(tmp_path):
    """A spot never gets counts from a slide that did not measure the same genes."""
    folder = write_cohort(tmp_path, genes={"C1": GENES[:-1]})
    shuffled = ShuffledCohort(Cohort(folder, "tiny"), ["A1", "A2", "C1"], [0])
    own, slide = Cohort(folder, "tiny").load("C1", GENES), shuffled.load("C1", GENES)
    assert not slide.measured[-1]
    assert slide.counts[:, [-1]].nnz == 0
    np.testing.assert_array_equal(slide.counts.sum(axis=0), own.counts.sum(axis=0))
    assert shuffled.load("A1", GENES).counts[:, [-1]].nnz > 30


def planted(tmp_path, slides=10, spots=60):
    """Slides whose image and expression rise together, from slide to slide and within one."""
    names = {f"S{i}": ("IDC", f"P{i}", spots) for i in range(slides)}
    folder = write_cohort(tmp_path, names, dim=4)
    rng = np.random.default_rng(5)
    for name in names:
        level = rng.normal(0, 1.5)  # of the slide
        steer = level + rng.normal(0, 1, spots)
        path = folder / "expression" / f"{name}.h5ad"
        data = anndata.read_h5ad(path)
        rate = np.full((spots, len(GENES)), 20.0)
        rate[:, :10] = 20 * np.exp(0.5 * steer)[:, None]
        data.X = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
        data.write_h5ad(path)
        with h5py.File(folder / "features" / "tiny" / f"{name}.h5", "r+") as file:
            order = [int(b.decode().split("-")[1]) for b in file["barcodes"][:]]
            x = rng.normal(size=(spots, 4))
            x[:, 0] += steer[order]
            file["features"][:] = x
    return folder


class DealtWithinSlides(Cohort):
    """The control as it was: each slide keeps its own counts, in another order."""

    def __init__(self, cohort):
        vars(self).update(vars(cohort))

    def load(self, slide_id, genes=None, **parts):
        slide = super().load(slide_id, genes)
        order = np.random.default_rng(len(slide_id)).permutation(len(slide.barcodes))
        sizes = slide.library_size[order]
        return dataclasses.replace(slide, counts=slide.counts[order], library_size=sizes)


def test_the_control_learns_nothing_from_levels_of_slides(tmp_path):
    """Dealt within slides, the control is taken for signal; dealt over them it is chance."""
    cohort = Cohort(planted(tmp_path), "tiny")
    train, test = [f"S{i}" for i in range(7)], ["S7", "S8", "S9"]

    def reached(taught: Cohort) -> float:
        slides = [taught.load(name, GENES) for name in train]
        y = normalize(
            sp.vstack([s.counts for s in slides], format="csr"),
            np.concatenate([s.library_size for s in slides]),
            "counts10k-log1p",
        )
        x = np.concatenate([s.features.numpy() for s in slides])
        slide = np.repeat(np.arange(7), 60)
        model, _ = fit_ridge(Spots(x, y, np.ones((7, 30), bool), slide, slide))
        scores = []
        for name in test:
            one = cohort.load(name, GENES)
            truth = normalize(one.counts, one.library_size, "counts10k-log1p").toarray()
            pred = model.predict(one.features, "IDC").numpy()
            scores += [np.corrcoef(pred[:, g], truth[:, g])[0, 1] for g in range(10)]
        return float(np.mean(scores))

    draws = [reached(ShuffledCohort(cohort, train, [seed])) for seed in range(10)]
    assert reached(cohort) > 0.4
    assert reached(DealtWithinSlides(cohort)) > 0.3
    assert abs(np.mean(draws)) < 0.15
    assert min(draws) < 0 < max(draws)


def test_library_size_line_equals_scikit_learn():
    rng = np.random.default_rng(0)
    x, slide = rng.normal(8, 1, (60, 1)).astype(np.float32), np.repeat([0, 1], [25, 35])
    measured = np.array([[True] * 5, [True, False, True, True, True]])
    y = rng.poisson(3, (60, 5)) * x
    y[slide == 1, 1] = 0
    y[:, 4] = 2
    model = fit_library_size(Spots(x, sp.csr_matrix(y), measured, slide, slide))
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
    assert found["shuffled spots"].config["control"] == {"kind": "shuffled-spots", "draws": 5}
    for label, draws in (("shuffled spots", range(1, 6)), ("library size", (0,))):
        assert not (found[label].folder / "audit").exists()
        expected = [(f, f.name + f", draw {d}" * bool(d)) for f in run.folds for d in draws]
        assert [f.name for f in found[label].folds] == [name for _, name in expected]
        for (own, _), theirs in zip(expected, found[label].folds, strict=True):
            pd.testing.assert_frame_equal(own.split, theirs.split)
            columns = ["gene", "hvg_rank"]  # genes are those of the run, whatever is dealt
            pd.testing.assert_frame_equal(own.genes[columns], theirs.genes[columns])


def test_the_report_holds_the_controls(run, capsys):
    run_eval.main(run_eval.Options(run=[str(run.folder)], num_hvg=8, pictures=False))
    printed = capsys.readouterr().out
    assert "shuffled spots" in printed
    html = (run.folder / "eval" / "report.html").read_text()
    for text in ("Against controls", "library size", "What to distrust", "Trained on shuffled"):
        assert text in html
    assert re.search(
        r"Trained on shuffled spots, .* \(5 draws from \S+ to \S+\): that is chance", html
    )
    slides = pd.read_csv(run.folder / "controls" / "shuffled-spots" / "eval" / "slides.csv")
    assert slides.groupby("slide_id").size().eq(5).all()
    scores = {
        label: pd.read_csv(folder / "eval" / "slides.csv")["pcc_hvg"].mean()
        for label, folder in (
            ("run", run.folder),
            ("shuffled", run.folder / "controls" / "shuffled-spots"),
            ("library", run.folder / "controls" / "library-size"),
        )
    }
    assert scores["run"] > 0.5
    assert abs(scores["shuffled"]) < 0.15
    assert 0.1 < scores["library"] < scores["run"]  # raw counts grow with the library
    assert not (run.folder / "controls" / "shuffled-spots" / "eval" / "predictions").exists()


def test_the_range_of_draws_is_of_means_over_patients():
    """Three slides of one patient have no more say than the one of the other."""
    slides = pd.DataFrame(
        {
            "fold": ["0, draw 1", "0, draw 1", "1, draw 1", "1, draw 1"],
            "slide_id": ["A1", "B1", "B2", "B3"],
            "patient": ["A", "B", "B", "B"],
            "cancer": "IDC",
            "patient_seen": "no",
            "below_floor": False,
            "pcc_hvg": [0.0, 0.4, 0.4, 0.4],
            "pcc_all": 0.0,
            "mse": 0.0,
            "target_variance": 0.0,
        }
    )
    assert _draws(slides) == "\u2013"
    second = slides.assign(
        fold=slides["fold"].str.replace("draw 1", "draw 2"), pcc_hvg=[0.5, 0.0, 0.2, 0.4]
    )
    both = pd.concat([slides, second], ignore_index=True)
    assert _draws(both) == "2 draws from 0.20 to 0.35"  # over slides: 0.28 and 0.30
    small = both["slide_id"] == "B3"
    assert _draws(both.assign(below_floor=small)) == "2 draws from 0.20 to 0.30"
    assert _draws(both.assign(pcc_hvg=np.nan)) == "\u2013"


def test_controls_stand_behind_the_runs_they_belong_to(run):
    other = run.folder.parent / "counts10k-log1p"
    options = {"num_hvg": 8, "pictures": False, "predictions": False}
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
    (place / "controls" / "shuffled-spots").mkdir(parents=True)
    (place / "controls" / "shuffled-spots" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"control .* is not trained to its end"):
        run_eval.main(run_eval.Options(run=[str(place)]))


def test_a_control_dealt_within_slides_is_left_out_with_a_sentence(data, tmp_path):
    place, options = tmp_path / "run", {"model": "mean", "encoder": "tiny"}
    run_train.main(run_train.Options(data=str(data), run=str(place), **options))
    (place / "controls" / "shuffled").mkdir(parents=True)
    shutil.copy(place / "config.json", place / "controls" / "shuffled" / "config.json")
    run_eval.main(run_eval.Options(run=[str(place)], pictures=False, predictions=False))
    html = (place / "eval" / "report.html").read_text()
    assert "was dealt within each slide" in html
    assert "Against controls" not in html


@pytest.mark.parametrize(("model", "held"), [("ridge", 0), ("mlp", 1)])
def test_closed_forms_hold_no_slide_out_whatever_the_seed(data, tmp_path, model, held):
    splits = []
    for seed in (0, 1):
        place = tmp_path / f"{model}-{seed}"
        options = {"folds": "2", "seed": seed, "preset": "small", "encoder": "tiny"}
        if model == "mlp":
            options |= {"epochs": 1}
        run_train.main(run_train.Options(data=str(data), run=str(place), model=model, **options))
        splits.append([fold.split for fold in Run(place).folds])
    for one, other in zip(*splits, strict=True):
        assert (one["split"] == "val").sum() >= held
        assert held or not (one["split"] == "val").any()
        if not held:
            pd.testing.assert_frame_equal(one, other)
            train = one.loc[one["split"] == "train", "slide_id"].tolist()
            assert train == [s for s in Cohort(data, "tiny").slides.index if s in train]


def test_a_closed_form_is_the_same_for_every_seed(data, tmp_path):
    states = []
    for seed in (0, 3):
        place = tmp_path / str(seed)
        options = {"folds": "2", "seed": seed, "encoder": "tiny", "target": "log1p"}
        run_train.main(
            run_train.Options(data=str(data), run=str(place), model="ridge-hest", **options)
        )
        states.append(load_file(place / "folds" / "0" / "model.safetensors"))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
