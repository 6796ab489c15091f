"""Options out of range, absent devices, full disks, file systems without locks, weights."""

import contextlib
import dataclasses
import errno
import fcntl
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cohorts import write_cohort
from safetensors.torch import save_file

import run_eval
import run_extract
import run_profile
import run_train
from histokit import audit
from histokit.core import distributed, files, options
from histokit.core.distributed import check_device
from histokit.core.errors import InputError
from histokit.core.files import atomic_path, folder_lock, remove_leftovers, turn
from histokit.core.weights import read_state_dict
from histokit.data import synthetic
from histokit.data.cohort import Cohort
from histokit.evaluate import curation
from histokit.evaluate.folders import check_replaceable
from histokit.models import HistoPrism

ROOT = Path(run_train.__file__).parent
REQUIRED = {"data": "d", "model": "mlp", "run": "r"}

# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("epochs", [0, -1]), ("patience", [0]), ("lr", [0.0, -1.0, math.nan, math.inf]),
        ("dropout", [1.0, 2.0]),
        ("weight_decay", [-1.0, math.nan, math.inf]), ("slides_per_step", [0]),
        ("workers", [-1, 10**6]), ("seed", [-1, 2**32, 10**400]),
        ("val_fraction", [1.0, -0.5, math.nan]), ("hidden_dim", [0]), ("clip", [0.0, -1.0]),
        ("max_patches", [0]), ("cache_gb", [-1.0, math.inf, 1e7]), ("batch_size", [0]),
        ("checkpoint_seconds", [-1.0]), ("num_layers", [0]), ("num_prototypes", [0]),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_the_option_that_takes_it(name, bad):
    for value in bad:
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} must be .*, got {value}"):
            run_train.Options(**REQUIRED, **{name: value})


@pytest.mark.parametrize(
    ("module", "required"),
    [(run_train, REQUIRED), (run_extract, {"source": "s", "out": "o"}), (run_eval, {"run": ["r"]}),
     (run_profile, {}), (audit, {}), (curation, {"gene_sets": ["a"], "out": "o"}),
     (synthetic, {"out": "o"})],
)  # fmt: skip
def test_every_number_of_every_command_has_limits(module, required):
    cfg = module.Options(**required)
    for field in dataclasses.fields(cfg):
        kind = str(field.type)
        if ("int" in kind or "float" in kind) and not field.metadata["choices"]:
            assert field.metadata["limits"], f"{module.__name__}: {field.name}"
            nan = [math.nan] if kind.startswith("list") else math.nan
            with pytest.raises(InputError, match="got nan"):
                dataclasses.replace(cfg, **{field.name: nan})


def test_the_command_line_ends_with_one_sentence(children):
    done = children.run(ROOT / "run_profile.py", "--patches", 0)
    assert (done.returncode, done.stderr) == (2, "error: --patches must be at least 1, got 0\n")


@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:7", "meta", "mps"])
def test_a_device_that_is_not_there_is_one_sentence(device):
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(InputError, match=f"--device {device} is not to be had here"):
        check_device(device)
    check_device("cpu")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_world_size_that_torchrun_did_not_set_is_one_sentence(monkeypatch, name):
    for key in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(key, "2")
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=f"WORLD_SIZE is 2 but {name} is None; start several"):
        distributed.start()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_more_memory_than_there_is_ends_in_one_sentence(monkeypatch, capsys, error):
    def take(cfg):
        raise error

    monkeypatch.setattr(sys, "argv", ["run_profile.py"])
    monkeypatch.setattr(options.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        options.run(take, run_profile.Options, "")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: this takes more memory than there is")


def test_a_loop_of_links_as_a_folder_of_results_is_one_sentence(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop is a loop of symbolic links; give another --out"):
        check_replaceable(tmp_path / "loop")


# ---- locks and leftovers -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_file_systems_without_locks_are_used_and_said_once(tmp_path, monkeypatch, capsys, number):
    def refuse(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with folder_lock(tmp_path), turn(tmp_path):
            pass
    assert capsys.readouterr().err.count("has no locks") == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(InputError, match="several processes lose each other's rows"),
        turn(tmp_path),
    ):
        pass


def test_tables_on_nfs_are_locked_by_a_file_that_is_open_for_writing(tmp_path, monkeypatch, capsys):
    lock, taken = fcntl.flock, []

    def as_nfs(handle, how):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR) == 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(handle, how)
        taken.append(handle)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with turn(tmp_path):
        assert len(taken) == 1
    assert "no locks" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_hdf5_on_a_file_system_without_locks_is_read_without(tmp_path, monkeypatch, capsys, number):
    path, opened = tmp_path / "a.h5", h5py.File
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]

    def refuse(name, **options):
        if options.get("locking", True):
            raise OSError(
                f"Unable to synchronously open file (unable to lock file, errno = {number})"
            )
        return opened(name, **options)

    monkeypatch.setattr(h5py, "File", refuse)
    for _ in range(2):
        with files.open_hdf5(path, "HDF5 file") as file:
            assert file["x"][:].tolist() == [1, 2]
    assert capsys.readouterr().err.count("has no locks") == 1


def test_a_file_that_does_not_open_is_not_called_damaged_whatever_the_library_says(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    said = str(files.unreadable(tmp_path / "loop", FileNotFoundError("No such file"), "file"))
    assert said == f"{tmp_path / 'loop'} is a loop of symbolic links; point it at a file"


@pytest.mark.parametrize("name", ["a" * 250 + ".csv", "\u00e9" * 120 + ".csv"])
def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("x")
        assert temporary.suffix == ".csv"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_locked_feature_file_is_not_called_damaged(tmp_path, monkeypatch):
    data = write_cohort(tmp_path / "data", {"A": ("IDC", "A", 5)})
    holder = (
        "import h5py, sys\n"
        f"file = h5py.File({str(data / 'features/tiny/A.h5')!r}, 'r+', locking=True)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(InputError, match="is locked by another process; wait") as caught:
            Cohort(data, "tiny").load("A")
        assert "delete" not in str(caught.value)
    finally:
        process.communicate(b"")


def test_temporary_files_of_killed_processes_are_removed_and_others_are_not(tmp_path):
    for name in (".last.123.tmp.ckpt", "folds/.split.9.tmp.csv", ".note.tmp.txt", "a.tmp.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    left = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert left == [".note.tmp.txt", "a.tmp.csv"]


# ---- a full disk -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail at inline_container.cc]"), ValueError("x"),
              OSError("can't write"), OSError(errno.EDQUOT, "quota")],
)  # fmt: skip
def test_whatever_a_writer_raises_on_a_full_disk_names_the_file(tmp_path, monkeypatch, error):
    monkeypatch.setattr(files, "_is_full", lambda folder, error: True)
    with pytest.raises(OSError, match="No space left") as caught, atomic_path(tmp_path / "a.bin"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))
    assert not list(tmp_path.iterdir())


def test_a_quota_that_a_library_hides_is_a_full_disk(tmp_path):
    def write():
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc]")  # noqa: B904, as torch does

    with pytest.raises(OSError, match="No space left"), atomic_path(tmp_path / "a.bin"):
        write()


def test_other_errors_of_a_writer_stay_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="x"), atomic_path(tmp_path / "a.bin"):
        raise ValueError("x")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many kilobytes; gone at the end."""
    mounted = []

    def make(size):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if subprocess.run(options, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("model", ["ridge", "histoprism"])
def test_a_full_disk_in_training_is_one_sentence_and_the_rerun_goes_on(
    tmp_path, small_disk, model, one_fold, children
):
    data = write_cohort(tmp_path / "data", dim=256)
    disk = small_disk(120)
    filler = disk / "filler"
    arguments = ["--data", data, "--encoder", "tiny", "--model", model, "--preset", "small",
                 "--folds", one_fold, "--epochs", 2, "--run", disk / "run",
                 "--kernels", "reference", "--checkpoint-seconds", 0]  # fmt: skip
    with open(filler, "wb") as file:
        file.write(b"0" * 60_000)
    done = children.run(ROOT / "run_train.py", *arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: the disk is full at {disk}"), done.stderr
    assert "Traceback" not in done.stderr
    filler.unlink()
    larger = small_disk(300_000)
    shutil.copytree(disk / "run", larger / "run")
    arguments[arguments.index(disk / "run")] = larger / "run"
    done = children.run(ROOT / "run_train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert not list(larger.rglob("*.tmp*"))


def test_a_full_disk_in_evaluation_is_one_sentence(tmp_path, small_disk, one_fold, children):
    data, disk = write_cohort(tmp_path / "data"), small_disk(200)
    run_train.main(
        run_train.Options(
            data=str(data), run=str(tmp_path / "run"), model="ridge", encoder="tiny", folds=one_fold
        )
    )
    done = children.run(ROOT / "run_eval.py", "--run", tmp_path / "run", "--out", disk / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the disk is full at"), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(disk.iterdir())


# ---- weights -----------------------------------------------------------------------------------


class ScalarFloat(float):
    """Stands in for a YAML library's scalar: pickled by name, with state."""

    def __new__(cls, value=0.0):
        return super().__new__(cls, value)

    def __init__(self, value=0.0):
        self.width = 3

    def __reduce__(self):
        return (ScalarFloat, (float(self),), {"width": 3, "prec": 1})


class Harm:
    """What runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def tiny_histoprism():
    torch.manual_seed(0)
    names = [f"C{i}" for i in range(29)]
    return HistoPrism(16, 7, names, hidden_dim=16, feedforward_dim=8)


def test_a_checkpoint_as_the_authors_train_it_loads(tmp_path):
    model = tiny_histoprism()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"lr": ScalarFloat(1e-3), "initial_lr": ScalarFloat(1e-3)}
    schedule = {"base_lrs": [ScalarFloat(1e-3)], "last_epoch": 7, "milestones": {ScalarFloat(2): 1}}
    path = tmp_path / "best_model.pt"
    torch.save(
        {"model_state": model.state_dict(), "optimizer_state": state, "scheduler_state": schedule,
         "epoch": 7, "best_val": ScalarFloat(0.5)}, path,
    )  # fmt: skip
    loaded = HistoPrism.from_official(path)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    x = torch.randn(5, 16)
    assert torch.equal(loaded.predict(x, "IDC"), model.predict(x, "C7"))


def test_nothing_in_a_checkpoint_is_ever_run(tmp_path):
    path, harmed = tmp_path / "a.pt", tmp_path / "harmed"
    torch.save({"state_dict": {"w": torch.ones(2)}, "extra": Harm(harmed)}, path)
    with contextlib.suppress(InputError):
        read_state_dict(path)
    assert not harmed.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3), "holds a Tensor and no state dict"),
        ([torch.ones(3)], "holds a list and no state dict"),
        ({1: torch.ones(3)}, "the entry '1' is a Tensor"),
        ({"a": [1.0]}, "the entry 'a' is a list"),
        ({"state_dict": [1]}, "the entry 'state_dict' is a list"),
        ({}, "holds a dict and no state dict"),
        (torch.nn.Linear(2, 2), "and no state dict|save its state dict alone"),
    ],
)
def test_weights_of_another_kind_end_in_one_plain_sentence(tmp_path, value, said):
    path = tmp_path / "a.pt"
    torch.save(value, path)
    with pytest.raises(InputError, match=said) as caught:
        read_state_dict(path)
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04cut"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights_end_in_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"a{suffix}"):
        read_state_dict(path)


def test_the_cases_of_users_end_in_one_sentence(shared):
    for path in sorted((shared / "cases" / "fuzz-weights").glob("*.pt")):
        with pytest.raises(InputError, match=path.name):
            read_state_dict(path)


def test_a_torchscript_program_is_called_one(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    program.save(tmp_path / "a.pt")
    with pytest.raises(InputError, match="is a TorchScript program and no state dict"):
        read_state_dict(tmp_path / "a.pt")


def test_safetensors_are_known_by_content(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_state_dict(tmp_path / "pytorch_model.bin")["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet18", ("resnet18", {})),
        ("timm:vit:init_values=1e-5,img_size=256", ("vit", {"init_values": 1e-5, "img_size": 256})),
        ("timm:hf-hub:owner/model", ("hf-hub:owner/model", {})),
        ("timm:hf-hub:owner/model:init_values=1e-5", ("hf-hub:owner/model", {"init_values": 1e-5})),
    ],
)
def test_names_of_timm_may_have_a_source_and_arguments(name, expected):
    from histokit.extract.encoders import _timm_name

    assert _timm_name(name) == expected


def test_layer_scale_is_named_and_can_be_asked_for(tmp_path):
    from histokit.extract.encoders import import_timm, make_encoder

    timm = import_timm()
    name = "test_vit"
    model = timm.create_model(name, num_classes=0, init_values=1e-5)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"timm:{name}:init_values=1e-5"):
        make_encoder(f"timm:{name}", tmp_path / "a.safetensors")
    encoder = make_encoder(f"timm:{name}:init_values=1e-5", tmp_path / "a.safetensors")
    side = encoder.size
    assert np.isfinite(encoder.encode(np.zeros((1, side, side, 3), np.uint8))).all()
    with pytest.raises(InputError, match="write timm:NAME:key=value"):
        make_encoder(f"timm:{name}:what", tmp_path / "a.safetensors")


def test_without_semaphores_slides_are_read_in_this_process(tmp_path, monkeypatch, capsys):
    from torch.utils.data import DataLoader

    from histokit.models.base import Standardizer
    from histokit.train.loader import Preparation, SlideReader

    def refuse(self):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(DataLoader, "__iter__", refuse)
    cohort = Cohort(write_cohort(tmp_path / "data"), "tiny")
    genes = list(cohort.gene_table("A1").index)
    reader = SlideReader(Preparation(cohort, genes, "log1p", Standardizer("none")), "cpu", 0, 1)
    assert [slide.slide_id for slide in reader.stream(["A1", "B1", "A2"])] == ["A1", "B1", "A2"]
    assert [slide.slide_id for slide in reader.stream(["B1", "A1"])] == ["B1", "A1"]
    assert capsys.readouterr().err.count("no workers here") == 1
