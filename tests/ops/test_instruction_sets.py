"""The kernels are compiled for several instruction sets; each is right, and chosen as asked."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from op_checks import needs_kernels

HERE = Path(__file__).parent
OP_TESTS = [
    HERE / f"test_{name}.py"
    for name in (
        "cancer_cross_attention",
        "prototype_attention",
        "distance_attention",
        "pearson_update",
        "linear_ops",
        "hard_values",
    )
]
WORDS = {"baseline": "baseline", "avx2": "x86-64-v3 (AVX2)"}
ASK = "import torch; from histokit import _C; print(_C.build_info()['instruction_set'])"

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set elsewhere"),
]


def call(*arguments, instructions: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"HISTOKIT_INSTRUCTIONS": instructions}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )


def own_set() -> str:
    return call("-c", ASK, instructions="").stdout.strip()


@pytest.mark.parametrize("instructions", WORDS)
def test_every_op_is_right_with_fewer_instructions(instructions):
    if own_set() == "baseline" and instructions != "baseline":
        pytest.skip("this processor has no AVX2")
    assert call("-c", ASK, instructions=instructions).stdout.strip() == WORDS[instructions]
    options = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
    said = call(*options, *OP_TESTS, instructions=instructions)
    assert said.returncode == 0, said.stdout[-3000:]


def test_more_than_the_processor_has_is_not_taken():
    assert call("-c", ASK, instructions="avx512").stdout.strip() == own_set()


def test_a_word_that_is_no_set_is_said_to_be_none():
    said = call("-c", ASK, instructions="sse9")
    assert said.stdout.strip() == own_set()
    assert "HISTOKIT_INSTRUCTIONS is sse9, which is not baseline, avx2 or avx512" in said.stderr
    assert "HISTOKIT_INSTRUCTIONS" not in call("-c", ASK, instructions="avx2").stderr
