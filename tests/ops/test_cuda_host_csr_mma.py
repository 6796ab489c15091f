"""csr_matmul on tensor cores, its kernels run on host threads (tests/ops/cuda_host)."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from cuda_host.build import SHIM, Launcher, build, build_extension
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_host import SMALL, unwritten
from test_cuda_host_distance_mma import rms, rounded

PRODUCTS = {"float32": 3, "TF32": 1}  # on tensor cores, that make one
INDEX = [torch.int32, torch.int64]


@pytest.fixture(scope="module")
def library(pytestconfig):
    return build(pytestconfig.cache.mkdir("cuda_host"))


@pytest.fixture(scope="module")
def setting(library):
    """A number of the shim's device."""

    def of(name):
        name = f"_ZN9cuda_host{len(name)}{name}E"
        return ctypes.c_int.in_dll(ctypes.CDLL(str(library)), name)

    return of


@pytest.fixture(scope="module")
def matmul(library):
    launch = Launcher(library, "csr_matmul_cuda", "csr.h", "CsrParams")

    def matmul(entries, dense, products, **other):
        offsets, columns, values = entries
        n, (num_cols, dim) = len(offsets) - 1, dense.shape
        out = unwritten(n, dim, dtype=values.dtype)
        fields = {
            "dtype": values.dtype, "wide_index": offsets.dtype == torch.int64, "num_rows": n,
            "num_cols": num_cols, "num_entries": len(values), "dim": dim, "products": products,
            "row_offsets": offsets, "col_index": columns, "values": values, "dense": dense,
            "dense_stride": dense.stride(0), "out": out,
        }  # fmt: skip
        launch(**(fields | other))
        return out

    return matmul


@pytest.fixture(params=["tall", "short"])
def blocks(request, setting):
    """Blocks of twice the rows, as on a device of few processors, or of half as many."""
    processors = setting("num_processors")
    before, processors.value = processors.value, 0 if request.param == "tall" else 1 << 20
    yield
    processors.value = before


def entries_of(target, index=torch.int64):
    csr = target.to_sparse_csr()
    return csr.crow_indices().to(index), csr.col_indices().to(index), csr.values()


def case(n, columns, dim, density, dtype=torch.float32, pad=0):
    """A target (n, columns) with zeros, and a dense matrix; what lies beside it is no number."""
    torch.manual_seed(0)
    target = torch.randn(n, columns, dtype=dtype).where(torch.rand(n, columns) < density, 0)
    dense = torch.full((columns, dim + pad), torch.nan, dtype=dtype)[:, :dim]
    return target, dense.copy_(torch.randn(columns, dim))


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("index", INDEX)
@pytest.mark.parametrize(
    ("n", "columns", "dim", "density"),
    [(70, 3000, 64, 0.08), (17, 1000, 65, 0.05), (129, 97, 20, 0.5), (40, 300, 200, 1.0)],
)
def test_error_is_at_most_twice_that_of_the_plain_kernel(
    matmul, blocks, n, columns, dim, density, index, kind
):
    target, dense = case(n, columns, dim, density)
    entries, truth = entries_of(target, index), target.double() @ dense.double()
    found, plain = (matmul(entries, dense, p) for p in (PRODUCTS[kind], 0))
    if kind == "TF32":
        plain = rounded(target, kind) @ rounded(dense, kind)
    assert not torch.equal(found, plain)
    for theirs in (plain, target @ dense if kind == "float32" else plain):
        assert rms(found, truth) <= 2 * rms(theirs, truth)


@SMALL
@given(
    n=st.integers(1, 140), columns=st.integers(1, 100), dim=st.integers(1, 140),
    density=st.sampled_from([0.05, 0.3, 1.0]), index=st.sampled_from(INDEX),
    pad=st.sampled_from([0, 1, 4]), kind=st.sampled_from(list(PRODUCTS)),
)  # fmt: skip
def test_products_of_odd_sizes(matmul, n, columns, dim, density, index, pad, kind):
    target, dense = case(n, columns, dim, density, pad=pad)
    found = matmul(entries_of(target, index), dense, PRODUCTS[kind]).double()
    operands = [rounded(t, kind).double() for t in (target, dense)]
    size = operands[0].abs() @ operands[1].abs()
    assert ((found - operands[0] @ operands[1]).abs() <= 2.0**-20 * size).all()


@pytest.mark.parametrize("kind", PRODUCTS)
def test_empty_rows_are_zeros_and_full_ones_are_whole(matmul, blocks, kind):
    target, dense = case(150, 70, 33, 0.1)
    target[::3], target[1], target[:, 40:50] = 0, 1, 0
    found = matmul(entries_of(target), dense, PRODUCTS[kind])
    assert (found[::3] == 0).all()
    expected = rounded(target, kind) @ rounded(dense, kind)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_single_entry_is_found_wherever_it_stands(matmul, blocks, kind):
    """Each column of each tile, in each row of a block: the identity, and from right to left."""
    for target in (torch.eye(140), torch.eye(140).flip(1)):
        dense = torch.randint(-50, 50, (140, 9)).float()
        assert torch.equal(matmul(entries_of(target), dense, PRODUCTS[kind], num_entries=1 << 20),
                           target @ dense)  # fmt: skip


@pytest.mark.parametrize("kind", PRODUCTS)
def test_equal_bits_in_every_run_and_block(matmul, setting, kind):
    """The shim runs blocks and threads in another order each time."""
    target, dense = case(150, 90, 70, 0.2)
    entries, processors = entries_of(target), setting("num_processors")
    before, found = processors.value, []
    for processors.value in (0, 0, 1 << 20, 1 << 20):
        found.append(matmul(entries, dense, PRODUCTS[kind]))
    processors.value = before
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", PRODUCTS)
def test_results_do_not_know_how_the_inputs_lie(matmul, kind):
    target, dense = case(40, 90, 68, 0.2)
    expected = matmul(entries_of(target), dense, PRODUCTS[kind])
    apart = torch.full((90, 140), torch.nan)
    for first in (0, 4, 1, 71):  # the latter two at no multiple of 16 bytes
        view = apart[:, first : first + 68]
        view.copy_(dense)
        assert torch.equal(matmul(entries_of(target), view, PRODUCTS[kind]), expected)
    assert torch.equal(matmul(entries_of(target, torch.int32), dense, PRODUCTS[kind]), expected)


def test_rows_and_entries_may_lie_far_apart(matmul):
    """Beyond 2^32 bytes and 2^33 entries; only the pages that hold rows are ever touched."""
    target, dense = case(20, 3, 16, 0.5)
    offsets, columns, values = entries = entries_of(target)
    expected = matmul(entries, dense, 3)
    far = torch.empty((1 << 30) + 512).as_strided((3, 16), ((1 << 29) + 8, 1), 0)
    far.copy_(dense)
    assert torch.equal(matmul(entries, far, 3), expected)
    first = 1 << 33
    found = matmul(
        (offsets + first, columns, values), dense, 3,
        col_index=columns.data_ptr() - 8 * first, values=values.data_ptr() - 4 * first,
    )  # fmt: skip
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_meets_the_zeros_too(matmul, blocks, bad, kind):
    """As in a dense product: a number of dense spoils its column, one of the target its row."""
    target, dense = case(70, 90, 20, 0.2)
    spoilt = dense.clone()
    spoilt[83, 7] = bad
    found = matmul(entries_of(target), spoilt, PRODUCTS[kind])
    assert not found[:, 7].isfinite().any()
    clean = matmul(entries_of(target), dense, PRODUCTS[kind])
    assert torch.equal(found[:, [*range(7), *range(8, 20)]], clean[:, [*range(7), *range(8, 20)]])
    target[66, 1] = bad
    found = matmul(entries_of(target), dense, PRODUCTS[kind])
    assert not found[66].isfinite().any()
    assert found[:66].isfinite().all()
    assert found[67:].isfinite().all()


@pytest.mark.parametrize("index", INDEX)
@pytest.mark.parametrize(
    "columns",
    [
        [1, 0, 70, 90], [0, 70, 2, 90], [0, 0, 2, 90], [0, 70, 70, 90],  # order, twice
        [-1, 0, 2, 90], [0, 1, 2, 100], [0, 1, 2, 1 << 30],  # range
    ],
)  # fmt: skip
def test_columns_that_do_not_ascend_end_the_kernel(matmul, blocks, columns, index):
    offsets, values = torch.tensor([0, 1, 5], dtype=index), torch.ones(5)
    sound, dense = [0, 1, 2, 99], torch.ones(100, 4)
    for own in (sound, columns):
        own = torch.tensor([5, *own], dtype=index)
        if own[4] == 99:
            found = matmul((offsets, own, values), dense, 3, num_entries=100)
            assert found.tolist() == [[1.0] * 4, [4.0] * 4]
            continue
        with pytest.raises(RuntimeError, match="refused"):
            matmul((offsets, own, values), dense, 3, num_entries=100)


def test_what_tensor_cores_do_not_take_is_left_to_the_plain_kernel(matmul, setting):
    shared = setting("max_shared_bytes")
    for dtype, density, limit in (
        (torch.float32, 0.2, shared.value),
        (torch.float32, 0.02, shared.value),
        (torch.float64, 0.2, shared.value),
        (torch.float32, 0.2, 16 << 10),
    ):
        target, dense = case(50, 1000, 20, density, dtype)
        before, shared.value = shared.value, limit
        first, second = (matmul(entries_of(target), dense, p) for p in (3, 0))
        shared.value = before
        taken = (dtype, density, limit) == (torch.float32, 0.2, before)
        assert torch.equal(first, second) != taken


def test_op_tests_hold_on_tensor_cores(pytestconfig):
    """Through linear_pearson, linear_mse and their derivatives, with blocks of the real size."""
    library = build_extension(pytestconfig.cache.mkdir("cuda_host"))
    root = SHIM.parents[2]
    command = [sys.executable, SHIM / "run_op_tests.py", library]
    names = ("linear_ops", "sparse_targets", "hard_values", "waits")
    command += [f"tests/ops/test_{name}.py" for name in names]
    command += ["-v", "-p", "no:cacheprovider", "-k", "not broken_sparse and not attention"]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    wanted = {"PYTHONPATH": path, "HISTOKIT_TENSOR_CORES": "1", "HISTOKIT_CHECK": "1"}
    done = subprocess.run(
        command, cwd=root, env=os.environ | wanted, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
