import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import Nursery

from histokit.core.options import run

SHARED = Path(__file__).resolve().parents[2] / "shared"


LONG = (
    "test_cuda_host_ops", "test_notebook", "test_run_predict", "test_evaluate",
    "test_train_bpbooster", "test_long_work", "test_train", "test_auto",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest modules begin first, so that no worker is left with one at the end."""
    place = {f"{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides beside the checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real slides are absent: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Gene sets, metadata and real slides beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"shared data are absent: no folder {SHARED}")
    return SHARED


@pytest.fixture
def one_fold(tmp_path) -> str:
    """A CSV of one fold over the slides of ``cohorts.write_cohort``."""
    path = tmp_path / "folds.csv"
    path.write_text("slide_id,split\nA1,train\nA2,train\nC1,train\nB1,val\nD1,test\n")
    return str(path)


@pytest.fixture(scope="session")
def children():
    """Begins scripts in processes of their own, at once."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a script's main as its command line does, in this process, where imports are done."""

    def in_process(script, *arguments) -> subprocess.CompletedProcess:
        arguments, code, before = list(map(str, arguments)), 0, signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", [script.__name__, *arguments])
        capsys.readouterr()
        try:
            run(script.main, script.Options, "")
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return in_process
