"""The host twins of tensor core instructions: products, roundings, copies, and what they refuse."""

import ctypes

import pytest
import torch
from cuda_host.build import SHIM, build_source

KINDS = {  # in the order of tensor_cores.cu; type of the data, relative error of a product
    "float16": (torch.float16, 2**-22),
    "bfloat16": (torch.bfloat16, 2**-22),
    "float32": (torch.float32, 2**-20),
    "TF32": (torch.float32, 2**-22),
}
FAULTS = ["none", "no wait", "odd address", "unrounded"]


@pytest.fixture(scope="module")
def library(pytestconfig):
    path = build_source(pytestconfig.cache.mkdir("cuda_host"), SHIM / "tensor_cores.cu")
    library = ctypes.CDLL(str(path))
    for name in ("run_chain", "run_copies", "run_with_shared"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


def chain(library, kind, a, across, down, fault="none"):
    first, second = torch.full((2, 16, 16), -1.0)
    given = [t.data_ptr() for t in (a, across, down, first, second)]
    error = library.run_chain(
        list(KINDS).index(kind), *map(ctypes.c_void_p, given), FAULTS.index(fault)
    )
    return first, second, error


def operand(t, kind):
    """What a tensor core reads of float32 in one TF32 product; other kinds lose nothing."""
    if kind != "TF32":
        return t.to(KINDS[kind][0]).double()
    mantissa, exponent = torch.frexp(t.double())
    sign, scaled = mantissa.sign(), mantissa.abs() * 2**11
    return sign * (scaled + 0.5).floor() * 2.0 ** (exponent - 11)


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_fragments_are_matrix_products(library, kind):
    torch.manual_seed(0)
    dtype, bound = KINDS[kind]
    a, across, down = (torch.randn(16, 16).to(dtype) for _ in range(3))
    first, second, error = chain(library, kind, a, across, down)
    assert error is None
    a, across, down = (operand(t, kind) for t in (a, across, down))
    turned = operand(first, kind)
    for found, left, right in ((first, a, across.T), (second, turned, down)):
        scale = left.abs() @ right.abs()
        assert ((found.double() - left @ right).abs() <= 3 * bound * scale).all()


@pytest.mark.parametrize("kind", KINDS)
def test_operands_are_rounded_as_the_hardware_rounds(library, kind):
    """A product with ones on the diagonal shows each operand; ties are among the numbers."""
    torch.manual_seed(0)
    dtype, bound = KINDS[kind]
    a = torch.randn(16, 16)
    a[0] = 1 + torch.arange(16) * 2.0**-11  # for TF32 every other one is a tie, away from zero
    a[1], a[2, :3] = -a[0], torch.tensor([2.0**-130, 2.0**-126, 0.0])
    a, one = a.to(dtype), torch.eye(16, dtype=dtype)
    first, second, _ = chain(library, kind, a, one, one)
    exact = bound if kind == "float32" else 0
    for found, given in ((first, a), (second, first)):
        expected = operand(given, kind)
        assert ((found.double() - expected).abs() <= exact * expected.abs() + 2.0**-136).all()


def test_sums_of_products_are_cut_off(library):
    a = torch.full((16, 16), 1.0)
    a[:, 1] = -(2.0**-30)
    across = torch.ones(16, 16)
    across[:, 2:] = 0
    first = chain(library, "TF32", a, across, across)[0]
    assert (first == 1 - 2.0**-24).all()  # nearest would be 1


def test_numbers_that_are_not_finite_stay_so(library):
    a, one = torch.eye(16), torch.eye(16)
    a[3, 5], a[4, 6] = torch.nan, torch.inf
    first = chain(library, "TF32", a, one, one)[0]
    assert first[3].isnan().all()
    assert not first[4].isfinite().any()
    assert first[[0, 1, 2, 5]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_wait_shows(library, kind):
    ones = torch.ones(16, 16, dtype=KINDS[kind][0])
    first, second, _ = chain(library, kind, ones, ones, ones, "no wait")
    assert first.isnan().all()
    assert second.isnan().all()


@pytest.mark.parametrize(("kind", "fault"), [("bfloat16", "odd address"), ("TF32", "unrounded")])
def test_what_hardware_would_not_take_is_an_error(library, kind, fault):
    ones = torch.ones(16, 16, dtype=KINDS[kind][0])
    assert b"refused" in chain(library, kind, ones, ones, ones, fault)[2]
    assert chain(library, kind, ones, ones, ones)[2] is None


@pytest.mark.parametrize("left", [0, 1])
def test_copies_arrive_group_by_group_and_end_in_zeros(library, left):
    given, out = torch.arange(1.0, 9.0), torch.full((8,), -1.0)
    library.run_copies(*(ctypes.c_void_p(t.data_ptr()) for t in (given, out)), left)
    assert out[:4].tolist() == [1, 2, 0, 0]
    if left:
        assert out[4:].isnan().all()
    else:
        assert out[4:].tolist() == [5, 6, 0, 0]


@pytest.mark.parametrize(
    ("kilobytes", "allowed", "runs"),
    [(48, False, True), (49, False, False), (200, True, True), (228, True, False)],
)
def test_shared_memory_has_its_limits(library, kilobytes, allowed, runs):
    out = torch.zeros(1)
    error = library.run_with_shared(kilobytes << 10, allowed, ctypes.c_void_p(out.data_ptr()))
    assert (error is None) == runs
    assert out.item() == runs
