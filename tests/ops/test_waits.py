"""On CUDA no op makes the host wait: with the forms for CUDA, no call reads a value.

A call is watched for torch's operations that wait for a GPU. The same runs over the CUDA kernels in
tests/ops/test_cuda_host_ops.py, and on a GPU benchmarks/gpu_smoke.py records each op as a graph.
"""

import re
from pathlib import Path

import pytest
import torch
from op_checks import needs_kernels
from torch.utils._python_dispatch import TorchDispatchMode

from histokit import ops
from histokit.ops import csr, dispatch
from histokit.ops.targets import check_target

pytestmark = needs_kernels
ROOT = Path(__file__).resolve().parents[2]
WAITS = (  # of aten, those that read values on the host or have a size that depends on them
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim",
    "_unique2", "unique_consecutive", "bincount", "_linalg_eigh", "linalg_eigh", "_linalg_svd",
    "linalg_cholesky_ex", "_linalg_solve_ex", "isin", "index_put_nonzero",
)  # fmt: skip


class Watch(TorchDispatchMode):
    """Notes what would wait, in eager calls and inside custom ops."""

    def __init__(self):
        super().__init__()
        self.seen, self.calls = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.calls += 1
        name = func._schema.name.removeprefix("aten::")
        if name in WAITS or (name == "repeat_interleave" and not kwargs.get("output_size")):
            self.seen.append(name)
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            self.seen.append(f"{name} by a mask")
        return func(*args, **kwargs)


@pytest.fixture
def as_cuda(monkeypatch):
    """Python takes the ways of CUDA; what only its kernels have is served by the CPU's."""
    monkeypatch.setattr(dispatch, "on_cuda", lambda tensor: True)
    monkeypatch.delenv("HISTOKIT_CHECK", raising=False)
    if not torch._C._dispatch_has_kernel_for_dispatch_key("histokit::csr_moments", "CPU"):
        monkeypatch.setattr(csr, "assert_sound", lambda *arguments: None)


def tensors(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def sparse(rows, genes, kind=torch.int64):
    target = (torch.rand(rows, genes) * (torch.rand(rows, genes) < 0.3)).to_sparse_csr()
    indices = target.crow_indices().to(kind), target.col_indices().to(kind)
    return ops.Csr(*indices, target.values(), genes)


def attend(tokens, slides):
    x, context, w_in, b_in, w_out, b_out, gamma, beta = tensors(
        (9, 8), (slides, tokens, 8), (24, 8), (24,), (8, 8), (8,), (8,), (8,)
    )
    index = torch.arange(9) % slides if slides > 1 else None
    return lambda: ops.cancer_cross_attention(
        x, context, w_in, b_in, w_out, b_out, gamma, beta, num_heads=2, slide_index=index
    )


def prototypes():
    query, key, value, gate = tensors((9, 8), (3, 8), (3, 8), (3,))
    return lambda: ops.prototype_attention(query, key, value, gate, num_heads=2)


def loss(rows, form, kind=torch.int64, measured=False):
    hidden, weight, bias = tensors((rows, 4), (20, 4), (20,))
    target = torch.rand(rows, 20) if form == "dense" else sparse(rows, 20, kind)
    which = torch.arange(20) % 3 > 0 if measured else None
    return lambda: ops.linear_mse(hidden, weight, bias, target, which)


def correlation(rows, form):
    hidden, weight, bias = tensors((rows, 4), (70, 4), (70,))
    target = torch.rand(rows, 70) if form == "dense" else sparse(rows, 70)
    return lambda: ops.linear_pearson(hidden, weight, bias, target)[1]


def moments(slides):
    pred, target = torch.randn(2, 9, 5)
    score = ops.StreamingPearson(5, slides)
    index = torch.arange(9) % slides if slides > 1 else None

    def call():
        score.update(pred, target, slide_index=index)
        return score.moments

    return call


CALLS = {
    "cancer_cross_attention": lambda: attend(1, 1),
    "cancer_cross_attention, slides": lambda: attend(1, 3),
    "cancer_cross_attention, tokens": lambda: attend(3, 3),
    "prototype_attention": prototypes,
    "linear_mse, dense": lambda: loss(30, "dense"),
    "linear_mse, sparse": lambda: loss(30, "csr"),
    "linear_mse, int32": lambda: loss(30, "csr", torch.int32),
    "linear_mse, measured": lambda: loss(30, "csr", measured=True),
    "linear_mse, dense, measured": lambda: loss(30, "dense", measured=True),
    "linear_mse, residuals": lambda: loss(3, "csr"),
    "linear_mse, residuals, dense": lambda: loss(3, "dense", measured=True),
    "linear_pearson, rows": lambda: correlation(3, "csr"),
    "linear_pearson": lambda: correlation(60, "csr"),
    "linear_pearson, dense": lambda: correlation(60, "dense"),
    "streaming_pearson": lambda: moments(1),
    "streaming_pearson, slides": lambda: moments(3),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits(name, as_cuda):
    call = CALLS[name]()
    with Watch() as watch:
        out = call()
        if out.requires_grad:
            out.sum().backward()
    assert watch.calls > 0
    assert watch.seen == []


def test_the_watch_sees_what_waits():
    values = torch.ones(3)
    for call in (
        lambda: values.sum().item(), lambda: bool(values[0] > 0), lambda: values.nonzero(),
        lambda: values[values > 0], lambda: torch.linalg.eigh(torch.eye(3)),
        lambda: values.repeat_interleave(torch.tensor([1, 2, 3])),
    ):  # fmt: skip
        with Watch() as watch:
            call()
        assert watch.seen


def test_the_sources_name_no_call_that_waits():
    """Launches are all that C++ asks of CUDA: nothing is copied, waited for or allocated there."""
    waits = re.compile(r"cuda(Device|Stream|Event)Synchronize|cudaMem|cudaMalloc|cudaFree")
    for path in [*ROOT.glob("csrc/*.*"), *ROOT.glob("csrc/cuda/*.cu*")]:
        assert not waits.search(path.read_text()), path


@pytest.fixture
def sorts(as_cuda, monkeypatch):
    """A list that grows with every sort of a target's entries."""
    found, sort = [], csr._sort_by_column
    monkeypatch.setattr(csr, "_sort_by_column", lambda t: (found.append(1), sort(t))[1])
    return found


def test_entries_are_sorted_once_for_each_target(sorts):
    target = sparse(20, 30)

    def turned(given):
        offsets, rows, order = csr.by_column(given)
        values = given.values[order]
        return torch.sparse_csr_tensor(offsets, rows, values, (30, 20)).to_dense().T

    for _ in range(3):
        assert torch.equal(turned(target), target.to_sparse().to_dense())
    assert len(sorts) == 1
    doubled = target._replace(values=2 * target.values)  # indices alone decide
    assert torch.equal(turned(doubled), doubled.to_sparse().to_dense())
    assert len(sorts) == 1
    first, second = target.col_index[:2].tolist()
    target.col_index[0] = first - 1 if first else (first + second) // 2
    assert torch.equal(turned(target), target.to_sparse().to_dense())
    assert len(sorts) == 2
    with torch.inference_mode():
        other = sparse(20, 30)
        for _ in range(2):
            csr.by_column(other)
    assert len(sorts) == 4  # what changes unseen is not kept


def test_a_sparse_tensor_is_sorted_once(sorts):
    hidden, weight, target = torch.randn(30, 4), torch.randn(20, 4), sparse(30, 20).to_sparse()
    for _ in range(3):
        csr.by_column(check_target("linear_mse", hidden, weight, None, target))
    assert len(sorts) == 1


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_keys_have_32_bits_where_they_fit(kind):
    found = csr._sort_by_column(sparse(5, 7, kind))
    assert {t.dtype for t in found} == {torch.int32}
