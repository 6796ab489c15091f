"""A slide of two spots is scored and listed, and moves no average."""

import json

import numpy as np
import pandas as pd
import pytest
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit.evaluate.summary import MIN_SPOTS, averaged

SLIDES = {name: ("IDC", name, 40) for name in "ABCDEF"} | {"TWO": ("PRAD", "G", 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    data = write_cohort(folder / "data", SLIDES)
    (folder / "sets.gmt").write_text("ONE\tna\t" + "\t".join(GENES[:12]) + "\n")
    (folder / "signature.txt").write_text("\n".join(GENES[3:9]) + "\n")
    for tests in ("CDEF", ["C", "D", "E", "F", "TWO"]):
        name = "with" if "TWO" in tests else "without"
        rows = [f"{s},train" for s in "AB"] + [f"{s},test" for s in tests]
        (folder / f"{name}.csv").write_text("\n".join(["slide_id,split", *rows]) + "\n")
        for model in ("ridge", "ridge-hest"):
            run_train.main(
                run_train.Options(
                    data=str(data), run=str(folder / name / model), model=model, encoder="tiny",
                    folds=str(folder / f"{name}.csv"),
                )
            )  # fmt: skip
        run_eval.main(
            run_eval.Options(
                run=[str(folder / name / model) for model in ("ridge", "ridge-hest")], num_hvg=8,
                gene_sets=[str(folder / "sets.gmt")], curate=False,
                signature=[str(folder / "signature.txt")], predictions=False, pictures=False,
            )
        )  # fmt: skip
    return folder


def read(runs, name, file, **options):
    return pd.read_csv(runs / name / "ridge" / "eval" / file, **options)


def test_it_is_scored_and_listed(runs):
    slides = read(runs, "with", "slides.csv", index_col="slide_id")
    assert slides["below_floor"].to_dict() == {s: s == "TWO" for s in ("C", "D", "E", "F", "TWO")}
    assert slides.loc["TWO", "spots"] == 2 < MIN_SPOTS
    assert slides.loc["TWO", "pcc_hvg"] == pytest.approx(slides.loc["TWO", "pcc_hvg"])
    matrix = read(runs, "with", "pcc_by_slide.csv", index_col="gene")
    assert set(np.abs(matrix["TWO"].dropna())) == {1.0}  # a correlation of two spots
    assert len(averaged(slides)) == 4


def test_no_average_moves(runs):
    for file in ("genes.csv", "coherence_sets.csv", "signature_signature.csv"):
        with_two, without = (read(runs, name, file) for name in ("with", "without"))
        pd.testing.assert_frame_equal(with_two, without)
    keys = ["by", "group", "average", "metric"]
    with_two, without = (
        read(runs, name, "summary.csv").set_index(keys).sort_index() for name in ("with", "without")
    )
    rows = without.index[without.index.get_level_values("by") != "cancer"]
    columns = ["value", "low", "high", "units", "slides", "patients"]
    pd.testing.assert_frame_equal(with_two.loc[rows, columns], without.loc[rows, columns])
    assert (with_two.loc["all", "slides_below_floor"] == 1).all()
    assert with_two.loc[("cancer", "PRAD")]["value"].isna().all()
    comparisons = [
        pd.read_csv(runs / name / "comparison" / "comparison.csv") for name in ("with", "without")
    ]
    assert "in no average: TWO." in comparisons[0]["caveats"].iloc[0]
    unlike = ["slides_below_floor", "caveats"]
    numbers = [table.drop(columns=unlike) for table in comparisons]
    pd.testing.assert_frame_equal(*numbers)


def test_every_report_names_it(runs):
    for place in ("ridge/eval", "comparison"):
        html = (runs / "with" / place / "report.html").read_text()
        assert f"1 slide of fewer than {MIN_SPOTS} spots left out" in html
    html = (runs / "with" / "ridge/eval" / "report.html").read_text()
    assert "listed but in no average: TWO." in html
    assert "2, not averaged" in html
    summary = json.loads((runs / "with" / "ridge/eval" / "summary.json").read_text())
    assert summary["results"][0]["unit"] == "patient"
    assert summary["results"][0]["units"] == 4


def test_slides_of_few_spots_alone_are_no_traceback(runs, capsys):
    folds = runs / "alone.csv"
    folds.write_text("slide_id,split\nA,train\nB,train\nTWO,test\n")
    place = runs / "alone"
    run_train.main(
        run_train.Options(
            data=str(runs / "data"), run=str(place), model="ridge", encoder="tiny",
            folds=str(folds),
        )
    )  # fmt: skip
    run_eval.main(
        run_eval.Options(
            run=[str(place)], num_hvg=8, gene_sets=[str(runs / "sets.gmt")], curate=False,
            signature=[str(runs / "signature.txt")],
        )
    )  # fmt: skip
    html = (place / "eval" / "report.html").read_text()
    assert "No test slide has the 20 spots that an average takes." in html
    assert "1 slide of fewer than 20 spots left out" in capsys.readouterr().out
