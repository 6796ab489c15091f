"""The CUDA kernels of csrc/cuda, compiled with g++ and run on the host (tests/ops/cuda_host).

Their launchers take CPU tensors here and answer to the same references as the CPU kernels.
"""

import shutil
from functools import partial

import pytest
import torch
from cuda_host.build import DTYPES, Launcher, build, nvcc_check
from hypothesis import given, settings
from hypothesis import strategies as st

from histokit.ops import reference
from histokit.ops.cancer_cross_attention import _fold

SMALL = settings(max_examples=15, deadline=None, derandomize=True)
DTYPE = st.sampled_from(list(DTYPES))
NAN = float("nan")
ROUNDINGS = {torch.float64: 10_000, torch.float32: 32}  # where the truth is no better, or is zero


@pytest.fixture(scope="module")
def launch(pytestconfig):
    library = build(pytestconfig.cache.mkdir("cuda_host"))
    headers = {
        "cancer_cross_attention": ("cancer_cross_attention", "_backward"),
        "prototype_attention": ("prototype_attention", "_backward"),
        "pearson_update": ("pearson_update",),
        "csr": ("csr_matmul", "csr_moments", "csr_check"),
    }
    launchers = {}
    for header, names in headers.items():
        params = "".join(word.capitalize() for word in header.split("_")) + "Params"
        for name in names:
            op = header + name if name.startswith("_") else name
            launchers[op] = Launcher(library, f"{op}_cuda", f"{header}.h", params)
    return launchers


def acc(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows(n, width, dtype, pad=0):
    """(n, width) random numbers whose rows are width + pad apart."""
    return torch.randn(n, width + pad).to(dtype)[:, :width]


def unwritten(*shape, dtype):
    return torch.full(shape, NAN, dtype=dtype)


def assert_within_budget(actual, truth, eager, scale=1):
    """At most twice the error of eager PyTorch at the same precision, plus roundings.

    scale: size of the terms that the result is a sum of, where they may cancel.
    """
    assert actual.dtype == eager.dtype
    error = (actual.double() - truth).abs().max()
    allowed = 2 * (eager.double() - truth).abs().max()
    rounding = ROUNDINGS.get(actual.dtype, 4) * torch.finfo(actual.dtype).eps
    assert error <= allowed + rounding * (truth.abs().max() + scale)


def check_cancer_cross_attention(
    launch, n, head_dim, heads, tokens, slides, dtype, dropout, pad, partials
):
    torch.manual_seed(0)
    dim, keys, small = heads * head_dim, heads * tokens, acc(dtype)
    x, grad_y = rows(n, dim, dtype, pad), rows(n, dim, dtype, 2 * pad)
    shapes = ((slides, tokens, dim), (3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,))
    params = [torch.randn(s) * (s[-1] ** -0.5 if len(s) == 2 else 1) for s in shapes]
    slide_index = torch.randint(slides, (n,))
    mask = ((torch.rand(n, keys) < 0.8) / 0.8) if dropout else None

    def plain(dtype):
        given = [t.detach().to(dtype).requires_grad_() for t in (x, *params)]
        y = reference.cancer_cross_attention(
            *given, num_heads=heads, slide_index=slide_index,
            dropout_mask=None if mask is None else mask.to(dtype),
        )  # fmt: skip
        return [y.detach(), *torch.autograd.grad(y, given, grad_y.to(dtype))]

    given = [t.to(small).requires_grad_() for t in params]
    score_weight, score_bias, value, bias, gamma, beta = _fold(*given, heads, with_mask=dropout)
    y, grad_z = (unwritten(n, dim, dtype=dtype) for _ in range(2))
    mean, rstd = (unwritten(n, dtype=small) for _ in range(2))
    keys, scored = value.shape[1], tokens > 1
    prob, grad_score = (unwritten(n, keys, dtype=small) if scored else None for _ in range(2))
    forward = partial(
        launch["cancer_cross_attention"],
        dtype=dtype, num_rows=n, dim=dim, num_slides=slides, num_keys=keys, tokens=tokens,
        x=x, x_stride=x.stride(0), score_weight=score_weight, score_bias=score_bias,
        value=value.contiguous(), bias=bias, norm_weight=gamma, norm_bias=beta,
        slide_index=slide_index if slides > 1 else None,
        mask=None if mask is None else mask.to(small), eps=1e-5,
        y=y, prob=prob, mean=mean, rstd=rstd,
    )  # fmt: skip
    forward()
    partial_norm = unwritten(partials, 2, dim, dtype=small)
    launch["cancer_cross_attention_backward"](
        **forward.keywords, grad_y=grad_y, grad_y_stride=grad_y.stride(0), grad_z=grad_z,
        grad_score=grad_score, num_partials=partials, partial_norm=partial_norm,
    )  # fmt: skip

    grad_x, weight = grad_z.to(small), torch.ones(n, keys, dtype=small)
    folded = {value: torch.zeros_like(value)}
    if scored:
        grad_x = grad_x + torch.einsum("nk,nkd->nd", grad_score, score_weight[slide_index])
        outer = torch.einsum("nk,nd->nkd", grad_score, x.to(small))
        folded[score_weight] = torch.zeros_like(score_weight).index_add(0, slide_index, outer)
        folded[score_bias] = torch.zeros_like(score_bias).index_add(0, slide_index, grad_score)
        weight = prob
    weight = weight if mask is None else weight * mask.to(small)
    outer = torch.einsum("nk,nd->nkd", weight, grad_z.to(small))
    folded[value] = folded[value].index_add(0, slide_index, outer)
    if bias is not None:
        folded[bias] = grad_z.to(small).sum(0)
    grads = torch.autograd.grad(list(folded), given[:-2], list(folded.values()), allow_unused=True)
    grads = [torch.zeros_like(g) if d is None else d for d, g in zip(grads, given, strict=False)]
    actual = [y, grad_x.to(dtype), *(g.to(dtype) for g in (*grads, *partial_norm.sum(0)))]
    for ours, truth, eager in zip(actual, plain(torch.float64), plain(dtype), strict=True):
        assert_within_budget(ours.detach(), truth, eager)


@SMALL
@given(
    st.fixed_dictionaries(
        {
            "n": st.integers(1, 20), "head_dim": st.integers(1, 24), "heads": st.integers(1, 4),
            "tokens": st.integers(1, 8), "slides": st.integers(1, 3), "dtype": DTYPE,
            "dropout": st.booleans(), "pad": st.sampled_from([0, 3, 8]),
            "partials": st.integers(1, 4),
        }
    )
)  # fmt: skip
def test_cancer_cross_attention(launch, case):
    check_cancer_cross_attention(launch, **case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1024, 1300, 2056])
def test_cancer_cross_attention_with_several_warps_a_row(launch, dim, dtype):
    check_cancer_cross_attention(launch, 5, dim // 4, 4, 2, 2, dtype, True, 0, 2)


@pytest.mark.parametrize("dim", [8200, 16384])
def test_layer_norm_of_the_longest_rows(launch, dim):
    x, value, gamma, beta = rows(2, dim, torch.float16), *torch.randn(3, dim)
    y, mean, rstd = torch.empty_like(x), torch.empty(2), torch.empty(2)
    forward = partial(
        launch["cancer_cross_attention"],
        dtype=x.dtype, num_rows=2, dim=dim, num_slides=1, num_keys=1, tokens=1, x=x, x_stride=dim,
        value=value, norm_weight=gamma, norm_bias=beta, eps=1e-5, y=y, mean=mean, rstd=rstd,
    )  # fmt: skip
    forward()
    truth = torch.layer_norm((x + value).double(), (dim,), gamma.double(), beta.double())
    torch.testing.assert_close(y.double(), truth, atol=1e-3, rtol=1e-3)
    with pytest.raises(RuntimeError, match="up to 16384"):
        forward(dim=16385)


def check_prototype_attention(launch, n, prototypes, heads, head_dim, dtype, pad, partials):
    torch.manual_seed(0)
    width, small = heads * head_dim, acc(dtype)
    query, grad_out = rows(n, width, dtype, pad), rows(n, width, dtype, 2 * pad)
    key, value = torch.randn(2, prototypes, width).to(small)

    def plain(dtype):
        given = [t.to(dtype).requires_grad_() for t in (query, key, value)]
        gate = torch.ones(prototypes, dtype=dtype)
        out = reference.prototype_attention(*given, gate, num_heads=heads)
        return [out.detach(), *torch.autograd.grad(out, given, grad_out.to(dtype))]

    out, grad_query = (unwritten(n, width, dtype=dtype) for _ in range(2))
    partial_key, partial_value = unwritten(2, partials, prototypes, width, dtype=small)
    forward = partial(
        launch["prototype_attention"],
        dtype=dtype, num_rows=n, num_prototypes=prototypes, num_heads=heads, head_dim=head_dim,
        query=query, query_stride=query.stride(0), key=key, value=value,
        out=out, normalizer=unwritten(n, heads, 2, dtype=small),
    )  # fmt: skip
    forward()
    launch["prototype_attention_backward"](
        **forward.keywords, grad_out=grad_out, grad_out_stride=grad_out.stride(0),
        grad_query=grad_query, num_partials=partials,
        partial_key=partial_key, partial_value=partial_value,
    )  # fmt: skip
    actual = [out, grad_query, partial_key.sum(0).to(dtype), partial_value.sum(0).to(dtype)]
    for ours, truth, eager in zip(actual, plain(torch.float64), plain(dtype), strict=True):
        assert_within_budget(ours, truth, eager, scale=4 * head_dim**0.5)  # q . k, dO . v


@SMALL
@given(
    st.fixed_dictionaries(
        {
            "n": st.integers(1, 90), "prototypes": st.integers(1, 70), "heads": st.integers(1, 4),
            "head_dim": st.integers(1, 40), "dtype": DTYPE, "pad": st.sampled_from([0, 1, 8]),
            "partials": st.integers(1, 4),
        }
    )
)  # fmt: skip
def test_prototype_attention(launch, case):
    check_prototype_attention(launch, **case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("prototypes", "head_dim"), [(1023, 16), (130, 32), (9, 300)])
def test_prototype_attention_in_several_tiles(launch, prototypes, head_dim, dtype):
    check_prototype_attention(launch, 3, prototypes, 2, head_dim, dtype, 0, 2)


def test_prototype_attention_names_its_limit(launch):
    with pytest.raises(RuntimeError, match="heads of up to 1024"):
        launch["prototype_attention"](dtype=torch.float32, num_rows=1, head_dim=1025)


def update(launch, state, pred, target, mask, slide_index, partials):
    slides, genes = state.shape[1:]
    scratch = unwritten(partials, *state.shape, dtype=torch.float64) if partials > 1 else None
    offsets = torch.zeros(slides + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(slide_index, minlength=slides).cumsum(0)
    launch["pearson_update"](
        dtype=pred.dtype, num_rows=len(pred), num_genes=genes, num_slides=slides,
        pred=pred, pred_stride=pred.stride(0), target=target, target_stride=target.stride(0),
        mask=mask, mask_stride=genes if mask is not None and mask.ndim == 2 else 0,
        order=slide_index.argsort(stable=True) if slides > 1 else None,
        offsets=offsets if slides > 1 else None,
        state=state, num_partials=partials, partial=scratch,
    )  # fmt: skip


@SMALL
@given(
    n=st.integers(1, 150), genes=st.integers(1, 150), slides=st.integers(1, 3), dtype=DTYPE,
    masked=st.sampled_from(["no", "entry", "gene"]), pad=st.integers(0, 3),
    partials=st.integers(1, 4), offset=st.sampled_from([0, 1e6]),
)  # fmt: skip
def test_pearson_update(launch, n, genes, slides, dtype, masked, pad, partials, offset):
    torch.manual_seed(0)
    ours, truth = torch.zeros(2, 6, slides, genes, dtype=torch.float64)
    for _ in range(2):
        offset = 0 if dtype == torch.float16 else offset
        pred, target = (rows(n, genes, torch.float32, pad) + offset for _ in range(2))
        pred, target = pred.to(dtype), (target + pred).to(dtype)
        pred[torch.rand(n, genes) < 0.1] = NAN
        target[torch.rand(n, genes) < 0.1] = NAN
        mask = torch.rand(n, genes) < 0.7 if masked == "entry" else torch.rand(genes) < 0.7
        mask = None if masked == "no" else mask
        slide_index = torch.randint(slides, (n,))
        update(launch, ours, pred, target, mask, slide_index, partials)
        reference.pearson_update(truth, pred, target, mask, slide_index)
    scale = truth.abs().amax((1, 2), keepdim=True)
    assert ((ours - truth).abs() <= 1e-9 * scale).all()
    correlation, expected = (s[5] / (s[3] * s[4]).sqrt() for s in (ours, truth))
    ample = truth[0] > 2
    torch.testing.assert_close(
        correlation[ample], expected[ample], atol=1e-5, rtol=0, equal_nan=True
    )


def test_pearson_update_repeats_bit_for_bit(launch):
    pred, target = torch.randn(2, 400, 33)
    states = torch.zeros(2, 6, 2, 33, dtype=torch.float64)
    for state in states:
        update(launch, state, pred, target, None, torch.arange(400) % 2, 3)
    assert torch.equal(states[0], states[1])


@SMALL
@given(
    n=st.integers(1, 30), genes=st.integers(1, 90), dim=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.1, 0.9, 1.0]), dtype=st.sampled_from(list(DTYPES)[:2]),
    index=st.sampled_from([torch.int32, torch.int64]), pad=st.sampled_from([0, 1, 4]),
)  # fmt: skip
def test_csr_matmul_and_moments(launch, n, genes, dim, density, dtype, index, pad):
    torch.manual_seed(0)
    target = torch.rand(n, genes, dtype=dtype) * (torch.rand(n, genes) < density)
    dense, out = rows(genes, dim, dtype, pad), unwritten(n, dim, dtype=dtype)
    sparse = target.to_sparse_csr()
    moments = unwritten(2, n, dtype=torch.float64)
    matmul = partial(
        launch["csr_matmul"],
        dtype=dtype, wide_index=index == torch.int64, num_rows=n, num_cols=genes, dim=dim,
        row_offsets=sparse.crow_indices().to(index), col_index=sparse.col_indices().to(index),
        values=sparse.values(), dense=dense, dense_stride=dense.stride(0),
        out=out, moments=moments,
    )  # fmt: skip
    matmul()
    launch["csr_moments"](**matmul.keywords)
    assert_within_budget(out, target.double() @ dense.double(), target @ dense)
    truth = target.double()
    truth = torch.stack([truth.mean(1), ((truth - truth.mean(1, keepdim=True)) ** 2).sum(1)])
    torch.testing.assert_close(moments, truth, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(("column", "sound"), [([0, 2, 1], True), ([0, 2, 3], False),
                                               ([2, 0, 1], False), ([0, 0, 1], False)])  # fmt: skip
def test_a_fault_of_a_sparse_matrix_ends_the_kernel(launch, column, sound, index):
    """Without a place for its answer: nobody waits for one."""
    check = partial(
        launch["csr_check"],
        dtype=torch.float32, wide_index=index == torch.int64, num_rows=2, num_cols=3, num_entries=3,
        row_offsets=torch.tensor([0, 2, 3], dtype=index),
        col_index=torch.tensor(column, dtype=index),
    )  # fmt: skip
    if sound:
        return check()
    with pytest.raises(RuntimeError, match="refused"):
        check()
    faults = torch.full((2,), 9, dtype=torch.uint8)
    check(faults=faults)
    assert faults.any()
    assert faults.max() < 9


@pytest.mark.parametrize("slides", [[0, 1, 0], [0, 2, 0], [0, -1, 0]])
def test_a_slide_that_is_not_there_ends_the_kernel(launch, slides):
    index, x, one = torch.tensor(slides), torch.randn(3, 8), torch.ones(8)
    forward = partial(
        launch["cancer_cross_attention"],
        dtype=x.dtype, num_rows=3, dim=8, num_slides=2, num_keys=1, tokens=1, x=x, x_stride=8,
        value=torch.randn(2, 8), norm_weight=one, norm_bias=one, slide_index=index, eps=1e-5,
        y=torch.empty_like(x), mean=torch.empty(3), rstd=torch.empty(3),
    )  # fmt: skip
    ordered, order = index.sort(stable=True)
    state, data = torch.zeros(6, 2, 8, dtype=torch.float64), torch.randn(3, 8)
    moments = partial(
        launch["pearson_update"],
        dtype=data.dtype, num_rows=3, num_genes=8, num_slides=2, pred=data, pred_stride=8,
        target=data, target_stride=8, order=order, state=state, num_partials=1,
        offsets=torch.searchsorted(ordered, torch.arange(3)),
    )  # fmt: skip
    for call in (forward, moments):
        if slides == [0, 1, 0]:
            call()
            continue
        with pytest.raises(RuntimeError, match="refused"):
            call()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH to compile CUDA with")
def test_nvcc_compiles_all_kernels(pytestconfig):
    nvcc_check(pytestconfig.cache.mkdir("cuda_host"))
