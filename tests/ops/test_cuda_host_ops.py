"""The tests of the ops, run again over the CUDA kernels on host threads (tests/ops/cuda_host)."""

import os
import subprocess
import sys

import pytest
from cuda_host.build import SHIM, build_extension

ROOT = SHIM.parents[2]
CPU_ALONE = (  # what only the CPU kernels check, and how they block their work
    "broken_sparse_matrix",
    "several_blocks",
)


@pytest.mark.parametrize(
    "op",
    [
        "cancer_cross_attention",
        "prototype_attention",
        "distance_attention",
        "pearson_update",
        "linear_ops",
    ],
)
def test_op_tests_hold_for_the_cuda_kernels(op, pytestconfig):
    library = build_extension(pytestconfig.cache.mkdir("cuda_host"))
    command = [sys.executable, SHIM / "run_op_tests.py", library, f"tests/ops/test_{op}.py"]
    command += ["-p", "no:cacheprovider", "-k", f"not ({' or '.join(CPU_ALONE)})"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
