"""The tests of the ops, run again over the CUDA kernels on host threads (tests/ops/cuda_host)."""

import os
import re
import subprocess
import sys

from cuda_host.build import SHIM, build_extension

ROOT = SHIM.parents[2]
CPU_ALONE = (  # what only the CPU kernels check, and how they block their work
    "broken_sparse_matrix",
    "several_blocks",
    "many_keys",
)


OPS = (
    "cancer_cross_attention",
    "prototype_attention",
    "distance_attention",
    "pearson_update",
    "linear_ops",
    "sparse_targets",
    "hard_values",
    "quadratic_form",
    "waits",
)


def test_op_tests_hold_for_the_cuda_kernels(pytestconfig):
    library = build_extension(pytestconfig.cache.mkdir("cuda_host"))
    command = [sys.executable, SHIM / "run_op_tests.py", library]
    command += [f"tests/ops/test_{op}.py" for op in OPS]
    command += ["-v", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(CPU_ALONE)})"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "HISTOKIT_CHECK": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for op in OPS:
        assert re.search(rf"test_{op}\.py \.", done.stdout), f"no test of {op} has run"
