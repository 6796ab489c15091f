"""Published weights as runs: their figures, which slides are scored, what is said of leakage."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.maps.oracle import consult
from histokit.models.histoprism import OFFICIAL_CANCERS, HistoPrism
from histokit.models.stpath import ORGANS, STPath, rescale_coords
from histokit.train import official

D = 16
SLIDES = {
    "A1": ("IDC", "A", 40),
    "A2": ("LUAD", "A", 35),
    "B1": ("UCEC", "B", 33),
    "C1": ("IDC", "C", 30),
}
# the i-th gene has the i-th id from behind, so that outputs and slides differ in order
IDS = {name: f"ENSG{100 - i:011d}" for i, name in enumerate(GENES)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    histoprism = HistoPrism(D, 30, OFFICIAL_CANCERS, 16, feedforward_dim=8)
    for parameter in histoprism.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save({"model_state": histoprism.state_dict()}, folder / "best_model.pt")
    stpath = STPath(D, 32, width=16, num_layers=1, mlp_dim=16)
    torch.save(stpath.state_dict(), folder / "stfm.pth")
    for encoder in ("uni", "gigapath"):
        write_cohort(folder / encoder, SLIDES, dim=D, encoder=encoder)
    (folder / "genes.json").write_text(json.dumps(IDS))
    (folder / "hvg.txt").write_text("\n".join(GENES[:8]))
    return folder


def load(place, run, model="histoprism", **options):
    files = {"histoprism": ("best_model.pt", "uni"), "stpath": ("stfm.pth", "gigapath")}
    weights, encoder = files[model]
    options = {
        "weights": [str(place / weights)],
        "genes": str(place / "genes.json"),
        "data": str(place / encoder),
    } | options
    official.main(official.Options(model=model, run=str(run), **options))
    return run


def evaluate(place, *runs, **options):
    options = {"pictures": False, "predict_genes": "all"} | options
    options = {"hvg_file": str(place / "hvg.txt")} | options
    run_eval.main(run_eval.Options(run=[str(run) for run in runs], **options))


def written(run, slide_id, evaluation="eval"):
    return anndata.read_h5ad(run / evaluation / "predictions" / "official" / f"{slide_id}.h5ad")


@pytest.fixture(scope="module")
def histoprism(place):
    run = load(place, place / "histoprism")
    evaluate(place, run)
    return run


@pytest.mark.parametrize(
    ("slide_id", "code"), [("A1", "IDC"), ("A2", "LUNG"), ("B1", ""), ("C1", "IDC")]
)
def test_histoprism_predicts_as_its_weights_do(place, histoprism, slide_id, code):
    model = HistoPrism.from_official(place / "best_model.pt")
    found = written(histoprism, slide_id)
    slide = Cohort(place / "uni", "uni").load(slide_id, list(found.var_names))
    expected = model.predict(slide.features, code).numpy()
    assert list(found.obs_names) == slide.barcodes
    assert list(found.var["gene_id"]) == sorted(IDS.values())
    assert [IDS[name] for name in found.var_names] == list(found.var["gene_id"])
    np.testing.assert_allclose(found.X, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.layers["target"], np.log1p(slide.counts.toarray()), rtol=1e-5)


def test_the_report_tells_whose_weights_they_are_and_claims_no_new_patient(histoprism):
    page = (histoprism / "eval" / "report.html").read_text()
    assert "HistoPrism, best_model.pt" in page
    assert "nothing says whether the test slides here were among those" in page
    assert "No test patient was seen" not in page
    assert "The cohort names no patients" not in page
    slides = pd.read_csv(histoprism / "eval" / "slides.csv", keep_default_na=False)
    assert set(slides["patient_seen"]) == {"unknown"}
    assert dict(zip(slides["slide_id"], slides["cancer_known"], strict=True))["B1"] == "no"
    config = json.loads((histoprism / "config.json").read_text())
    assert len(config["official"]["weights_sha256"]) == 64


def test_codes_that_were_never_trained_are_told_as_none(histoprism):
    (fold,) = Run(histoprism).folds
    model = fold.load_model()
    assert not any(model.knows_cancer(code) for code in ("LUSC", "Healthy", "Unknown"))
    assert model.cancer_code("HCC") == 28
    with pytest.raises(InputError, match="know the cancer code 'UCEC'") as caught:
        model.cancer_code("UCEC")
    known = consult(Run(histoprism)).ensemble.cancers()
    assert {"HCC", "IDC", "LUNG"} <= set(known)
    for text in (str(caught.value), *known):
        assert "never trained" not in text
        assert "Healthy" not in text


def test_genes_have_to_be_given_or_chosen_by_a_protocol(place, histoprism, tmp_path):
    with pytest.raises(InputError, match="give the genes with --hvg-file, or a --protocol"):
        evaluate(place, histoprism, hvg_file=None, out=str(tmp_path / "none"))
    out = tmp_path / "protocol"
    evaluate(place, histoprism, hvg_file=None, protocol="histoprism", out=str(out))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["hvgs"] == "the list of the protocol histoprism"
    slides = pd.read_csv(out / "slides.csv").set_index("slide_id")
    figures = pd.read_csv(out / "protocol.csv").set_index(["figure", "group"])["value"]
    assert slides["pcc_hvg"].mean() == pytest.approx(figures["pcc-top50-micro", "all"], abs=1e-4)


def test_a_split_says_which_slides_trained_and_they_are_not_scored(place, tmp_path):
    (tmp_path / "split_0").mkdir()
    for role, rows in (
        ("train", "A1,IDC\nNCBI1,IDC\n"),
        ("val", "B1,UCEC\n"),
        ("test", "A2,LUNG\nC1,ILC\n"),
    ):
        path = tmp_path / "split_0" / f"{role}_split.csv"
        path.write_text("sample_id,oncotree_code_filled\n" + rows)
    run = load(place, tmp_path / "run", split=str(tmp_path / "split_0"))
    evaluate(place, run)
    slides = pd.read_csv(run / "eval" / "slides.csv").set_index("slide_id")
    assert dict(slides["patient_seen"]) == {"A2": "yes", "C1": "unknown"}
    assert dict(slides["cancer"]) == {"A2": "LUNG", "C1": "ILC"}
    page = (run / "eval" / "report.html").read_text()
    assert "2 slides of the cohort trained or validated them" in page
    assert "(A1, B1)" in page
    assert "taken on trust" in page


def two_splits(folder):
    """Each slide is tested by one split and trains the other."""
    for split, train, test in (
        ("split_0", "A1,IDC\n", "C1,IDC\n"),
        ("split_1", "C1,IDC\n", "A1,IDC\n"),
    ):
        (folder / split).mkdir(parents=True)
        for role, rows in (("train", train), ("val", "B1,UCEC\n"), ("test", test)):
            text = "sample_id,oncotree_code_filled\n" + rows
            (folder / split / f"{role}_split.csv").write_text(text)
    return str(folder)


def test_each_split_is_scored_by_its_own_weights(place, tmp_path):
    splits = two_splits(tmp_path / "splits")
    other = HistoPrism(D, 30, OFFICIAL_CANCERS, 16, feedforward_dim=8)
    torch.save({"model_state": other.state_dict()}, tmp_path / "second.pt")
    weights = [str(place / "best_model.pt"), str(tmp_path / "second.pt")]
    run = load(place, tmp_path / "run", weights=weights, split=splits)
    first, second = Run(run).folds
    assert (first.name, second.name) == ("split_0", "split_1")
    x = torch.rand(4, D)
    expected = HistoPrism.from_official(weights[0]).predict(x, "IDC")
    torch.testing.assert_close(first.load_model().predict(x, "IDC"), expected)
    torch.testing.assert_close(second.load_model().predict(x, "IDC"), other.predict(x, "IDC"))
    evaluate(place, run, predictions=False)
    slides = pd.read_csv(run / "eval" / "slides.csv").set_index("slide_id")
    assert dict(slides["fold"]) == {"C1": "split_0", "A1": "split_1"}
    assert "by weights that it did not train" in (run / "eval" / "report.html").read_text()


def test_one_file_of_weights_is_scored_on_the_test_slides_of_several_splits(place, tmp_path):
    run = load(place, tmp_path / "run", "stpath", test=two_splits(tmp_path / "splits"))
    assert [fold.split["slide_id"].tolist() for fold in Run(run).folds] == [["C1"], ["A1"]]
    evaluate(place, run, predictions=False)
    page = (run / "eval" / "report.html").read_text()
    assert "nothing says whether the test slides here were among those" in page


def test_comparisons_say_which_run_was_not_trained_here(place, histoprism, tmp_path):
    folds = tmp_path / "folds.csv"
    rows = "\n".join(f"{s},{'test' if s == t else 'train'},{t}" for t in SLIDES for s in SLIDES)
    folds.write_text("slide_id,split,fold\n" + rows + "\n")
    run_train.main(
        run_train.Options(
            data=str(place / "uni"), run=str(tmp_path / "ridge"), model="ridge", encoder="uni",
            target="log1p", folds=str(folds), allow_leakage=True,
        )
    )  # fmt: skip
    evaluate(place, histoprism, tmp_path / "ridge", out=str(tmp_path / "both"))
    page = (tmp_path / "both" / "report.html").read_text()
    assert "histoprism: The weights are published ones" in page
    assert "trained on different slides" in page


def test_stpath_is_told_organ_and_technology_and_takes_context(place, tmp_path):
    run = load(place, tmp_path / "stpath", "stpath")
    evaluate(place, run)
    network = STPath.from_official(place / "stfm.pth")
    slide = Cohort(place / "gigapath", "gigapath").load("A2")
    places = rescale_coords(torch.from_numpy(slide.centers)).float()
    with torch.inference_mode():
        expected = network(slide.features, places, 2, ORGANS.index("Lung"))[:, 2:]
    np.testing.assert_allclose(written(run, "A2").X, expected.numpy(), rtol=1e-4, atol=1e-5)
    oracle = consult(Run(run))
    assert "published weights" in oracle.unchecked
    assert "published ones" in oracle.trust.said[0]
    made = oracle.ensemble.on(slide)
    np.testing.assert_allclose(made.block(0, 30), expected.numpy(), rtol=1e-4, atol=1e-5)
    evaluate(place, run, context_genes="0.1")
    shown = written(run, "A2", "eval-context")
    assert shown.n_obs == 31  # four of 35 are shown
    page = (run / "eval-context" / "report.html").read_text()
    assert "Test expression was shown" in page
    assert "The weights are published ones" in page


def test_nothing_is_made_of_what_does_not_fit(place, tmp_path):
    (tmp_path / "two.csv").write_text("slide_id,split,fold\nA1,test,a\nA1,test,b\n")
    (tmp_path / "none.csv").write_text("slide_id,split\nX1,test\nA1,train\n")
    (tmp_path / "twice.csv").write_text("slide_id,split\nA1,test\nA1,train\n")
    (tmp_path / "few.json").write_text(json.dumps(dict(list(IDS.items())[:4])))
    narrow = write_cohort(tmp_path / "narrow", {"A1": ("IDC", "A", 9)}, dim=8, encoder="uni")
    for options, match in (
        (
            {"split": str(tmp_path / "two.csv")},
            "holds 2 splits and --weights names 1 files; give 2",
        ),
        ({"split": str(tmp_path / "twice.csv"), "test": str(tmp_path / "two.csv")}, "one of them"),
        ({"split": str(tmp_path / "none.csv")}, "no test slide of"),
        ({"split": str(tmp_path / "twice.csv")}, "lists slide A1 twice"),
        ({"genes": str(tmp_path / "few.json")}, "names 4 genes"),
        ({"weights": [str(place / "stfm.pth")]}, "not a HistoPrism checkpoint"),
        ({"data": str(narrow)}, "features of dimension 16 and those of slide A1 have 8"),
        ({"data": str(place / "gigapath"), "encoder": "gigapath"}, "of encoder uni"),
    ):
        with pytest.raises(InputError, match=match):
            load(place, tmp_path / "run", **options)
        assert not (tmp_path / "run" / "config.json").exists()


def test_a_run_is_not_overwritten(place, histoprism):
    with pytest.raises(InputError, match="holds a run already"):
        load(place, histoprism)


def test_the_command_says_what_it_made(place, tmp_path, call):
    done = call(
        official, "--model", "histoprism", "--weights", place / "best_model.pt", "--genes",
        place / "genes.json", "--data", place / "uni", "--run", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0
    assert "slides of LUAD are called LUNG" in done.stdout
    assert "wrote the published HistoPrism for 4 test slides" in done.stdout
