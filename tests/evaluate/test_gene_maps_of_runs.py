"""Maps of symbols in runs: kept, compared, and what lists of genes depend on."""

import types

import numpy as np
import pandas as pd
import pytest
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit.data.cohort import Cohort
from histokit.data.gene_map import GeneMap
from histokit.evaluate.compare import comparison_notes
from histokit.evaluate.questions import Questions
from histokit.evaluate.runs import Run

IDS = {name: f"ENSG{i:011d}" for i, name in enumerate(GENES)}
JOINED = IDS | {"GENE1": IDS["GENE0"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def write_map(path, ids):
    pd.DataFrame(ids.items(), columns=["symbol", "gene_id"]).to_csv(path, index=False)
    return path


@pytest.fixture
def train(data, tmp_path, one_fold, call):
    def run(name, *more):
        given = ["--data", data, "--encoder", "tiny", "--folds", one_fold, "--model", "mean"]
        return call(run_train, *given, "--target", "log1p", "--run", tmp_path / name, *more)

    return run


def test_lists_are_drawn_anew_for_other_codes_and_other_maps(data):
    cohort = Cohort(data, "tiny")
    slides = pd.DataFrame({"slide_id": ["A1", "A2", "B1"], "split": ["train", "test", "test"]})

    def lists(codes, tests=("A2", "B1"), gene_map=None):
        split = slides.assign(cancer=codes)
        split.loc[~split["slide_id"].isin(tests), "split"] = "train"
        run = types.SimpleNamespace(folds=[types.SimpleNamespace(split=split)])
        own = cohort if gene_map is None else cohort.with_gene_map(gene_map)
        job = types.SimpleNamespace(run=run, cohort=own)
        return questions.gene_lists(job, "histoprism")

    questions = Questions([], [], None)
    first = lists(["IDC", "IDC", "PRAD"])
    assert set(first.by_cancer) == {"IDC", "PRAD"}
    assert set(lists(["COAD", "COAD", "PRAD"]).by_cancer) == {"COAD", "PRAD"}
    assert set(lists(["IDC", "IDC", "PRAD"], ["B1"]).by_cancer) == {"PRAD"}
    assert "GENE1" in first.of("IDC")
    assert "GENE1" not in lists(["IDC", "IDC", "PRAD"], gene_map=GeneMap(JOINED)).of("IDC")
    assert len(questions.lists) == 4
    assert lists(["IDC", "IDC", "PRAD"]) is first
    assert lists(["IDC", "IDC", "PRAD"], gene_map=GeneMap(JOINED, "first")) is not first


def test_a_map_that_was_changed_is_refused_where_a_training_goes_on(train, tmp_path):
    path = write_map(tmp_path / "map.csv", IDS)
    assert train("run", "--gene-map", path).returncode == 0
    (tmp_path / "run/folds/0/model.safetensors").unlink()  # killed before its end
    kept = (tmp_path / "run/gene_map.csv").read_bytes()
    write_map(path, dict(reversed(IDS.items())))  # the same, in another order
    assert train("run", "--gene-map", path).returncode == 0
    (tmp_path / "run/folds/0/model.safetensors").unlink()
    write_map(path, JOINED)
    done = train("run", "--gene-map", path)
    assert done.returncode == 2
    assert "was begun with another map of symbols to ids" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "run/gene_map.csv").read_bytes() == kept
    assert not (tmp_path / "run/folds/0/model.safetensors").exists()


def test_comparisons_say_where_maps_differ(train, call, tmp_path):
    plain, joined = (write_map(tmp_path / f"{n}.csv", m) for n, m in (("a", IDS), ("b", JOINED)))
    runs = {
        "none": (),
        "plain": ("--gene-map", plain),
        "sum": ("--gene-map", joined),
        "first": ("--gene-map", joined, "--same-id", "first"),
    }
    for name, more in runs.items():
        assert train(name, *more).returncode == 0
    said = {}
    for one, other in (("none", "plain"), ("plain", "sum"), ("sum", "first"), ("sum", "sum")):
        compared = {
            place: types.SimpleNamespace(**facts(Run(tmp_path / name)))
            for place, name in enumerate((one, other))
        }
        said[one, other] = " ".join(comparison_notes(compared))
    assert "(--gene-map)" in said["none", "plain"]
    assert "(--gene-map)" in said["plain", "sum"]
    assert "(--same-id)" not in said["plain", "sum"]
    assert "(--same-id)" in said["sum", "first"]
    assert "(--gene-map)" not in said["sum", "first"]
    assert "--" not in said["sum", "sum"]
    given = ["--run", tmp_path / "sum", tmp_path / "first", "--no-pictures", "--no-predictions"]
    done = call(run_eval, *given)
    assert done.returncode == 0, done.stderr
    assert "genes that share an id (--same-id)" in done.stdout


def facts(run):
    """What notes of a comparison ask of an evaluation, the same but for the map."""
    from histokit.evaluate.controls import open_cohort
    from histokit.evaluate.evaluation import Evaluation, Job

    slides = pd.DataFrame({"slide_id": ["D1"], "hvgs_scored": [1], "spots": [30]})
    job = Job("run", run, open_cohort(run), run.folder, ["D1"])
    own = types.SimpleNamespace(job=job)
    named = {name: getattr(Evaluation, name).fget(own) for name in ("gene_ids", "same_id")}
    same = {"target": "log1p", "hvg_sets": {}, "panel": frozenset(), "training": {}}
    return {"job": job, "slides": slides, "caveats": []} | named | same


def test_without_ranks_the_protocols_genes_make_the_headline(train, call, tmp_path):
    """Of many slides, no gene may be detected in 10 % of the spots of each."""
    assert train("run").returncode == 0
    path = tmp_path / "run/folds/0/genes.csv"
    table = pd.read_csv(path)
    assert Run(tmp_path / "run").ranks_genes
    table.assign(hvg_rank=np.nan).to_csv(path, index=False)
    assert not Run(tmp_path / "run").ranks_genes
    given = ["--run", tmp_path / "run", "--no-pictures", "--no-predictions"]
    done = call(run_eval, *given)
    assert done.returncode == 2
    assert "name the genes with --hvg-file" in done.stderr
    done = call(run_eval, *given, "--protocol", "histoprism")
    assert done.returncode == 0, done.stderr
    slides = pd.read_csv(tmp_path / "run/eval/slides.csv")
    protocol = pd.read_csv(tmp_path / "run/eval/protocol.csv").set_index(["figure", "group"])
    assert slides["hvgs"].tolist() == [protocol.loc[("pcc-top50-micro", "all"), "genes"]]
    summary = pd.read_csv(tmp_path / "run/eval/summary.csv")
    assert set(summary["gene_rule"]) == {"the list of the protocol histoprism"}
