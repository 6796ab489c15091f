"""Rows of the her2st tables in RESULTS.md."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def her2st(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("her2st")
    sys.modules.pop("her2st")


def test_the_variance_of_the_targets_stands_beside_each_mse(her2st, tmp_path):
    nan = float("nan")
    figures = {
        "yes": {"pcc_hvg": (0.25, 0.1, 0.4), "mse": (0.2, 0.1, 0.3), "target_variance": (0.21,)},
        "no": {"pcc_hvg": (-0.0001, nan, nan), "mse": (0.4, nan, nan), "target_variance": (0.33,)},
    }
    rows = [
        ("patient_seen", seen, average, metric, *(*values, nan, nan)[:3])
        for seen, metrics in figures.items()
        for metric, values in (metrics | {"pcc_all": (0.1, 0.0, 0.2)}).items()
        for average in ("mean", "macro")
    ]
    columns = ["by", "group", "average", "metric", "value", "low", "high"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "summary.csv", index=False)
    row = her2st.row_of(tmp_path / "summary.csv")
    shown = her2st.markdown(pd.DataFrame([row])).splitlines()
    heads, cells = ([c.strip() for c in shown[i].strip("|").split("|")] for i in (0, 2))
    within, new = "C, one section held out [over sections]", "C -> B4"
    assert dict(zip(heads, cells, strict=True)) == {
        f"{within}: PCC top 50": "0.250 [0.100, 0.400]",
        f"{within}: PCC all": "0.100 [0.000, 0.200]",
        f"{within}: MSE": "0.200 [0.100, 0.300]",
        f"{within}: target variance": "0.210",
        f"{new}: PCC top 50": "0.000",
        f"{new}: PCC all": "0.100 [0.000, 0.200]",
        f"{new}: MSE": "0.400",
        f"{new}: target variance": "0.330",
    }
