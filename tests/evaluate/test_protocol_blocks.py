"""A protocol's figures do not depend on how many spots are looked at together."""

import pandas as pd
import pytest
from cohorts import write_cohort

import run_train
from histokit.data.cohort import Cohort
from histokit.evaluate import protocol_scores
from histokit.evaluate.gene_lists import GeneLists
from histokit.evaluate.protocols import PROTOCOLS
from histokit.evaluate.runs import Run
from histokit.evaluate.views import Views
from histokit.models.outputs import Outputs


@pytest.mark.parametrize("name", ["histoprism", "hest-bench"])
def test_expression_is_formed_for_a_few_spots_at_a_time(name, tmp_path, one_fold, monkeypatch):
    data, run = write_cohort(tmp_path / "data"), tmp_path / "run"
    given = {"data": str(data), "run": str(run), "folds": one_fold, "encoder": "tiny"}
    run_train.main(run_train.Options(**given, model="ridge", target="log1p"))
    formed, predict = [], Outputs.__call__

    def spy(outputs, hidden):
        formed.append(len(hidden))
        return predict(outputs, hidden)

    def table():
        lists = GeneLists({"": ["GENE3", "GENE1", "GENE8"]})
        scores = protocol_scores.ProtocolScores(Run(run), PROTOCOLS[name], lists)
        for view in Views(Run(run), Cohort(data, "tiny")).of():
            formed.clear()
            scores.add(view)
        return scores.table()

    monkeypatch.setattr(Outputs, "__call__", spy)
    whole = table()
    assert formed == [33]  # spots of D1
    monkeypatch.setattr(protocol_scores, "_SPOTS", 10)
    parts = table()
    assert formed == [10, 10, 10, 3]
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-5)
