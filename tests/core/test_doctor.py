"""python -m histokit.doctor: what it says and how it ends."""

import runpy
import sys

import pandas as pd
import pytest
import torch

from histokit import doctor


def consult(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("histokit.doctor", run_name="__main__")
    return end.value.code, capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_this_machine(monkeypatch, capsys, tmp_path):
    table = {"slide_id": ["a", "b"], "num_spots": [100, 3_000_000], "num_genes": [20, 38_982]}
    pd.DataFrame(table).to_csv(tmp_path / "slides.csv", index=False)
    code, said = consult(monkeypatch, capsys, "--data", tmp_path)
    assert code == 0
    for part in ("torch ", "kernels", "CPUs", "encoder efficientnet-lite0", "uni: pytorch_model"):
        assert part in said
    assert "2 slides, 3,000,100 spots" in said
    assert "\n! memory: 871.3 GiB would be needed" in said


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package"))
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(SystemExit) as end:
        doctor.main(doctor.Options())
    assert end.value.code == 1
    assert "! no-such-package is not installed; pip install" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_weights_of_none(monkeypatch, capsys, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.bin")
    code, said = consult(monkeypatch, capsys, "--check-weights", tmp_path / "a.bin")
    assert code == 1
    assert said.startswith(f"! {tmp_path}/a.bin holds the weights of no encoder")
