from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


LONG = (
    "test_long_work",
    "test_cuda_host_ops",
    "test_train_bpbooster",
    "test_train",
    "test_evaluate",
)


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
