"""Threads of a stage: affinity, control groups of both versions, what the user has set."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from histokit.core.threads import available_cpus, cpu_quota

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("own", "above", "wanted"),
    [
        ("max 100000", None, math.inf),
        ("200000 100000", None, 2.0),
        ("max 100000", "150000 100000", 1.5),
        ("50000 100000", "400000 100000", 0.5),
    ],
)
def test_quota_of_version_2(tmp_path, own, above, wanted):
    groups = write(tmp_path / "cgroup", "0::/pod/container\n")
    write(tmp_path / "fs/pod/container/cpu.max", own + "\n")
    if above:
        write(tmp_path / "fs/pod/cpu.max", above + "\n")
    assert cpu_quota(groups, tmp_path / "fs") == wanted


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    groups = write(tmp_path / "cgroup", "0::/../elsewhere/x\n")
    write(tmp_path / "fs/cpu.max", "300000 100000\n")
    assert cpu_quota(groups, tmp_path / "fs") == 3.0


@pytest.mark.parametrize(("quota", "wanted"), [("-1", math.inf), ("250000", 2.5)])
def test_quota_of_version_1(tmp_path, quota, wanted):
    groups = write(tmp_path / "cgroup", "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/x\n")
    folder = tmp_path / "fs/cpu,cpuacct/docker/a"
    write(folder / "cpu.cfs_quota_us", quota + "\n")
    write(folder / "cpu.cfs_period_us", "100000\n")
    assert cpu_quota(groups, tmp_path / "fs") == wanted


def test_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path) == math.inf


def test_affinity_bounds_the_cores():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


PROGRAM = """
from histokit.core.threads import share_machine
share_machine()
import numba, torch
numba.njit(parallel=True)(lambda: [0 for _ in numba.prange(9)])
print(torch.get_num_threads(), numba.get_num_threads())
"""


@pytest.mark.parametrize(("given", "wanted"), [({"OMP_NUM_THREADS": "1"}, "1 1"), ({}, "{n} {n}")])
def test_libraries_take_what_the_user_gave_or_what_there_is(given, wanted):
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOMP_SPINCOUNT")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=plain | given, cwd=ROOT, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == wanted.format(n=available_cpus())
