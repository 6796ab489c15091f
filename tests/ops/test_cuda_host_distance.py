"""The CUDA kernels of distance_attention on host threads, in all types and layouts."""

import pytest
import torch
from cuda_host.build import DTYPES, Launcher, build
from hypothesis import given
from hypothesis import strategies as st
from test_cuda_host import DTYPE, SMALL, acc, assert_within_budget, unwritten

from histokit.ops import reference


@pytest.fixture(scope="module")
def launch(pytestconfig):
    library = build(pytestconfig.cache.mkdir("cuda_host"))
    names = ("distance_attention", "distance_attention_backward")
    header, params = "distance_attention.h", "DistanceAttentionParams"
    return [Launcher(library, f"{name}_cuda", header, params) for name in names]


def check(launch, n, heads, head_dim, dtype, pad, dropout=0.0, with_slope=True):
    torch.manual_seed(0)
    small = acc(dtype)
    vectors = torch.randn(n, 4, heads, head_dim + pad).to(dtype)[..., :head_dim]
    query, key, value, grad_out = vectors.unbind(1)
    coords, slope = torch.rand(n, 2, dtype=small), torch.randn(heads, dtype=small)

    seed = torch.tensor([5 << 40])

    def plain(dtype):
        given = [t.transpose(0, 1).to(dtype).requires_grad_() for t in (query, key, value)]
        given.append(slope.to(dtype).requires_grad_())
        out = reference.distance_attention(
            *given[:3], coords.to(dtype), given[3], dropout=dropout, seed=seed
        )
        grads = torch.autograd.grad(out, given, grad_out.transpose(0, 1).to(dtype))
        return [*(t.detach().transpose(0, 1) for t in (out, *grads[:3])), grads[3]]

    strides = {
        f"{name}_{side}": t.stride(i)
        for name, t in zip(("query", "key", "value", "grad_out"), vectors.unbind(1), strict=True)
        for i, side in enumerate(("row", "head"))
    }
    out, grad_query, grad_key, grad_value = (
        unwritten(n, heads, head_dim, dtype=dtype) for _ in range(4)
    )
    partial_slope = torch.zeros(heads, n, dtype=torch.float64)  # at least as many as blocks
    fields = dict(
        dtype=dtype, num_rows=n, num_heads=heads, head_dim=head_dim, query=query, key=key,
        value=value, grad_out=grad_out, **strides, coords=coords, slope=slope, seed=seed,
        dropout=dropout, out=out,
        normalizer=unwritten(heads, n, 2, dtype=small), delta=unwritten(heads, n, dtype=small),
        grad_query=grad_query, grad_key=grad_key, grad_value=grad_value,
        partial_slope=partial_slope if with_slope else None,
    )  # fmt: skip
    for part in launch:
        part(**fields)
    actual = [out, grad_query, grad_key, grad_value]
    if with_slope:
        blocks = (partial_slope.flatten() != 0).sum()
        grad_slope = partial_slope.flatten()[:blocks].view(heads, -1).sum(1)
        actual.append(grad_slope.to(dtype))
    names = ("out", "query", "key", "value", "slope")
    truth, eager = plain(torch.float64), plain(dtype)
    for name, ours, wide, theirs in zip(names, actual, truth, eager, strict=False):
        scale = n if name == "slope" else 4 * head_dim**0.5  # q . k, dO . v; a sum over patches
        assert_within_budget(ours, wide, theirs, scale=scale)


@SMALL
@given(
    st.fixed_dictionaries(
        {
            "n": st.integers(1, 70), "heads": st.integers(1, 3), "head_dim": st.integers(1, 40),
            "dtype": DTYPE, "pad": st.sampled_from([0, 1, 8]),
            "dropout": st.sampled_from([0.0, 0.3]),
        }
    )
)  # fmt: skip
def test_distance_attention(launch, case):
    check(launch, **case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "head_dim"), [(300, 16), (130, 32), (40, 128), (9, 300)])
def test_distance_attention_in_several_tiles(launch, n, head_dim, dtype):
    check(launch, n, 2, head_dim, dtype, 0)


def test_distance_attention_without_the_gradient_of_the_slope(launch):
    check(launch, 70, 2, 16, torch.float32, 0, with_slope=False)


def test_distance_attention_names_its_limit(launch):
    with pytest.raises(RuntimeError, match="heads of up to 1024"):
        launch[0](dtype=torch.float32, num_rows=1, head_dim=1025)
