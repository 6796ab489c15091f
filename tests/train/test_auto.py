"""--model auto: what it chooses, by whom, and that the run stays an ordinary one."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cohorts import GENES, write_cohort
from safetensors.torch import load_file

import run_eval
import run_train
from histokit import models
from histokit.core.errors import InputError
from histokit.core.files import read_json
from histokit.data.cohort import Cohort
from histokit.data.genes import normalize
from histokit.evaluate.runs import Run
from histokit.models.baselines import Mean
from histokit.models.registry import CANDIDATES, MEMBERS
from histokit.train import average
from histokit.train.auto import slide_pcc

TARGET = "counts10k-log1p"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def train(data, folder, **options):
    options = {"model": "auto", "encoder": "tiny", "neighbors": "none", "epochs": 2} | options
    run_train.main(run_train.Options(data=str(data), run=str(folder), **options))
    return Run(folder)


def best(table):
    """The candidate of the largest mean, the first of equal ones."""
    means = table.groupby("candidate").pcc.mean()
    return max(CANDIDATES, key=lambda name: (means.get(name, -2), -CANDIDATES.index(name)))


def split(tmp_path, *rows):
    path = tmp_path / "split.csv"
    path.write_text("slide_id,split\n" + "\n".join(rows) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def chosen(data, tmp_path_factory):
    """A run of one fold, whose training patients are A, B and C."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [f"{s},train" for s in ("A1", "A2", "B1", "B2", "C1")] + ["D1,test"]
    folds = split(folder, *rows)
    return train(data, folder / "run", folds=folds), folds


def test_the_choice_is_the_best_of_its_table(chosen):
    (fold,) = chosen[0].folds
    table = pd.read_csv(fold.folder / "choice.csv")
    assert [*table.columns] == ["candidate", "held_out", "pcc"]
    assert len(table) == len(CANDIDATES) * 3
    assert set(table.held_out) == {"A", "B", "C"}
    assert table.pcc.between(-1, 1).all()
    assert table.candidate.drop_duplicates().tolist() == list(CANDIDATES)
    assert read_json(fold.folder / "model.json")["model"] == best(table)
    assert not (fold.folder / "checkpoints").exists()


def test_what_the_table_says_is_what_a_training_on_the_others_gives(chosen, data, tmp_path):
    """A ridge on patients A and B, an ordinary run, on C."""
    rows = [f"{s},train" for s in ("A1", "A2", "B1", "B2")] + ["C1,test"]
    folds = split(tmp_path, *rows)
    fold = train(data, tmp_path / "ridge", model="ridge-by-gene", folds=folds).folds[0]
    genes = np.flatnonzero(fold.genes.hvg_rank <= 50)
    slide = Cohort(data, "tiny").load("C1", fold.genes)
    predicted = fold.load_model().predict(slide.features, "IDC").numpy()[:, genes]
    truth = normalize(slide.counts, slide.library_size, TARGET).toarray()[:, genes]
    expected = np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, truth.T, strict=True)])
    table = pd.read_csv(chosen[0].folds[0].folder / "choice.csv")
    found = table[(table.candidate == "ridge-by-gene") & (table.held_out == "C")].pcc.item()
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_model_is_that_of_a_run_of_its_own(chosen, data, tmp_path):
    """The chosen one, trained on all training slides of the fold."""
    run, folds = chosen
    name = read_json(run.folds[0].folder / "model.json")["model"]
    own = train(data, tmp_path / "own", model=name, preset="small", folds=folds)
    a, b = (load_file(r.folds[0].folder / "model.safetensors") for r in (run, own))
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], msg=key)


def test_test_slides_have_no_say(chosen, data, tmp_path):
    run, folds = chosen
    other = shutil.copytree(data, tmp_path / "other")
    path = other / "expression" / "D1.h5ad"
    slide = anndata.read_h5ad(path)
    slide.X = sp.csr_matrix(slide.X.toarray()[::-1] * 3 + 1)
    slide.write_h5ad(path)
    again = train(other, tmp_path / "run", folds=folds)
    for name in ("choice.csv", "model.safetensors"):
        a, b = ((r.folds[0].folder / name).read_bytes() for r in (run, again))
        assert a == b, name


def test_the_run_is_evaluated_as_any_other(chosen, tmp_path, call):
    run, _ = chosen
    done = call(run_eval, "--run", str(run.folder), "--out", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    scores = pd.read_csv(next((tmp_path / "report").rglob("slides.csv")))
    assert scores.shape[0] == 1


def test_a_training_goes_on_with_what_it_chose(chosen, data, tmp_path, capsys):
    run, folds = chosen
    folder = shutil.copytree(run.folder, tmp_path / "run")
    place = folder / "folds" / run.folds[0].id
    (place / "model.safetensors").unlink()
    table = pd.read_csv(place / "choice.csv")
    table.loc[table.candidate == "mlp", "pcc"] = 0.99
    table.to_csv(place / "choice.csv", index=False)
    again = train(data, folder, folds=folds)
    assert "mlp is chosen" in capsys.readouterr().out
    assert read_json(again.folds[0].folder / "model.json")["model"] == "mlp"
    assert "epoch" in pd.read_csv(place / "metrics.csv")


def test_stopped_in_the_choice_it_ends_the_same(chosen, data, tmp_path, monkeypatch):
    run, folds = chosen
    whole, begun = average.fit_member, []

    def stopping(task, slides, name, folder):
        begun.append(folder)
        if len(begun) == 7:
            raise KeyboardInterrupt
        return whole(task, slides, name, folder)

    monkeypatch.setattr(average, "fit_member", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", folds=folds)
    again = train(data, tmp_path / "run", folds=folds)
    assert sorted(begun[:6] + begun[7:]) == sorted({*begun})  # none twice but the stopped one
    for name in ("choice.csv", "model.safetensors"):
        a, b = ((r.folds[0].folder / name).read_bytes() for r in (run, again))
        assert a == b, name


def test_one_patient_leaves_slides_out(data, tmp_path, capsys):
    folds = split(tmp_path, "A1,train", "A2,train", "B1,test")
    fold = train(data, tmp_path / "run", folds=folds).folds[0]
    table = pd.read_csv(fold.folder / "choice.csv")
    assert set(table.held_out) == {"A1", "A2"}
    assert read_json(fold.folder / "model.json")["model"] == best(table)
    assert "over 2 training slides, each held out once" in capsys.readouterr().out


def test_of_one_slide_nothing_is_chosen(data, tmp_path, capsys):
    folds = split(tmp_path, "A1,train", "B1,test")
    fold = train(data, tmp_path / "run", folds=folds).folds[0]
    assert read_json(fold.folder / "model.json")["model"] == CANDIDATES[0]
    assert "one training slide, nothing can be held out" in capsys.readouterr().out
    assert not (fold.folder / "choice.csv").exists()


def test_many_patients_are_dealt_to_four_inner_folds(tmp_path, monkeypatch):
    slides = {f"{p}{i}": ("IDC", p, 20) for p in "ABCDEF" for i in range(1 + (p == "A"))}
    data = write_cohort(tmp_path / "data", slides | {"Z1": ("IDC", "Z", 20)})
    trained = []
    whole = average.fit_members

    def note(task, known, names, place):
        trained.append((set(task.split.test), {s.slide_id for s in known}))
        return whole(task, known, ["ridge-by-gene"], place)

    monkeypatch.setattr(average, "fit_members", note)
    folds = split(tmp_path, *(f"{s},train" for s in slides), "Z1,test")
    fold = train(data, tmp_path / "run", folds=folds).folds[0]
    inner = trained[:4]
    assert sorted(s for held, _ in inner for s in held) == sorted(slides)
    assert sorted(len({s[0] for s in held}) for held, _ in inner) == [1, 1, 2, 2]
    for held, known in inner:
        assert held | known == set(slides)
        assert not {s[0] for s in held} & {s[0] for s in known}
    assert set(pd.read_csv(fold.folder / "choice.csv").held_out) == set("ABCDEF")


def test_an_average_is_that_of_its_members(data, tmp_path):
    folds = split(tmp_path, "A1,train", "B1,train", "C1,val", "D1,test")
    run = train(data, tmp_path / "run", model="average", folds=folds)
    fold = run.folds[0]
    about = read_json(fold.folder / "model.json")["arguments"]
    assert [member["model"] for member in about["members"]] == list(MEMBERS)
    slide = Cohort(data, "tiny").load("D1", fold.genes)
    total = 0
    for name in MEMBERS:
        own = train(data, tmp_path / name, model=name, preset="small", folds=folds).folds[0]
        total = total + own.load_model().predict(slide.features, "IDC").double()
    found = fold.load_model().predict(slide.features, "IDC").double()
    torch.testing.assert_close(found, total / len(MEMBERS), rtol=1e-4, atol=1e-4)
    for name in ("mlp", "bpbooster", "histoprism"):
        assert (fold.folder / "members" / name / "loss.png").is_file()
    assert not (fold.folder / "checkpoints").exists()


def test_candidates_that_do_not_fit_are_left_out(tmp_path, capsys, monkeypatch):
    data = write_cohort(tmp_path / "data", dim=18)
    folds = split(tmp_path, "A1,train", "B1,train", "D1,test")
    run = train(data, tmp_path / "run", folds=folds)
    assert (
        "histoprism is left out: its 4 heads do not divide 18 features" in capsys.readouterr().out
    )
    assert "histoprism" not in set(pd.read_csv(run.folds[0].folder / "choice.csv").candidate)
    monkeypatch.setattr("histokit.train.average.LARGEST_DIM", 17)
    run = train(data, tmp_path / "average", model="average", folds=folds)
    assert "out of proportion beyond 17 dimensions" in capsys.readouterr().out
    members = read_json(run.folds[0].folder / "model.json")["arguments"]["members"]
    assert [m["model"] for m in members] == [m for m in MEMBERS if m != "histoprism"]


def test_options_of_one_candidate_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="--hidden-dim applies only to"):
        train(data, tmp_path / "run", hidden_dim=8)


def test_constant_predictions_count_as_zero_and_constant_targets_not(data):
    slide = Cohort(data, "tiny").load("D1", GENES)
    model = Mean(16, 30)
    assert slide_pcc(model, slide, np.arange(30), TARGET) == 0
    linear = models.LinearMap(16, 16, 30)
    torch.nn.init.normal_(linear.components)
    whole = slide_pcc(linear, slide, np.arange(30), TARGET)
    truth = normalize(slide.counts, slide.library_size, TARGET).toarray()
    predicted = linear.predict(slide.features, "IDC").numpy()
    by_gene = [np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, truth.T, strict=True)]
    assert whole == pytest.approx(np.mean(by_gene), abs=1e-5)
    with torch.no_grad():
        linear.head.weight[3] = 0
    by_gene[3] = 0
    assert slide_pcc(linear, slide, np.arange(30), TARGET) == pytest.approx(
        np.mean(by_gene), abs=1e-5
    )
    slide.counts[:, 5] = 0
    slide.measured[7] = False
    del by_gene[7], by_gene[5]
    assert slide_pcc(linear, slide, np.arange(30), TARGET) == pytest.approx(
        np.mean(by_gene), abs=1e-5
    )
    slide.measured[:] = False
    assert np.isnan(slide_pcc(linear, slide, np.arange(30), TARGET))
    with torch.no_grad():
        linear.head.bias[0] = torch.inf
    slide.measured[:] = True
    with pytest.raises(InputError, match="not finite on slide D1"):
        slide_pcc(linear, slide, np.arange(30), TARGET)
