import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DEVICES, check_budget, needs_kernels

from histokit import ops
from histokit.ops import reference


def case(rows, num, heads, head_dim, scale=1.0):
    torch.manual_seed(0)
    width = heads * head_dim
    return [
        torch.randn(rows, width, dtype=torch.float64) * scale,
        torch.randn(num, width, dtype=torch.float64),
        torch.randn(num, width, dtype=torch.float64),
        torch.rand(num, dtype=torch.float64),
    ]


def test_equals_the_sum_over_prototypes():
    query, key, value, gate = case(7, 5, 2, 3)
    y = ops.prototype_attention(query, key, value, gate, num_heads=2)
    for n in range(7):
        for head in (slice(0, 3), slice(3, 6)):
            weight = (key[:, head] @ query[n, head] / 3**0.5).softmax(0)
            expected = sum(weight[m] * gate[m] * value[m, head] for m in range(5))
            torch.testing.assert_close(y[n, head], expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 7, 8, 9, 70]),
    num=st.sampled_from([1, 2, 31, 33, 64, 100]),
    heads=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([1, 5, 16, 33]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    device=st.sampled_from(DEVICES),
)
def test_within_budget(rows, num, heads, head_dim, dtype, device):
    wide = dtype in (torch.float32, torch.float64)
    check_budget(
        "prototype_attention", case(rows, num, heads, head_dim), {"num_heads": heads}, dtype,
        device, wide, slack=4.0,
    )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num", [1000, 1024])
def test_many_prototypes(num, device):
    check_budget(
        "prototype_attention", case(1100, num, 2, 32), {"num_heads": 2}, torch.float32, device
    )


@needs_kernels
@pytest.mark.parametrize("num", [1, 4])
def test_gradcheck(num):
    arguments = [a.requires_grad_() for a in case(3, num, 2, 2)]
    torch.autograd.gradcheck(lambda *a: ops.prototype_attention(*a, num_heads=2), arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sharp_scores_neither_overflow_nor_lose_gradients(dtype):
    arguments = [a.to(dtype).requires_grad_() for a in case(20, 40, 1, 16, scale=1e4)]
    y = ops.prototype_attention(*arguments, num_heads=1)
    y.square().sum().backward()
    best = (arguments[0] @ arguments[1].T).argmax(1)
    torch.testing.assert_close(y, arguments[2][best] * arguments[3][best, None])
    assert all(a.grad.isfinite().all() for a in arguments)


def test_closed_gate_gives_zero_and_its_gradient():
    arguments = case(6, 3, 1, 4)
    arguments[3].zero_()
    arguments[3].requires_grad_()
    y = ops.prototype_attention(*arguments, num_heads=1)
    assert torch.equal(y, torch.zeros_like(y))
    y.sum().backward()
    assert (arguments[3].grad != 0).all()


def test_strided_query():
    query, key, value, gate = case(9, 5, 2, 3)
    wide = torch.cat([query, query], 1)
    for q in (query.T.contiguous().T, wide[:, 6:]):
        torch.testing.assert_close(
            ops.prototype_attention(q, key, value, gate, num_heads=2),
            reference.prototype_attention(query, key, value, gate, num_heads=2),
        )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({0: torch.zeros(3)}, r"query must be \(N, L\) = \(any, any\), got \(3,\)"),
        ({0: torch.zeros(3, 6, dtype=torch.int32)}, "query must be float16, .* got torch.int32"),
        ({1: torch.zeros(4, 5)}, r"key must be \(M, L\) = \(any, 6\), got \(4, 5\)"),
        ({1: torch.zeros(0, 6)}, r"key must hold at least one prototype, got \(0, 6\)"),
        ({2: torch.zeros(3, 6)}, r"value must be \(M, L\) = \(4, 6\), got \(3, 6\)"),
        ({3: torch.zeros(4, 1)}, r"gate must be \(M,\) = \(4,\), got \(4, 1\)"),
        ({3: torch.zeros(4, device="meta")}, "gate must be on cpu like query, got meta"),
        ({"num_heads": 4}, "num_heads must divide the width 6, got 4"),
    ],
)
def test_bad_input(change, text):
    arguments, options = case(3, 4, 2, 3), {"num_heads": 2}
    for key, value in change.items():
        if isinstance(key, int):
            arguments[key] = value
        else:
            options[key] = value
    with pytest.raises(ValueError, match=f"prototype_attention: {text}"):
        ops.prototype_attention(*arguments, **options)
