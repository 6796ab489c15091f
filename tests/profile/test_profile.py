"""run_profile.py: rows that equal what they are compared with, operations, limits, the table."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_checks import needs_kernels

import run_profile
from histokit import ops
from histokit.profile import measure
from histokit.profile.cases import ROWS
from histokit.profile.measure import Setting
from histokit.profile.plots import draw_profile

ROOT = Path(__file__).resolve().parents[2]
TINY = Setting(patches=9, genes=30, device="cpu", dtype=torch.float64)


@pytest.mark.parametrize("name", ROWS)
def test_rows_equal_what_they_are_compared_with(name):
    torch.manual_seed(0)
    case = ROWS[name].build(TINY)
    with torch.no_grad():
        ours, theirs = case.check()
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        assert case.call().isfinite().all()
    assert case.traffic > 0
    assert ROWS[name].against is None or ROWS[ROWS[name].against].group == ROWS[name].group


def counted(name, at):
    case = ROWS[name].build(at)
    with torch.no_grad():
        return measure.operations(case.call)


@needs_kernels
@pytest.mark.parametrize("n", [10, 70])
def test_operations_of_histoprism(n):
    at = dataclasses.replace(TINY, patches=n, dtype=torch.float32)
    wide, width, inner, genes = 1024, 256, 2048, at.genes
    layer = n * (4 * width**2 + 2 * width * inner) + 2 * n**2 * width
    tail = n * wide * width + 2 * layer + n * width * (width + genes)
    cancer = (29 + 2 * wide) * wide  # its embedding, then value and output of one token
    here = 2 * (tail + cancer + n * wide)  # which one pass over x adds
    assert counted("HistoPrism here", at) == pytest.approx(here, rel=1e-6)
    authors = 2 * (tail + cancer + 2 * n * wide * (wide + 1))  # a softmax over one token
    assert counted("HistoPrism, authors' form", at) == pytest.approx(authors, rel=1e-6)


@needs_kernels
def test_operations_of_stpath():
    at = dataclasses.replace(TINY, patches=70, dtype=torch.float32)
    n, width = 70, 512
    layer = n * (4 * width**2 + 2 * width * 1024) + 2 * n**2 * width
    assert counted("STPath layer fused", at) == pytest.approx(2 * layer, rel=1e-6)
    ends = n * width * (1536 + at.genes + 2)
    assert counted("STPath fused", at) == pytest.approx(2 * (4 * layer + ends), rel=1e-6)


@needs_kernels
@pytest.mark.parametrize("form", ["plain", "fused"])
def test_operations_of_bpbooster(form):
    at = dataclasses.replace(TINY, patches=70, dtype=torch.float32)
    n, wide, width, prototypes = 70, 1024, 256, 64
    own = 2 * prototypes * width**2 + n * (2 * width**2 + 2 * prototypes * width)  # k, v; q, out
    forward = n * wide * width + own + n * width * at.genes
    case = ROWS[f"BP-Booster {form}"].build(at)
    with torch.no_grad():
        found = measure.operations(case.call) + case.uncounted
    assert found == pytest.approx(2 * forward, rel=1e-6)


def test_growth_finds_what_is_not_of_the_model():
    exact = {n: 3e-4 * n + 2e-8 * n**2 for n in (1000, 2000, 5000, 10_000, 20_000)}
    assert measure.growth(exact, 2e-8) == pytest.approx(dict.fromkeys(exact, 1.0))
    slow = measure.growth(exact | {20_000: 2 * exact[20_000]}, 2e-8)
    assert (slow[1000], slow[20_000]) == pytest.approx((1.0, 2.0))


@needs_kernels
def test_operations_of_gradients():
    q, k, v = torch.randn(3, 2, 20, 8, requires_grad=True).unbind()

    def step():
        out = ops.distance_attention(q, k, v, torch.rand(20, 2), torch.ones(2))
        return torch.autograd.grad(out.sum(), [q, k, v])

    assert measure.operations(step) == (2 + 5) * 2 * 2 * 20**2 * 8


def test_peak_memory_is_what_a_call_needs():
    program = """
import torch
from histokit.profile.measure import peak_memory
torch.ones(1000).sum()
print(peak_memory(lambda: torch.ones(25_000_000).sum(), "cpu"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(25e6 * 4 / 2**20, rel=0.2)


def test_a_row_past_its_time_is_left_out():
    cfg = run_profile.Options(limit=0.05)
    assert run_profile._measure(cfg, "STPath fused", 10) == {
        "note": "left out: takes longer than 0.05 s"
    }


def test_a_row_past_the_memory_is_left_out():
    if measure.free_memory("cpu") > 120:
        pytest.skip("here it might fit")
    found = run_profile._measure(run_profile.Options(), "STPath layer as published", 130_000)
    assert found == {"note": "left out: does not fit the memory"}


def test_a_lower_precision_is_set_beside_float32(monkeypatch):
    monkeypatch.setattr(measure, "bound_memory", lambda device: None)  # of this process
    monkeypatch.setattr("histokit.core.memory.keep_freed_memory", lambda: None)
    threads = torch.get_num_threads()
    cfg = run_profile.Options(precision="bfloat16", genes=40, repeat=1, threads=threads)
    found = run_profile._child(cfg, "STPath layer fused", 70, print)
    assert found["error"] < 1e-4  # the forms agree in float32
    assert 1e-4 < found["rms_difference"] < 2e-2
    assert 1e-4 < found["max_difference"] < 5e-2
    cfg = dataclasses.replace(cfg, precision="float32")
    assert "rms_difference" not in run_profile._child(cfg, "STPath layer fused", 70, print)


def test_one_type_and_one_precision(call):
    done = call(run_profile, "--dtype", "float16", "--precision", "bfloat16")
    assert done.returncode == 2
    assert "give one of the two" in done.stderr


def test_differences_are_relative():
    expected = torch.tensor([3.0, -4.0])
    found = run_profile._difference(expected + torch.tensor([0.0, 0.4]), expected)
    assert found == {"max_difference": 0.1, "rms_difference": 0.08}


def test_table_and_figure(tmp_path, children):
    command = [ROOT / "run_profile.py", "--patches", "70", "--genes", "40"]
    command += ["--rows", "stpath-layer", "--repeat", "2", "--out", tmp_path]
    done = children.run(*command, check=True)
    assert "STPath layer fused" in done.stdout
    with open(tmp_path / "profile.csv", newline="") as handle:
        published, careful, fused = csv.DictReader(handle)
    assert (published["row"], fused["against"]) == ("STPath layer as published", published["row"])
    assert (careful["row"], fused["careful"]) == ("STPath layer, careful", careful["row"])
    assert float(fused["error"]) < 1e-4
    ratio = float(published["ms_p50"]) / float(fused["ms_p50"])
    assert float(fused["time_ratio"]) == pytest.approx(ratio, rel=0.05)
    ratio = float(careful["ms_p50"]) / float(fused["ms_p50"])
    assert float(fused["careful_time_ratio"]) == pytest.approx(ratio, rel=0.05)
    assert (tmp_path / "profile.png").stat().st_size > 10_000


def test_figure_of_rows_that_were_left_out(tmp_path):
    empty = {"patches": 10, "against": "", "ms_p50": "", "peak_mb": "", "gflop": ""}
    draw_profile([{"row": "A", **empty}], tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_unknown_rows_are_named(children):
    done = children.run(ROOT / "run_profile.py", "--rows", "stem")
    assert done.returncode == 2
    assert "error: --rows stem is none of histoprism" in done.stderr
