"""Signals, damaged files, full disks, several processes: what happens to trainings that last."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tiny_slides
import torch
from cohorts import write_cohort
from safetensors.torch import load_file

import run_train
from histokit.core.errors import InputError
from histokit.data.cohort import Cohort
from histokit.evaluate.runs import Run
from histokit.models.base import Standardizer
from histokit.train.loader import Preparation, SlideReader

SCRIPT = Path(run_train.__file__)
OPTIONS = "--encoder tiny --lr 1e-3 --hidden-dim 16 --feedforward-dim 32".split()
TORCHRUN = [sys.executable, *"-m torch.distributed.run --nproc-per-node=2 --standalone --".split()]


@pytest.fixture
def data(tmp_path):
    return write_cohort(tmp_path / "data")


def command(data, run, folds, *more, model="histoprism"):
    common = ["--data", data, "--run", run, "--folds", folds, "--model", model]
    return [str(part) for part in (SCRIPT, *common, *OPTIONS, *more)]


def begun(start, run):
    """A training that runs, once it has saved: the process and its checkpoint."""
    process = start()
    checkpoint, deadline = run / "folds/0/checkpoints/last.ckpt", time.monotonic() + 90
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process, checkpoint


def weights(run):
    return load_file(run / "folds" / "0" / "model.safetensors")


SLOWLY = "--epochs 40 --patience 40 --cache-gb 0 --workers 0 --checkpoint-seconds 0.2".split()


def test_a_signal_saves_and_the_same_command_goes_on(data, tmp_path, one_fold, children):
    children.run(*command(data, tmp_path / "whole", one_fold, *SLOWLY), check=True)
    stopped = command(data, tmp_path / "stopped", one_fold, *SLOWLY)
    for number in (signal.SIGTERM, signal.SIGINT):
        checkpoint = tmp_path / "stopped/folds/0/checkpoints/last.ckpt"
        saved = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process, _ = begun(partial(children.start, *stopped), tmp_path / "stopped")
        while checkpoint.stat().st_mtime_ns == saved:  # it has gone on, and saved again
            assert process.poll() is None
            time.sleep(0.01)
        begin = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert time.monotonic() - begin < 10
        assert process.returncode == 128 + number
        assert "stopped: saved in epoch" in said
        assert not (tmp_path / "stopped/folds/0/model.safetensors").exists()
    children.run(*stopped, check=True)
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "stopped").items():
        assert torch.equal(value, expected[name]), name


def reader(data, **options):
    cohort = Cohort(data, "tiny")
    genes = list(cohort.gene_table("A1").index)
    return SlideReader(
        Preparation(cohort, genes, "log1p", Standardizer("none")), **options
    )  # fmt: skip


def test_slides_read_ahead_come_in_order_and_whole(data):
    order = ["A2", "C1", "A1", "B1", "D1"]
    kept, ahead = reader(data, max_bytes=10**9), reader(data, workers=2)
    for _ in range(2):
        for a, b in zip(kept.stream(order), ahead.stream(order), strict=True):
            assert a.slide_id == b.slide_id
            assert a.cancer == b.cancer
            assert torch.equal(a.features, b.features)
            assert torch.equal(a.target.to_dense(), b.target.to_dense())
    assert list(kept._kept) == order
    assert not ahead._kept


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_slide_stops_or_is_left_out(data, capsys, workers):
    (data / "features/tiny/C1.h5").write_bytes(b"no HDF5")
    order = ["A1", "C1", "A2"]
    with pytest.raises(InputError, match=r"C1\.h5 is not a whole feature file"):
        list(reader(data, workers=workers).stream(order))
    found = list(reader(data, workers=workers, skip=True).stream(order))
    assert [s and s.slide_id for s in found] == ["A1", None, "A2"]
    assert "slide C1 is left out" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["barcodes", "chunk"])
def test_damage_inside_a_feature_file_is_named(data, damage):
    path = data / "features/tiny/C1.h5"
    if damage == "barcodes":
        with h5py.File(path, "r+") as file:
            del file["barcodes"]
    else:
        with h5py.File(path, "r+") as file:
            values = file["features"][:]
            del file["features"]
            file.create_dataset("features", data=values, compression="gzip", chunks=values.shape)
            start = file["features"].id.get_chunk_info(0).byte_offset
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(b"\0" * 64)
    with pytest.raises(InputError, match=r"C1\.h5 is not a whole feature file .*; delete it"):
        list(reader(data).stream(["C1"]))


def test_training_goes_on_without_a_damaged_slide(data, tmp_path, one_fold, capsys):
    with h5py.File(data / "features/tiny/C1.h5", "r+") as file:
        file["features"][3, 2] = np.nan
    options = {"data": str(data), "folds": one_fold, "model": "mlp", "encoder": "tiny"}
    options |= {"epochs": 2, "cache_gb": 0.0}
    with pytest.raises(InputError, match=r"C1\.h5 holds features that are not finite"):
        run_train.main(run_train.Options(run=str(tmp_path / "stop"), **options))
    run_train.main(run_train.Options(run=str(tmp_path / "skip"), on_error="skip", **options))
    assert (tmp_path / "skip/folds/0/model.safetensors").is_file()
    assert "slide C1 is left out" in capsys.readouterr().err


def test_a_full_disk_stops_or_costs_the_checkpoint(data, tmp_path, one_fold, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    options = {"data": str(data), "folds": one_fold, "model": "mlp", "encoder": "tiny"}
    with pytest.raises(OSError, match="No space left"):
        run_train.main(run_train.Options(run=str(tmp_path / "a"), epochs=2, **options))
    run_train.main(run_train.Options(run=str(tmp_path / "b"), epochs=2, on_error="skip", **options))
    assert "the disk is full" in capsys.readouterr().err
    assert (tmp_path / "b/folds/0/model.safetensors").is_file()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_ranks(children, number, script, *arguments):
    """What a script says that runs in so many ranks; in one process where that is 1."""
    if number == 1:
        return children.run(script, *arguments, check=True).stdout
    ranks = children.ranks(number, script, *arguments, port=free_port())
    said = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * number, said
    return "".join(out for out, _ in said)


def test_two_ranks_train_what_one_process_does(data, tmp_path, one_fold, children):
    more = "--epochs 4 --dropout 0 --cache-gb 0".split()
    one = command(data, tmp_path / "one", one_fold, *more, "--slides-per-step", 2)
    in_ranks(children, 1, *one)
    said = in_ranks(children, 2, *command(data, tmp_path / "two", one_fold, *more))
    assert said.count("wrote histoprism for 1 folds") == 1
    # predictions, not weights: where a gradient is zero but for rounding, Adam follows the rounding
    x = torch.randn(20, 16)
    a, b = (Run(tmp_path / n).folds[0].load_model().predict(x, "IDC") for n in ("one", "two"))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    losses = [pd.read_csv(tmp_path / n / "folds/0/metrics.csv") for n in ("one", "two")]
    pd.testing.assert_frame_equal(*losses, rtol=1e-5)
    for name in ("genes.csv", "split.csv"):
        tables = [pd.read_csv(tmp_path / n / "folds/0" / name) for n in ("one", "two")]
        pd.testing.assert_frame_equal(*tables)


def test_a_signal_to_torchrun_saves_once_for_all_ranks(data, tmp_path, one_fold):
    more = "--epochs 100000 --patience 100000 --cache-gb 0 --checkpoint-seconds 0.2".split()
    both = [*TORCHRUN, *command(data, tmp_path / "run", one_fold, *more)]
    start = partial(subprocess.Popen, both, stderr=subprocess.PIPE, text=True)
    process, _ = begun(start, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    places = [line for line in said.splitlines() if line.startswith("stopped: saved in epoch")]
    assert len(places) == 2
    assert len(set(places)) == 1


def test_a_rank_that_dies_ends_the_run_which_goes_on_later(data, tmp_path, one_fold, children):
    more = "--epochs 100000 --patience 100000 --checkpoint-seconds 0.2".split()
    both = [*TORCHRUN, *command(data, tmp_path / "run", one_fold, *more)]
    start = partial(subprocess.Popen, both, stderr=subprocess.PIPE, text=True)
    process, checkpoint = begun(start, tmp_path / "run")
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "SIGKILL" in said
    state = torch.load(checkpoint, weights_only=True)
    assert len(state["ranks"]) == 2
    alone = command(data, tmp_path / "run", one_fold, *more)
    refused = children.run(*alone)
    assert refused.returncode == 2
    assert "was written by 2 processes" in refused.stderr


def test_ranks_share_the_folds_of_closed_forms(data, tmp_path, children):
    common = ["--data", data, "--model", "ridge", "--encoder", "tiny"]
    common += ["--folds", "leave-one-patient-out"]
    for number, name in ((1, "one"), (2, "two")):
        in_ranks(children, number, SCRIPT, *common, "--run", tmp_path / name)
    for fold in "ABCD":
        a, b = (
            load_file(tmp_path / n / "folds" / fold / "model.safetensors") for n in ("one", "two")
        )
        for name in a:
            torch.testing.assert_close(a[name], b[name])


def test_ranks_share_the_slides_of_extraction(tmp_path, children):
    source = tiny_slides.write_cohort(tmp_path / "in", slides=("a", "b", "c"))
    for number, name in ((1, "one"), (2, "two")):
        arguments = ("--source", source, "--out", tmp_path / name, "--encoder", "hed")
        said = in_ranks(children, number, SCRIPT.with_name("run_extract.py"), *arguments)
        assert said.count("wrote 3 and kept 0 finished slides") == 1
    for table in ("slides.csv", "reconciliation.csv"):
        assert (tmp_path / "one" / table).read_text() == (tmp_path / "two" / table).read_text()
    for slide in "abc":
        one, two = (tmp_path / n / f"features/hed/{slide}.h5" for n in ("one", "two"))
        with h5py.File(one) as a, h5py.File(two) as b:
            np.testing.assert_array_equal(a["features"], b["features"])


def test_ranks_share_the_slides_of_an_evaluation(data, tmp_path, children):
    options = {"data": str(data), "model": "ridge", "encoder": "tiny", "run": str(tmp_path / "run")}
    folds = tmp_path / "folds.csv"
    folds.write_text(
        "slide_id,split,fold\nA1,train,x\nA2,train,x\nC1,train,x\nB1,test,x\nB2,test,x\n"
        "A1,train,y\nA2,train,y\nB1,train,y\nB2,train,y\nD1,test,y\n"
    )
    run_train.main(run_train.Options(folds=str(folds), controls=True, **options))
    signature = tmp_path / "signature.txt"
    signature.write_text("GENE1\nGENE4\nGENE7\n")
    for number, name in ((1, "one"), (2, "two")):
        where = ("--run", tmp_path / "run", "--out", tmp_path / name, "--signature", signature)
        where += ("--max-pictures", "1")
        said = in_ranks(children, number, SCRIPT.with_name("run_eval.py"), *where)
        assert said.count("wrote the evaluation of") == 3
    names = {p.name for p in (tmp_path / "one").rglob("*.csv")}
    assert {"slides.csv", "genes.csv", "summary.csv"} < names
    for path in (tmp_path / "one").rglob("*.csv"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(other), rtol=1e-6)
    written = [len(list((tmp_path / n).rglob("*.h5ad"))) for n in ("one", "two")]
    assert written == [3, 3]
