"""distance_attention on tensor cores, its kernels run on host threads (tests/ops/cuda_host)."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from cuda_host.build import SHIM, Launcher, build, build_extension
from test_cuda_host import acc, unwritten

from histokit.ops import reference

KINDS = {  # type of the data, products on tensor cores that make one
    "float16": (torch.float16, 1),
    "bfloat16": (torch.bfloat16, 1),
    "float32": (torch.float32, 3),
    "TF32": (torch.float32, 1),
}
NAMES = ("query", "key", "value", "grad_out")
RESULTS = ("out", "query", "key", "value", "slope")
SEED = torch.tensor([5 << 40])


@pytest.fixture(scope="module")
def library(pytestconfig):
    return build(pytestconfig.cache.mkdir("cuda_host"))


@pytest.fixture(scope="module")
def launch(library):
    names = ("distance_attention", "distance_attention_backward")
    header, params = "distance_attention.h", "DistanceAttentionParams"
    return [Launcher(library, f"{name}_cuda", header, params) for name in names]


def inputs(n, heads, head_dim, dtype, pad=0, seed=0):
    """Four vectors (N, h, d), coordinates, and slopes; what lies beside them is no number."""
    torch.manual_seed(seed)
    storage = torch.full((n + 2, 4, heads, head_dim + pad), torch.nan, dtype=dtype)
    vectors = storage[:n, ..., :head_dim]
    vectors[:] = torch.randn(n, 4, heads, head_dim)
    return [*vectors.unbind(1), torch.rand(n, 2), torch.randn(heads)]


def run(launch, given, products, dropout=0.0, with_slope=True):
    """Output and gradients, (N, h, d) and (h,), and the normalizer, of both passes."""
    *vectors, coords, slope = given
    n, heads, head_dim = vectors[0].shape
    dtype = vectors[0].dtype
    strides = {
        f"{name}_{side}": t.stride(i)
        for name, t in zip(NAMES, vectors, strict=True)
        for i, side in enumerate(("row", "head"))
    }
    out, *grads = (unwritten(n, heads, head_dim, dtype=dtype) for _ in range(4))
    normalizer = unwritten(heads, n, 2, dtype=acc(dtype))
    partial = torch.full((heads * (n + 1),), torch.nan, dtype=torch.float64)
    fields = dict(
        dtype=dtype, num_rows=n, num_heads=heads, head_dim=head_dim, products=products,
        **dict(zip(NAMES, vectors, strict=True)), **strides, coords=coords, slope=slope,
        seed=SEED, dropout=dropout, out=out, normalizer=normalizer,
        delta=unwritten(heads, n, dtype=acc(dtype)), grad_query=grads[0], grad_key=grads[1],
        grad_value=grads[2], partial_slope=partial if with_slope else None,
    )  # fmt: skip
    for part in launch:
        part(**fields)
    blocks = int((~partial.isnan()).sum())
    slopes = partial[:blocks].view(heads, -1).sum(1) if with_slope else None
    return [out, *grads, slopes], normalizer


def rounded(t, dtype):
    """As tensor cores read float32 in one product: 10 bits behind the point, ties away."""
    if t.dtype != torch.float32 or dtype != "TF32":
        return t
    return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def eager(given, dtype, kind, dropout=0.0):
    """Output and gradients of plain PyTorch in `dtype`, products by operands of `kind`."""
    q, k, v, grad = (t.transpose(0, 1).to(dtype) for t in given[:4])
    coords, slope = given[4].to(dtype), given[5].to(dtype)
    scale = q.shape[2] ** -0.5
    x, y = (coords[:, None] - coords).unbind(-1)
    distance = (x * x + y * y).sqrt()

    def product(a, b):
        return rounded(a, kind) @ rounded(b, kind)

    score = product(q, k.mT) * scale + slope[:, None, None] * distance
    weight = score.softmax(-1)
    keep = torch.ones_like(weight)
    if dropout:
        keep = reference.dropout_mask(SEED, dropout, *weight.shape[:2]).to(dtype)
    out = product(weight * keep, v)
    delta = (grad * out).sum(-1, keepdim=True)
    shift = weight * (keep * product(grad, v.mT) - delta)
    found = [out, product(shift, k) * scale, product(shift.mT, q) * scale,
             product((weight * keep).mT, grad)]  # fmt: skip
    return [t.transpose(0, 1) for t in found] + [(shift * distance).sum((1, 2))]


def rms(found, truth):
    return (found.double() - truth).square().mean().sqrt().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "heads", "head_dim", "pad", "dropout"),
    [
        (17, 2, 33, 1, 0.0),  # one element at a time
        (70, 1, 64, 8, 0.3),
        (65, 1, 128, 0, 0.0),  # STPath's heads
        (130, 1, 20, 0, 0.3),
        (33, 1, 100, 4, 0.0),
    ],
)
def test_error_is_at_most_twice_that_of_eager(launch, n, heads, head_dim, pad, dropout, kind):
    dtype, products = KINDS[kind]
    given = inputs(n, heads, head_dim, dtype, pad)
    found = run(launch, given, products, dropout)[0][:4]
    truth = eager(given, torch.float64, None, dropout)
    plain = eager(given, dtype, kind, dropout)
    for name, ours, theirs, true in zip(RESULTS, found, plain, truth, strict=False):
        assert ours.dtype == dtype
        assert rms(ours, true) <= 2 * rms(theirs, true), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_slope_is_within_budget(launch, kind):
    """A single number a head, so errors are compared over many draws."""
    dtype, products = KINDS[kind]
    ours, theirs = [], []
    for seed in range(8):
        given = inputs(40, 4, 16, dtype, seed=seed)
        truth = eager(given, torch.float64, None)[4]
        ours.append(run(launch, given, products)[0][4] - truth)
        theirs.append(eager(given, dtype, kind)[4].double() - truth)
    assert rms(torch.stack(ours), 0) <= 2 * rms(torch.stack(theirs), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_patch_attends_to_itself(launch, kind):
    dtype, products = KINDS[kind]
    given = inputs(1, 2, 24, dtype)
    (out, query, key, value, slope), normalizer = run(launch, given, products)
    bound = 2.0**-10 if kind == "TF32" else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, given[2], rtol=bound, atol=0)
    torch.testing.assert_close(value, given[3], rtol=bound, atol=0)
    assert query.abs().max() <= 24 * bound
    assert key.abs().max() <= 24 * bound
    assert (slope == 0).all()  # its distance to itself
    assert (normalizer[..., 1] == 0).all()


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_equal_bits_in_every_run(launch, kind):
    """The shim runs blocks and threads in another order each time."""
    dtype, products = KINDS[kind]
    given = inputs(70, 2, 16, dtype)
    (*first, normalizer), (*second, again) = (run(launch, given, products) for _ in range(2))
    assert torch.equal(normalizer, again)
    assert all(torch.equal(a, b) for a, b in zip(*first, *second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_know_how_the_inputs_lie(launch, kind):
    dtype, products = KINDS[kind]
    given = inputs(40, 2, 16, dtype)
    expected, _ = run(launch, given, products)
    by_head = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in given[:4]]
    apart = [torch.full((40, 2, 17), torch.nan, dtype=dtype) for _ in range(4)]
    for to, t in zip(apart, given, strict=False):
        to[..., 1:] = t
    shifted = [t[..., 1:] for t in apart]  # no address at a multiple of 16 bytes
    for vectors in (by_head, shifted):
        found, _ = run(launch, [*vectors, *given[4:]], products)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_rows_may_lie_far_apart(launch):
    """Beyond 2^31 elements; only the pages that hold rows are ever touched."""
    given = inputs(3, 1, 16, torch.bfloat16)
    expected, _ = run(launch, given, 1)
    far = torch.empty((1 << 31) + 512, dtype=torch.bfloat16)
    far = far.as_strided((3, 1, 16), ((1 << 30) + 8, 16, 1), 0)
    for i in range(4):
        far.copy_(given[i])
        found, _ = run(launch, [*given[:i], far, *given[i + 1 :]], 1)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_without_the_gradient_of_the_slope(launch, kind):
    dtype, products = KINDS[kind]
    given = inputs(40, 2, 16, dtype)
    (*expected, _), _ = run(launch, given, products)
    (*found, slope), _ = run(launch, given, products, with_slope=False)
    assert slope is None
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_normalizers_are_those_of_the_plain_kernel(launch, kind):
    """The largest score and the logarithm of the sum about it."""
    dtype, products = KINDS[kind]
    given = inputs(70, 1, 16, dtype)
    found, expected = (run(launch, given, p)[1] for p in (products, 0))
    bound = 2e-3 if kind == "TF32" else 1e-5
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_sharp_scores_choose_one_patch_and_keep_gradients_finite(launch, kind):
    dtype, products = KINDS[kind]
    given = inputs(70, 1, 16, dtype)
    given[0] *= 1e3
    (out, *grads), _ = run(launch, given, products)
    q, k, v = (t[:, 0].double() for t in given[:3])
    score = q @ k.T
    best, margin = score.argmax(1), score.topk(2, 1).values
    clear = (margin[:, 0] - margin[:, 1]) > 0.01 * margin[:, 0].abs()
    assert clear.sum() > 50
    bound = 2.0**-10 if kind == "TF32" else torch.finfo(dtype).eps
    torch.testing.assert_close(out[:, 0].double()[clear], v[best][clear], rtol=2 * bound, atol=0)
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_near_patches_of_a_large_slide_keep_their_distance(launch, kind):
    dtype, products = KINDS[kind]
    given = inputs(40, 1, 16, dtype)
    given[4] = 5e4 + 10 * given[4]  # level-0 pixels
    found = run(launch, given, products)[0][:4]
    truth = eager(given, torch.float64, None)
    plain = eager(given, dtype, kind)
    for name, ours, theirs, true in zip(RESULTS, found, plain, truth, strict=False):
        assert rms(ours, true) <= 2 * rms(theirs, true), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_shows_where_it_should(launch, kind):
    dtype, products = KINDS[kind]
    given = inputs(70, 1, 16, dtype)
    given[0][3, 0, 2] = torch.nan
    out = run(launch, given, products)[0][0]
    assert out.isnan().all((1, 2)).nonzero().flatten().tolist() == [3]
    assert out.isnan().sum() == 16
    given[1][69, 0, 5] = torch.nan
    assert run(launch, given, products)[0][0].isnan().all()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "TF32"])
def test_keys_of_no_weight_may_come_first(launch, kind):
    """Scores of -inf all through the first stages; the softmax starts with the first other one."""
    dtype, products = KINDS[kind]
    given = inputs(90, 1, 1, dtype)
    given[0][:], given[1][:66] = 1, -torch.inf
    out = run(launch, given, products)[0][0]
    truth = eager(given, torch.float64, None)[0]
    torch.testing.assert_close(out.double(), truth, rtol=2e-2, atol=1e-2)


def test_what_tensor_cores_do_not_take_is_left_to_the_plain_kernel(launch, library):
    limit = ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "_ZN9cuda_host16max_shared_bytesE")
    for dtype, head_dim, shared in (
        (torch.float32, 129, limit.value),
        (torch.float64, 16, limit.value),
        (torch.float32, 16, 99 << 10),
    ):
        given = inputs(20, 2, head_dim, dtype)
        given[4:] = [t.to(dtype) for t in given[4:]]
        before, limit.value = limit.value, shared
        (first, _), (second, _) = (run(launch, given, products) for products in (0, 3))
        limit.value = before
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    given = inputs(20, 2, 16, torch.float32)
    (first, _), (second, _) = (run(launch, given, products) for products in (0, 3))
    assert not torch.equal(first[0], second[0])  # two kernels indeed


def test_op_tests_hold_on_tensor_cores(pytestconfig):
    """Through the op, with blocks of the real size."""
    library = build_extension(pytestconfig.cache.mkdir("cuda_host"))
    root = SHIM.parents[2]
    command = [sys.executable, SHIM / "run_op_tests.py", library]
    command += ["tests/ops/test_distance_attention.py", "-v", "-p", "no:cacheprovider", "-k"]
    command += ["sharp or steep or near_patches or (some_inputs and 2.0) or strided or bad_input"]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    wanted = {"PYTHONPATH": path, "HISTOKIT_TENSOR_CORES": "1"}
    done = subprocess.run(
        command, cwd=root, env=os.environ | wanted, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
