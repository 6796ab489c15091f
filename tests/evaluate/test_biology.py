import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from cohorts import GENES, write_cohort

import run_eval
import run_train
from histokit.core.errors import InputError
from histokit.evaluate.topics.signatures import score_signature


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("biology")
    data = write_cohort(folder / "data", genes={"C1": GENES[:-1]})
    for model in ("ridge", "ridge-hest", "mean"):
        run_train.main(
            run_train.Options(
                data=str(data), run=str(folder / model), model=model, panel="union",
                folds="leave-one-patient-out", encoder="tiny",
            )
        )  # fmt: skip
    sets = {"ONE": GENES[:10], "TWO": GENES[8:20], "THREE": [GENES[29], "ABSENT"]}
    lines = ["\t".join([name, "na", *genes]) for name, genes in sets.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    (folder / "sig.txt").write_text(f"{GENES[2]}\nNEW|{GENES[5]}\n{GENES[29]}\nABSENT\n")
    return folder


def evaluate(folder, *names, **options):
    options = {"num_hvg": 8, "pictures": False, "curate": False,
               "gene_sets": [str(folder / "sets.gmt")]} | options  # fmt: skip
    run_eval.main(run_eval.Options(run=[str(folder / name) for name in names], **options))
    return folder / names[0] / "eval"


def test_one_run_reports_pathways_signatures_and_clusters(runs):
    signature = [str(runs / "sig.txt")]
    out = evaluate(runs, "ridge", signature=signature, clusters=True, predict_genes="all")
    pcc = pd.read_csv(out / "pcc_by_slide.csv", index_col="gene")
    table = pd.read_csv(out / "coherence_sets.csv", index_col="pathway")
    assert table.index.tolist() == ["ONE", "TWO", "THREE"]
    by_slide = pcc.loc[GENES[:10]].mean()
    patients = by_slide.groupby(by_slide.index.str[0]).mean()
    assert table.loc["ONE", "score"] == pytest.approx(patients.mean(), abs=1e-3)
    assert table.loc["ONE", "score_over_slides"] == pytest.approx(by_slide.mean(), abs=1e-3)
    assert table.loc["THREE", ["genes", "slides"]].tolist() == [1, 5]  # not measured on C1
    reasons = pd.read_csv(out / "curation_sets.csv", index_col="name")
    assert reasons.loc["THREE", ["size", "size_in_universe"]].tolist() == [2, 1]

    rows = pd.read_csv(out / "signatures.csv").set_index("slide_id")
    assert rows["genes"].to_dict() == {s: 2 if s == "C1" else 3 for s in rows.index}
    written = anndata.read_h5ad(next((out / "predictions").glob("*/A1.h5ad")))
    own = written[:, [GENES[2], GENES[5], GENES[29]]]
    expected = score_signature(own.X, own.layers["target"])["pcc"]
    assert rows.loc["A1", "pcc"] == pytest.approx(expected, abs=1e-5)
    genes = pd.read_csv(out / "signature_sig.csv", index_col="name")
    assert genes["gene"].to_dict() == {GENES[2]: GENES[2], "NEW": GENES[5], GENES[29]: GENES[29]}

    clusters = pd.read_csv(out / "clusters.csv")
    assert clusters["items"].tolist() == [6, 6, 221, 221]
    assert clusters["ami"].between(-1, 1).all()
    html = (out / "report.html").read_text()
    for text in ("Pathways: sets", "Signature: sig", "Clusters against cancer types", "ABSENT"):
        assert text in html


def test_runs_are_compared_pathway_by_pathway(runs):
    evaluate(runs, "ridge", "ridge-hest", "mean", predictions=False)
    table = pd.read_csv(runs / "comparison" / "pathways.csv")
    assert set(table["run"]) | set(table["other_run"]) == {"ridge", "ridge-hest"}
    scores = {
        name: pd.read_csv(runs / name / "eval" / "coherence_sets.csv", index_col="pathway")["score"]
        for name in ("ridge", "ridge-hest")
    }
    row = table.set_index("pathway").loc["ONE"]
    gain = scores[row["run"]]["ONE"] - scores[row["other_run"]]["ONE"]
    assert row["gain"] == pytest.approx(gain, abs=1e-5)
    assert len(list((runs / "comparison").glob("scatter_*.png"))) == 1
    assert "Pathway by pathway" in (runs / "comparison" / "report.html").read_text()
    assert "No pathway could be scored" in (runs / "mean" / "eval" / "report.html").read_text()


def test_one_cancer_is_said_not_to_be_scorable(runs, tmp_path):
    shutil.copytree(runs / "data", tmp_path / "data")
    slides = pd.read_csv(tmp_path / "data" / "slides.csv")
    slides.assign(cancer="IDC").to_csv(tmp_path / "data" / "slides.csv", index=False)
    run_train.main(
        run_train.Options(
            data=str(tmp_path / "data"), run=str(tmp_path / "mean"), model="mean", encoder="tiny"
        )
    )
    out, sets = str(tmp_path / "out"), [str(runs / "sets.gmt")]
    evaluate(tmp_path, "mean", out=out, clusters=True, predictions=False, gene_sets=sets)
    assert (
        "all test slides with a cancer code are of one cancer"
        in (tmp_path / "out" / "report.html").read_text()
    )
    assert not (tmp_path / "out" / "clusters.csv").exists()


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("A\tna\tXIST\n", {}, "gene sets bad: none of the 1 genes of the sets"),
        ("A\tna\n", {}, "line 1 of .*bad.gmt holds no gene set"),
        (f"A\tna\t{GENES[0]}\n", {"curate": True}, "none has 50 to 100 genes .* --no-curate"),
    ],
)
def test_bad_gene_sets_are_refused_before_any_work(runs, tmp_path, text, options, match):
    (tmp_path / "bad.gmt").write_text(text)
    bad = [str(tmp_path / "bad.gmt")]
    with pytest.raises(InputError, match=match):
        evaluate(runs, "ridge", out=str(tmp_path / "out"), gene_sets=bad, **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="names sig twice"):
        evaluate(runs, "ridge", out=str(tmp_path / "out"), signature=[str(runs / "sig.txt")] * 2)
    assert not np.any(list(tmp_path.glob(".out*")))
