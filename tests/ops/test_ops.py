"""What holds for every op: registration, compile, autocast, threads, backends, symbols."""

import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
import torch._dynamo.testing
from op_checks import needs_kernels

import histokit
from histokit import ops
from histokit.ops import dispatch, reference


def attention_inputs(rows, dtype=torch.float32, slides=2, tokens=3, dim=8):
    torch.manual_seed(0)
    shapes = [(rows, dim), (slides, tokens, dim), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,)]
    tensors = [torch.randn(s, dtype=dtype) for s in [*shapes, (dim,), (dim,)]]
    return [*tensors, torch.arange(rows) % slides]


def attend(*tensors):
    *arguments, slides = tensors
    return ops.cancer_cross_attention(*arguments, num_heads=2, slide_index=slides)


def prototype_inputs(rows, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(s, dtype=dtype) for s in [(rows, 6), (5, 6), (5, 6), (5,)]]


def distance_inputs(rows, dtype=torch.float32):
    torch.manual_seed(0)
    vectors = torch.randn(3, 2, rows, 3, dtype=dtype).clone().unbind()
    return [
        *(t.clone() for t in vectors),
        torch.rand(rows, 2, dtype=dtype),
        torch.randn(2, dtype=dtype),
    ]


def pearson_inputs(rows, dtype=torch.float32, genes=9):
    torch.manual_seed(0)
    pred, target = torch.randn(rows, genes, dtype=dtype), torch.randn(rows, genes, dtype=dtype)
    return [pred, target, torch.rand(rows, genes) < 0.8, torch.arange(rows) % 2]


def pearson(pred, target, mask, slides):
    state = torch.zeros(6, 2, pred.shape[1], dtype=torch.float64)
    ops.pearson_update(state, pred, target, mask, slides)
    return state


def linear_inputs(rows, dtype=torch.float32, genes=11):
    torch.manual_seed(0)
    target = torch.randn(rows, genes, dtype=dtype).relu().to_sparse_csr()
    triple = [t.clone() for t in (target.crow_indices(), target.col_indices(), target.values())]
    shapes = [(rows, 4), (genes, 4), (genes,)]
    return [*(torch.randn(s, dtype=dtype) for s in shapes), *triple]


def linear(name, hidden, weight, bias, crow, col, values):
    return getattr(ops, name)(hidden, weight, bias, ops.Csr(crow, col, values, weight.shape[0]))


CALLS = {
    "cancer_cross_attention": (attend, attention_inputs),
    "prototype_attention": (partial(ops.prototype_attention, num_heads=2), prototype_inputs),
    "distance_attention": (ops.distance_attention, distance_inputs),
    "pearson_update": (pearson, pearson_inputs),
    "linear_pearson": (partial(linear, "linear_pearson"), linear_inputs),
    "linear_mse": (partial(linear, "linear_mse"), linear_inputs),
}
every_op = pytest.mark.parametrize("name", CALLS)


def differentiable(inputs):
    return [t.requires_grad_() if t.is_floating_point() else t for t in inputs]


# ---- torch.compile -----------------------------------------------------------------------------


@needs_kernels
@every_op
def test_compiles_whole_and_once_for_all_sizes(name):
    function, inputs = CALLS[name]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for rows in (6, 9, 14, 23, 40):
        torch.testing.assert_close(compiled(*inputs(rows)), function(*inputs(rows)), equal_nan=True)
    assert counter.frame_count <= 2  # the first size, and one graph for every other


@needs_kernels
@pytest.mark.parametrize("name", [n for n in CALLS if n != "pearson_update"])
def test_gradients_through_compile(name):
    function, inputs = CALLS[name]
    torch._dynamo.reset()
    grads = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        arguments = differentiable(inputs(12))
        out = call(*arguments)
        out = out[0] if isinstance(out, tuple) else out
        wanted = [a for a in arguments if a.requires_grad]
        grads.append(torch.autograd.grad(out.square().sum(), wanted, allow_unused=True))
    for a, b in zip(*grads, strict=True):
        zero = torch.zeros(())  # r does not depend on the bias: None, or zeros from the compiler
        torch.testing.assert_close(
            zero if a is None else a, zero if b is None else b.sum() if a is None else b
        )


@needs_kernels
def test_compiles_with_inductor():
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True)
    torch.testing.assert_close(compiled(*attention_inputs(7)), attend(*attention_inputs(7)))


# ---- registration ------------------------------------------------------------------------------


def samples():
    csr = linear_inputs(5, torch.float64)
    wide = torch.randn(5, 4, dtype=torch.float64)
    narrow = torch.randn(11, 4, dtype=torch.float64)
    attention = {
        "x": torch.randn(5, 8), "score_weight": torch.randn(2, 6, 8),
        "score_bias": torch.randn(2, 6), "value": torch.randn(2, 6, 8), "bias": torch.randn(8),
        "norm_weight": torch.randn(8), "norm_bias": torch.randn(8),
    }  # fmt: skip
    slides, mask = torch.arange(5) % 2, torch.ones(5, 6)
    yield "cancer_cross_attention", (*differentiable(attention.values()), slides, mask, 3, 1e-5)
    one = torch.randn(1, 1, 8)
    yield (
        "cancer_cross_attention",
        (torch.randn(5, 8), None, None, one, None, torch.randn(8), torch.randn(8), None, None, 1,
         1e-5),
    )  # fmt: skip
    yield (
        "cancer_cross_attention_backward",
        (torch.randn(5, 8), torch.randn(5, 8), torch.rand(5, 6), torch.randn(5), torch.rand(5),
         attention["value"].detach(), None, torch.randn(8), slides, None, 3),
    )  # fmt: skip
    yield "prototype_attention", (*differentiable(prototype_inputs(5)[:3]), 2)
    query, key, value, _ = prototype_inputs(5)
    yield (
        "prototype_attention_backward",
        (query, query, key, value, query, torch.randn(5, 2, 2), 2),
    )
    vectors = [t.transpose(0, 1) for t in distance_inputs(5)[:3]]
    coords, slope = distance_inputs(5)[3:]
    differentiated = (*differentiable(vectors), coords, slope.clone().requires_grad_())
    yield "distance_attention", (*differentiated, torch.ones(1).long(), 0.1, 0)
    query = vectors[0].detach()
    out, normalizer = query.contiguous(), torch.randn(2, 5, 2)
    for with_slope in (True, False):
        yield (
            "distance_attention_backward",
            (query, query, query, query, coords, slope, None, 0.0, out, normalizer, with_slope, 0),
        )
    state = torch.zeros(6, 2, 9, dtype=torch.float64)
    pred, target, mask, slides = pearson_inputs(5)
    order = slides.argsort(stable=True)
    yield "pearson_update", (state, pred, target, mask, order, torch.tensor([0, 3, 5]))
    yield "csr_matmul", (*csr[3:], narrow.requires_grad_(), 0)
    yield "csr_transpose_matmul", (*csr[3:], wide.requires_grad_(), 11)
    yield "dense_transpose_matmul", (torch.randn(5, 11), torch.randn(5, 4, requires_grad=True))
    yield "quadratic_form", (torch.randn(9, 4, requires_grad=True), torch.randn(20, 4))
    for measured in (None, torch.arange(11) < 6):
        yield (
            "linear_mse",
            (*differentiable(csr[:3]), *(t.detach() for t in csr[3:]), measured, True),
        )
    yield "linear_mse", (*linear_inputs(5)[:3], None, None, torch.randn(5, 11), None, False)


@needs_kernels
@pytest.mark.parametrize("number", range(16))
def test_opcheck(number):
    name, arguments = list(samples())[number]
    torch.library.opcheck(getattr(torch.ops.histokit, name).default, arguments)


def test_all_samples_are_checked():
    assert len(list(samples())) == 16


# ---- types, threads, backends ------------------------------------------------------------------


@every_op
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_what_is_computed(name, low):
    function, inputs = CALLS[name]
    arguments = inputs(12)
    arguments[0] = arguments[0].to(low)  # as a layer under autocast would leave it
    plain = function(*arguments)
    with torch.autocast("cpu", dtype=low):
        inside = function(*arguments)
    torch.testing.assert_close(inside, plain, rtol=0, atol=0, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("name", [n for n in CALLS if n != "pearson_update"])
def test_training_under_autocast(name):
    function, inputs = CALLS[name]
    grads = []
    for enabled in (False, True):
        arguments = differentiable(inputs(12))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = function(*arguments)
            out = out[0] if isinstance(out, tuple) else out
        loss = out.float().square().sum()
        wanted = [a for a in arguments if a.requires_grad]
        grads.append(torch.autograd.grad(loss, wanted, allow_unused=True))
    for a, b in zip(*grads, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@needs_kernels
@every_op
def test_number_of_threads_does_not_change_a_bit(name):
    function, inputs = CALLS[name]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            arguments = inputs(3000)
            if name != "pearson_update":
                arguments = differentiable(arguments)
            out = function(*arguments)
            first = out[0] if isinstance(out, tuple) else out
            wanted = [a for a in arguments if a.requires_grad]
            grads = torch.autograd.grad(first.sum(), wanted, allow_unused=True) if wanted else ()
            found.append([first.detach(), *(g for g in grads if g is not None)])
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)  # torch's own GEMM splits by thread
    assert torch.equal(found[0][0], found[1][0]) or name.startswith("linear")


@needs_kernels
def test_equal_runs_give_equal_bits():
    for function, inputs in CALLS.values():
        one, two = function(*inputs(700)), function(*inputs(700))
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_backends_are_chosen_and_restored():
    calls, original, arguments = [], reference.prototype_attention, prototype_inputs(3)

    def spy(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    reference_before = dispatch._backend.get()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.reference, "prototype_attention", spy)
        with ops.use("reference"):
            got = ops.prototype_attention(*arguments, num_heads=2)
        assert len(calls) == 1
        if histokit.has_kernels():
            with ops.use("kernels"):
                ops.prototype_attention(*arguments, num_heads=2)
            assert len(calls) == 1
    assert dispatch._backend.get() == reference_before
    torch.testing.assert_close(got, original(*arguments, num_heads=2))
    with pytest.raises(ValueError, match="use: backend must be one of"):
        ops.use("fast")


def test_without_kernels_the_reference_serves_and_says_so_once():
    program = """
import sys, warnings
sys.modules["histokit._C"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "histokit._C" else found(name, *a)
import torch, histokit
from histokit import ops
assert not histokit.has_kernels() and not histokit.has_cuda()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        ops.prototype_attention(*(torch.ones(s) for s in [(2, 4), (3, 4), (3, 4), (3,)]),
                                num_heads=2)
    h, w, y = torch.randn(5, 3), torch.randn(4, 3, requires_grad=True), torch.rand(5, 4)
    ops.linear_mse(h, w, None, y.to_sparse_csr()).backward()
    ops.linear_pearson(h, w, None, y.to_sparse_csr())
    ops.pearson_update(torch.zeros(6, 1, 4).double(), y, y)
messages = [str(t.message) for t in told if "histokit" in str(t.message)]
assert len(messages) == 1 and "without compiled kernels" in messages[0], messages
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_import_needs_torch_alone():
    program = """
import sys
import histokit, histokit.ops, histokit.ops.reference
heavy = {"scanpy", "squidpy", "timm", "matplotlib", "pandas", "scipy", "h5py", "sklearn", "anndata"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- the library -------------------------------------------------------------------------------


@needs_kernels
def test_library_uses_only_the_stable_interface_of_torch():
    from histokit import _C

    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", _C.__file__], check=True, capture_output=True, text=True
    ).stdout
    assert "aoti_torch_" in symbols
    for prefix in ("_ZN3c10", "_ZN2at", "_ZN5torch", "cuda"):
        unwanted = [line for line in symbols.splitlines() if line.split()[-1].startswith(prefix)]
        assert not unwanted


@needs_kernels
def test_build_info_and_cuda_agree():
    from histokit import _C

    info = _C.build_info()
    assert set(info) == {"compiler", "instruction_set", "cuda_architectures", "git_revision"}
    assert bool(info["cuda_architectures"]) == histokit.has_cuda()
    names = ["cancer_cross_attention", "cancer_cross_attention_backward", "prototype_attention",
             "prototype_attention_backward", "distance_attention", "distance_attention_backward",
             "pearson_update", "csr_matmul", "csr_transpose_matmul"]  # fmt: skip
    for name in names:
        has = partial(torch._C._dispatch_has_kernel_for_dispatch_key, f"histokit::{name}")
        assert has("CPU")
        assert has("CUDA") == histokit.has_cuda()


@needs_kernels
def test_compiled_calls_check_the_index():
    with pytest.raises(RuntimeError, match=r"slide_index must be in \[0, 2\), got 5"):
        torch.ops.histokit.cancer_cross_attention(
            torch.randn(1, 4), None, None, torch.randn(2, 1, 4), None, torch.ones(4), torch.ones(4),
            torch.tensor([5]), None, 1, 1e-5,
        )  # fmt: skip


def test_no_warning_with_kernels():
    if not histokit.has_kernels():
        pytest.skip("histokit was installed without compiled kernels")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.prototype_attention(*prototype_inputs(3), num_heads=2)
