import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DEVICES, check_budget, needs_kernels
from torch import nn

from histokit import ops


def parameters(dim, dtype=torch.float64):
    shapes = [(3 * dim, dim), (3 * dim,), (dim, dim), (dim,), (dim,), (dim,)]
    return [torch.randn(s, dtype=dtype) * (0.3 if len(s) > 1 else 1) for s in shapes]


def case(rows, heads, head_dim, slides, tokens, masked=False):
    torch.manual_seed(0)
    dim = heads * head_dim
    arguments = [
        torch.randn(rows, dim, dtype=torch.float64),
        torch.randn(slides, tokens, dim, dtype=torch.float64),
        *parameters(dim),
    ]
    options = {"num_heads": heads}
    if slides > 1:
        options["slide_index"] = torch.randint(slides, (rows,))
    if masked:
        keep = torch.rand(rows, heads * tokens) > 0.3
        options["dropout_mask"] = keep.double() / 0.7
    return arguments, options


def test_equals_multihead_attention_and_layer_norm_of_each_slide():
    attention = nn.MultiheadAttention(24, 4, batch_first=True).double()
    norm = nn.LayerNorm(24).double()
    x = torch.randn(31, 24, dtype=torch.float64)
    context = torch.randn(3, 2, 24, dtype=torch.float64)
    slides = torch.randint(3, (31,))
    y = ops.cancer_cross_attention(
        x, context, attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight,
        attention.out_proj.bias, norm.weight, norm.bias, num_heads=4, slide_index=slides,
    )  # fmt: skip
    for slide in range(3):
        own, ctx = slides == slide, context[slide : slide + 1]
        expected = norm(x[own] + attention(x[None, own], ctx, ctx)[0][0])
        torch.testing.assert_close(y[own], expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 2, 5, 33]),
    heads=st.sampled_from([1, 3, 4]),
    head_dim=st.integers(1, 9),
    slides=st.integers(1, 3),
    tokens=st.integers(1, 8),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    device=st.sampled_from(DEVICES),
)
def test_within_budget(rows, heads, head_dim, slides, tokens, masked, dtype, device):
    arguments, options = case(rows, heads, head_dim, slides, tokens, masked)
    # gradients: not of low precision, where eager is mostly noise, nor of a LayerNorm over so few
    # numbers that they are nothing but what is left of larger terms
    wide = dtype in (torch.float32, torch.float64) and heads * head_dim > 3
    check_budget("cancer_cross_attention", arguments, options, dtype, device, wide, slack=4.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [1, 4])
def test_wide_rows(tokens, device):
    arguments, options = case(600, 4, 64, 2, tokens)
    check_budget("cancer_cross_attention", arguments, options, torch.float32, device)


@needs_kernels
@pytest.mark.parametrize(
    ("slides", "tokens", "masked"), [(1, 1, False), (2, 1, True), (2, 3, True)]
)
def test_gradcheck(slides, tokens, masked):
    arguments, options = case(4, 2, 3, slides, tokens, masked)
    torch.autograd.gradcheck(
        lambda *a: ops.cancer_cross_attention(*a, **options),
        [a.requires_grad_() for a in arguments],
    )


def test_strided_input_and_gradient():
    arguments, options = case(9, 2, 4, 1, 3)
    plain = ops.cancer_cross_attention(*arguments, **options)
    for x in (arguments[0].T.contiguous().T, torch.cat([arguments[0]] * 2, 1)[:, :8]):
        x = x.requires_grad_()
        y = ops.cancer_cross_attention(x, *arguments[1:], **options)
        torch.testing.assert_close(y, plain)
        y.sum().backward()  # an expanded gradient


def test_offset_and_infinity():
    arguments, options = case(8, 2, 4, 1, 2)
    arguments[0][0] += 1e6
    arguments[0][1, 2] = torch.inf
    arguments[0][2, 2] = torch.nan
    y = ops.cancer_cross_attention(*arguments, **options)
    assert y[1:3].isnan().all()
    assert y[[0, *range(3, 8)]].isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({0: torch.zeros(5)}, ValueError, r"x must be \(N, D\) = \(any, any\), got \(5,\)"),
        ({0: torch.zeros(5, 8, dtype=torch.int64)}, ValueError, "x must be float16"),
        ({1: torch.zeros(2, 3, 7)}, ValueError, r"context must be .* = \(any, any, 8\), got"),
        ({1: torch.zeros(0, 3, 8)}, ValueError, "context must hold a slide and a token"),
        (
            {2: torch.zeros(8, 8)},
            ValueError,
            r"in_proj_weight must be .* = \(24, 8\), got \(8, 8\)",
        ),
        ({7: torch.zeros(9)}, ValueError, r"norm_bias must be \(D,\) = \(8,\), got \(9,\)"),
        (
            {7: torch.zeros(8, device="meta")},
            ValueError,
            "norm_bias must be on cpu like x, got meta",
        ),
        ({"num_heads": 3}, ValueError, "num_heads must divide the width 8, got 3"),
        ({"slide_index": None}, ValueError, "slide_index must be given with 2 slides"),
        (
            {"slide_index": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            r"slide_index must be \(N",
        ),
        ({"slide_index": torch.zeros(5)}, ValueError, "slide_index must be int64, got"),
        (
            {"slide_index": torch.full((5,), 2)},
            IndexError,
            r"slide_index must be in \[0, 2\), got 2",
        ),
        ({"slide_index": torch.full((5,), -1)}, IndexError, r"in \[0, 2\), got -1"),
        ({"dropout_mask": torch.zeros(5, 5)}, ValueError, r"dropout_mask must be .* = \(5, 6\)"),
    ],
)
def test_bad_input(change, error, text):
    arguments, options = case(5, 2, 4, 2, 3)
    for key, value in change.items():
        if isinstance(key, int):
            arguments[key] = value
        else:
            options[key] = value
    with pytest.raises(error, match=f"cancer_cross_attention: .*{text}"):
        ops.cancer_cross_attention(*arguments, **options)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("slides", [1, 3])
def test_a_folded_context_gives_the_same(slides, tokens, backend):
    (x, *given), options = case(20, 4, 5, slides, tokens)
    index = options.pop("slide_index", None)
    with ops.use(backend):
        expected = ops.cancer_cross_attention(x, *given, **options, slide_index=index, eps=1e-3)
        folded = ops.fold_context(*given, **options, eps=1e-3)
        torch.testing.assert_close(folded(x, index), expected)
        torch.testing.assert_close(
            folded(x[:7], None if index is None else index[:7]), expected[:7]
        )


def test_a_folded_context_refuses_what_does_not_fit():
    (x, *given), options = case(6, 2, 4, 2, 1)
    folded = ops.fold_context(*given, num_heads=2)
    with pytest.raises(ValueError, match=r"x must be \(N, D\) = \(any, 8\), got \(6, 4\)"):
        folded(x[:, :4], options["slide_index"])
    with pytest.raises(ValueError, match="slide_index must be given with 2 slides"):
        folded(x)
    with pytest.raises(IndexError, match=r"slide_index must be in \[0, 2\), got 5"):
        folded(x, options["slide_index"] + 5 - options["slide_index"])
    with pytest.raises(ValueError, match=r"x must be summed in torch\.float64, got torch\.float32"):
        folded(x.float(), options["slide_index"])
    with pytest.raises(ValueError, match=r"fold_context: in_proj_bias must be \(3 D,\)"):
        ops.fold_context(*given[:2], given[2][:3], *given[3:], num_heads=2)
