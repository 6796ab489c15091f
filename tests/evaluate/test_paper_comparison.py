"""HistoPrism against STPath as HistoPrism's paper compares them: two runs, one command."""

import re

import pandas as pd
import pytest
from cohorts import GENES, write_cohort

import run_eval
import run_train

RUNS = ("histoprism", "stpath")


def test_one_command_gives_all_of_the_papers_figures(call, tmp_path):
    data = write_cohort(tmp_path / "data")
    sets = tmp_path / "sets.gmt"
    sets.write_text("".join("\t".join([f"S{i}", "", *GENES[5 * i : 5 * i + 8]]) + "\n"
                            for i in range(5)))  # fmt: skip
    for model in RUNS:
        done = call(
            run_train, "--data", data, "--encoder", "tiny", "--model", model, "--preset", "small",
            "--epochs", 2, "--no-refit", "--hidden-dim", 16, "--folds", "leave-one-patient-out",
            "--target", "log1p", "--unmeasured", "zero", "--run", tmp_path / model,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    done = call(
        run_eval, "--run", *(tmp_path / model for model in RUNS), "--protocol", "histoprism",
        "--gene-sets", sets, "--no-curate", "--clusters", "--no-predictions", "--no-pictures",
        "--out", tmp_path / "report",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    protocol = pd.read_csv(tmp_path / "report/protocol.csv").set_index(["run", "figure"])["value"]
    pathways = pd.read_csv(tmp_path / "report/pathways.csv")
    clusters = pd.read_csv(tmp_path / "report/clusters.csv").set_index(["run", "level", "method"])
    for model in RUNS:
        for figure in ("pcc-top50-macro", "pcc-top50-micro", "pcc-all-macro", "pcc-all-micro"):
            assert -1 <= protocol[model, figure] <= 1
        own = pd.read_csv(tmp_path / model / "eval/clusters.csv").set_index(["level", "method"])
        for name in ("ami", "ari"):
            pd.testing.assert_series_equal(clusters.loc[model][name], own[name])
        levels = pd.read_csv(tmp_path / model / "eval/coherence_sets.csv")["variance_level"]
        assert levels.between(1, 10).all()
    assert set(pathways["pathway"]) == {f"S{i}" for i in range(5)}
    assert pathways["variance_level"].between(1, 10).all()
    assert (pathways["gain_low"] <= pathways["gain"]).all()
    assert (pathways["gain"] <= pathways["gain_high"]).all()
    strata = pd.read_csv(tmp_path / "report/pathway_levels.csv").set_index("level")
    means = pathways.groupby("variance_level")["gain"].agg(["size", "mean"])
    assert strata["pathways"].to_dict() == means["size"].to_dict()
    assert strata["value"].to_dict() == pytest.approx(means["mean"].to_dict(), abs=1e-5)
    assert strata[["low", "high"]].notna().all(axis=None)
    first = pathways.iloc[0]
    assert {first["run"], first["other_run"]} == {*RUNS}
    assert first["gain"] == pytest.approx(first["score"] - first["other"], abs=1e-5)

    page = (tmp_path / "report/report.html").read_text()
    rate = (pathways["gain"] > 0).mean()
    assert re.search(rf"{rate:.0%} \[\d+%, \d+%\]", page)
    for text in ("macro", "micro", "Gain by variance level", "AMI", "ARI", "Pathway by pathway"):
        assert text in page
