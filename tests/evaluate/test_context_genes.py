"""Measured genes of some test spots as context: which, what the model sees, what is scored."""

import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from cohorts import write_cohort
from scipy.stats import pearsonr

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.context import Context, read_context
from histokit.evaluate.runs import Run
from histokit.maps.trust import gene_trust

SLIDES = {"A1": ("IDC", "A", 40), "B1": ("PRAD", "B", 36), "C1": ("IDC", "C", 30)}
FOLDS = "slide_id,split\nA1,train\nB1,val\nC1,test\n"
TINY = {"hidden_dim": 16, "feedforward_dim": 16, "num_layers": 1, "epochs": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    write_cohort(folder / "data", SLIDES)
    (folder / "folds.csv").write_text(FOLDS)
    for model, tiny in (("stpath", TINY), ("ridge", {})):
        run_train.main(
            run_train.Options(
                data=str(folder / "data"),
                run=str(folder / model),
                model=model,
                folds=str(folder / "folds.csv"),
                encoder="tiny",
                preset="small" if tiny else "paper",
                **tiny,
            )
        )
    return folder


def evaluate(place, out, *models, **options):
    options = {"num_hvg": 8, "pictures": False, "predict_genes": "all"} | options
    runs = [str(place / model) for model in models or ("stpath",)]
    run_eval.main(run_eval.Options(run=runs, out=str(out) if out else None, **options))


@pytest.fixture(scope="module")
def shown(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("shown") / "eval"
    evaluate(place, out, context_genes="0.2", context_seed=3)
    return out


def test_shown_spots_are_in_no_figure_and_in_no_prediction(place, shown):
    spots = pd.read_csv(shown / "context_spots.csv")
    assert set(spots["slide_id"]) == {"C1"}
    assert len(spots) == 6
    (path,) = (shown / "predictions").rglob("C1.h5ad")
    written = anndata.read_h5ad(path)
    whole = Cohort(place / "data", "tiny").load("C1").barcodes
    assert set(written.obs_names) == set(whole) - set(spots["barcode"])
    slides = pd.read_csv(shown / "slides.csv")
    assert slides["spots"].tolist() == [24]
    pcc = [pearsonr(x, y)[0] for x, y in zip(written.X.T, written.layers["target"].T, strict=True)]
    np.testing.assert_allclose(written.var["pcc"], pcc, atol=1e-4)


def test_what_was_shown_changes_the_prediction_and_nothing_else_does(place, shown, tmp_path):
    evaluate(place, tmp_path / "plain")
    evaluate(place, tmp_path / "again", context_genes=str(shown / "context_spots.csv"))
    plain, again, first = (
        anndata.read_h5ad(next((folder / "predictions").rglob("C1.h5ad")))
        for folder in (tmp_path / "plain", tmp_path / "again", shown)
    )
    assert again.obs_names.equals(first.obs_names)
    np.testing.assert_array_equal(again.X, first.X)
    assert not np.allclose(plain[first.obs_names].X, first.X)
    np.testing.assert_array_equal(plain[first.obs_names].layers["target"], first.layers["target"])


def test_every_file_says_so(shown):
    page = (shown / "report.html").read_text()
    assert "Test expression was shown to the model" in page
    assert "0.2 of the spots of each test slide (seed 3)" in page
    marked = "context of 0.2 of the spots, seed 3"
    assert set(pd.read_csv(shown / "summary.csv")["context"]) == {marked}
    summary = json.loads((shown / "summary.json").read_text())
    assert summary["knobs"]["context"] == marked
    written = anndata.read_h5ad(next((shown / "predictions").rglob("C1.h5ad")))
    assert marked in written.uns["histokit"]["knobs"]
    listed = json.loads((shown / "manifest.json").read_text())["files"]
    assert "context_spots.csv" in listed


def test_such_figures_never_stand_where_plain_ones_are_looked_for(place, shown):
    run = Run(place / "stpath")
    with pytest.raises(InputError, match="is no evaluation"):
        gene_trust(run, pd.Index(["GENE0"]), shown)
    with pytest.raises(InputError, match="give another --out with --context-genes"):
        evaluate(place, place / "stpath" / "eval", context_genes="0.2")
    evaluate(place, None, context_genes="0.2")
    assert (place / "stpath" / "eval-context" / "report.html").is_file()
    assert not (place / "stpath" / "eval").exists()


def test_a_protocol_names_it_by_every_figure(place, tmp_path):
    run_train.main(
        run_train.Options(
            data=str(place / "data"), run=str(tmp_path / "raw"), model="stpath", encoder="tiny",
            folds=str(place / "folds.csv"), preset="small", target="log1p", **TINY,
        )
    )  # fmt: skip
    genes = tmp_path / "genes.txt"
    genes.write_text("GENE1\nGENE2\nGENE3\n")
    run_eval.main(
        run_eval.Options(
            run=[str(tmp_path / "raw")], context_genes="0.2", protocol="stpath",
            hvg_file=str(genes), pictures=False,
        )
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "raw" / "eval-context" / "protocol.csv")
    assert table["averaging"].str.contains("context of 0.2 of the spots").all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"context_genes": "1.5"}, "lies between 0 and 1"),
        ({"context_genes": "nan"}, "lies between 0 and 1"),
        ({"context_genes": "spots.csv"}, "neither a share"),
        ({"context_genes": "0.99"}, "0 are left and two are needed"),
        ({"context_genes": "0.1", "published": "IDC"}, "must not stand beside"),
    ],
)
def test_what_makes_no_sense_is_refused(place, tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        evaluate(place, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_that_take_no_context_are_refused(place, tmp_path):
    with pytest.raises(InputError, match="ridge holds ridge, which takes no measured genes"):
        evaluate(place, tmp_path / "out", "stpath", "ridge", context_genes="0.1")


def test_files_of_spots_that_do_not_fit_are_refused(place, tmp_path):
    slide = Cohort(place / "data", "tiny").load("C1")
    path = tmp_path / "spots.csv"
    for rows, match in (
        ("A1,A1-0\n", "no spot of the test slide C1"),
        ("C1,C1-0\nC1,C1-99\n", "names the spot C1-99"),
        ("".join(f"C1,C1-{i}\n" for i in range(29)), "1 are left"),
    ):
        path.write_text("slide_id,barcode\n" + rows)
        with pytest.raises(InputError, match=match):
            read_context(str(path), 0).of(slide)


def test_the_draw_depends_on_slide_barcodes_and_seed_alone(place):
    slide = Cohort(place / "data", "tiny").load("C1")
    first = Context(0.3, 1).of(slide)
    assert first.sum() == 9
    np.testing.assert_array_equal(first, Context(0.3, 1).of(slide))
    assert not np.array_equal(first, Context(0.3, 2).of(slide))
    assert Context(0.001, 0).of(slide).sum() == 1


def test_runs_set_side_by_side_carry_it_in_their_names(place, tmp_path):
    shutil.copytree(place / "stpath", tmp_path / "other")
    runs = [str(place / "stpath"), str(tmp_path / "other")]
    out = str(tmp_path / "both")
    run_eval.main(
        run_eval.Options(run=runs, out=out, num_hvg=8, pictures=False, context_genes="0.2")
    )
    table = pd.read_csv(tmp_path / "both" / "comparison.csv")
    assert len(table) == 2
    assert table["run"].str.endswith("context of 0.2 of the spots, seed 0").all()
    assert "Test expression was shown" in (tmp_path / "both" / "report.html").read_text()
