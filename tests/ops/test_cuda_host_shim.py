"""The host shim shows the faults that it is there to show."""

import ctypes

import pytest
import torch
from cuda_host.build import SHIM, build_source

FAULTS = ["reverse", "unwritten", "divergent", "mixed"]


@pytest.fixture(scope="module")
def run(pytestconfig):
    library = build_source(pytestconfig.cache.mkdir("cuda_host"), SHIM / "faults.cu")
    function = ctypes.CDLL(str(library)).run_fault
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool]

    def run(name, sound):
        given = torch.arange(192, dtype=torch.float32)
        out = torch.full_like(given, -1)
        error = function(FAULTS.index(name), given.data_ptr(), out.data_ptr(), sound)
        return given.view(3, 64), out.view(3, 64), error

    return run


@pytest.mark.parametrize("name", FAULTS)
def test_a_sound_kernel_runs(run, name):
    given, out, error = run(name, True)
    pairs = given.view(3, 32, 2).flip(2).view(3, 64)
    expected = {
        "reverse": given.flip(1),
        "unwritten": given.sum(1, keepdim=True).expand(3, 64),
    }.get(name, pairs)
    assert error is None
    assert torch.equal(out, expected)


def test_a_missing_barrier_gives_wrong_values(run):
    given, out, _ = run("reverse", False)
    assert out.isnan().any(1).all()  # in every block, not only in the first
    assert not torch.equal(out, given.flip(1))


def test_memory_that_nobody_wrote_is_no_number(run):
    assert run("unwritten", False)[1].isnan().all()


@pytest.mark.parametrize("name", ["divergent", "mixed"])
def test_threads_that_miss_each_other_are_an_error(run, name):
    assert b"refused" in run(name, False)[2]
    test_a_sound_kernel_runs(run, name)  # and the next launch is not touched by it
