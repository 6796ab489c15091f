import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DEVICES, check_budget, needs_kernels, results

from histokit import ops
from histokit.ops import reference


def case(rows, heads, head_dim, scale=1.0, seed=0):
    torch.manual_seed(seed)
    vectors = torch.randn(3, heads, rows, head_dim, dtype=torch.float64)
    coords = torch.rand(rows, 2, dtype=torch.float64)
    slope = torch.randn(heads, dtype=torch.float64) * 3
    return [vectors[0] * scale, *vectors[1:], coords, slope]


def blind(arguments, module=ops):
    """A call whose coords are a constant, for they get no gradient."""
    coords = arguments[3]
    return lambda q, k, v, slope: module.distance_attention(q, k, v, coords, slope)


def test_equals_the_sum_over_patches():
    q, k, v, coords, slope = case(7, 2, 3)
    out = ops.distance_attention(q, k, v, coords, slope)
    for i in range(2):
        for n in range(7):
            distance = torch.tensor([torch.dist(coords[n], c) for c in coords]).double()
            weight = (k[i] @ q[i, n] / 3**0.5 + slope[i] * distance).softmax(0)
            torch.testing.assert_close(out[i, n], weight @ v[i], rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 6, 7, 63, 64, 65, 130]),
    heads=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([1, 5, 16, 32, 33, 128]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    device=st.sampled_from(DEVICES),
)
def test_within_budget(rows, heads, head_dim, dtype, device):
    wide = dtype in (torch.float32, torch.float64)
    arguments = case(rows, heads, head_dim)
    check_budget("distance_attention", arguments, {}, dtype, device, wide, slack=4.0, fewest=4)


@pytest.mark.parametrize("rows", [7, 63, 130])
def test_gradient_of_the_slope_is_within_budget(rows):
    """A single number a head, so errors are compared over many draws."""
    errors = []
    for draw in range(24):
        arguments = [a.float() for a in case(rows, 2, 32, seed=draw)]
        wide = [a.double() for a in arguments]
        truth = results(reference.distance_attention, wide, {}, True)[-1]
        found = [
            results(module.distance_attention, [a.clone() for a in arguments], {}, True)[-1]
            for module in (ops, reference)
        ]
        errors.append([(one.double() - truth).square().mean() for one in found])
    ours, eager = torch.tensor(errors).mean(0).sqrt()
    assert ours <= 4 * eager


@pytest.mark.parametrize("device", DEVICES)
def test_many_patches(device):
    arguments = [a.float().to(device) for a in case(700, 2, 32)]
    out = ops.distance_attention(*arguments)
    truth = reference.distance_attention(*(a.double() for a in arguments))
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 4])
def test_gradcheck(rows):
    arguments = case(rows, 2, 3)
    wanted = [a.requires_grad_() for i, a in enumerate(arguments) if i != 3]
    torch.autograd.gradcheck(blind(arguments), wanted)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 6, 65, 130]),
    heads=st.sampled_from([1, 3]),
    rate=st.sampled_from([0.1, 0.5, 0.99]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    device=st.sampled_from(DEVICES),
)
def test_dropout_draws_the_mask_of_the_reference(rows, heads, rate, dtype, device):
    seed = torch.tensor([0x1234567_89ABCDEF])
    options = {"dropout": rate, "seed": seed}
    arguments = case(rows, heads, 8)
    check_budget("distance_attention", arguments, options, dtype, device, slack=4.0)


@needs_kernels
def test_gradcheck_with_dropout():
    arguments = case(5, 2, 3)
    wanted = [a.requires_grad_() for i, a in enumerate(arguments) if i != 3]

    def call(q, k, v, slope):
        options = {"dropout": 0.4, "seed": torch.tensor([7])}
        return ops.distance_attention(q, k, v, arguments[3], slope, **options)

    torch.autograd.gradcheck(call, wanted)


def test_dropout_drops_at_its_rate_and_independently():
    mask = reference.dropout_mask(torch.tensor([3]), 0.1, 4, 500)
    assert set(mask.unique().tolist()) == {0.0, 1 / 0.9}
    kept = (mask > 0).double()
    torch.testing.assert_close(kept.mean(), torch.tensor(0.9).double(), atol=2e-3, rtol=0)
    for axis in (0, 1, 2):  # means over the others scatter as those of independent draws do
        means = kept.movedim(axis, 0).flatten(1).mean(1)
        error = (0.9 * 0.1 / (kept.numel() / len(means))) ** 0.5
        assert (means - 0.9).abs().max() < 5 * error
    centered = (kept - kept.mean()) / kept.std()
    for shift in ((0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0)):
        assert (centered * centered.roll(shift, (0, 1, 2))).mean().abs() < 5e-3
    other = reference.dropout_mask(torch.tensor([4]), 0.1, 4, 500)
    assert ((other > 0).double() * kept).mean() < 0.82


def test_dropout_follows_the_generator():
    arguments = case(20, 1, 4)
    outs = []
    for number in (0, 0, 1):
        torch.manual_seed(number)
        outs.append(ops.distance_attention(*arguments, dropout=0.3))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"seed": torch.zeros(1)}, "seed must be int64 on cpu, got torch.float32 on cpu"),
        ({"seed": torch.zeros(2).long()}, r"seed must be \(1,\) = \(1,\), got \(2,\)"),
    ],
)
def test_bad_dropout(options, text):
    with pytest.raises(ValueError, match=f"distance_attention: {text}"):
        ops.distance_attention(*case(4, 2, 3), **options)


@needs_kernels
@pytest.mark.parametrize("wanted", [{0}, {2}, {4}, {0, 1, 2}, {1, 4}])
@pytest.mark.parametrize("slope", [0.0, 2.0])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_some_inputs(wanted, slope, device):
    """Without the slope's gradient, and without distances where the slope is zero."""
    found = []
    for module in (ops, reference):
        arguments = [a.to(device) for a in case(150, 2, 8)]
        arguments[4] = torch.full_like(arguments[4], slope)
        asked = [arguments[i].requires_grad_() for i in wanted]
        found.append(torch.autograd.grad(module.distance_attention(*arguments).sin().sum(), asked))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_kernels
def test_threads_and_chunks_do_not_change_the_gradients():
    arguments = [a.float() for a in case(700, 3, 20)]
    wanted = [a.requires_grad_() for i, a in enumerate(arguments) if i != 3]
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(torch.autograd.grad(blind(arguments)(*wanted).sin().sum(), wanted))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_coords_get_no_gradient():
    arguments = [a.requires_grad_() for a in case(5, 1, 4)]
    for module in (ops, reference):
        out = module.distance_attention(*arguments)
        grads = torch.autograd.grad(out.sum(), arguments, allow_unused=True)
        assert [g is None for g in grads] == [False, False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sharp_scores_neither_overflow_nor_lose_gradients(dtype):
    arguments = [a.to(dtype) for a in case(90, 1, 16, scale=1e4)]
    wanted = [a.requires_grad_() for i, a in enumerate(arguments) if i != 3]
    out = blind(arguments)(*wanted)
    out.square().sum().backward()
    best = (arguments[0][0] @ arguments[1][0].T).argmax(1)
    torch.testing.assert_close(out[0], arguments[2][0][best])
    assert all(a.grad.isfinite().all() for a in wanted)


@pytest.mark.parametrize("slope", [-1e5, 1e5])
def test_steep_slopes_choose_the_nearest_or_the_farthest_patch(slope):
    q, k, v, coords, _ = (a.float() for a in case(150, 1, 8))
    out = ops.distance_attention(q, k, v, coords, torch.tensor([slope]))
    distance = torch.cdist(
        coords.double(), coords.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    chosen = distance.argmin(1) if slope < 0 else distance.argmax(1)
    torch.testing.assert_close(out[0], v[0, chosen])


def test_near_patches_of_a_large_slide_keep_their_distance():
    q, k, v, coords, slope = case(100, 1, 8)
    coords = 5e4 + 10 * coords  # level-0 pixels, where |a|^2 + |b|^2 - 2 a . b would be noise
    single = [a.float() for a in (q, k, v, coords, slope)]
    truth = reference.distance_attention(*(a.double() for a in single))
    torch.testing.assert_close(
        ops.distance_attention(*single).double(), truth, rtol=1e-5, atol=1e-5
    )


def test_strided_inputs_and_what_the_result_is_a_view_of():
    q, k, v, coords, slope = case(70, 2, 5)
    truth = reference.distance_attention(q, k, v, coords, slope)
    packed = torch.stack([q, k, v]).permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    columns = [t.mT.contiguous().mT for t in (q, k, v)]
    for inputs in (packed, columns):
        grown = [t.detach().clone(memory_format=torch.preserve_format) for t in inputs]
        out = ops.distance_attention(*inputs, coords.T.contiguous().T, slope)
        torch.testing.assert_close(out, truth)
        assert out.transpose(0, 1).is_contiguous()
        grads = [
            torch.autograd.grad(module.distance_attention(*given, coords, slope).cos().sum(), given)
            for module, given in ((ops, [t.requires_grad_() for t in grown]),
                                  (reference, [t.requires_grad_() for t in (q, k, v)]))
        ]  # fmt: skip
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({0: torch.zeros(3, 6)}, r"q must be \(h, N, d\) = \(any, any, any\), got \(3, 6\)"),
        ({0: torch.zeros(2, 4, 3, dtype=torch.int32)}, "q must be float16, .* got torch.int32"),
        ({0: torch.zeros(0, 4, 3)}, r"q must hold a head and a column, got \(0, 4, 3\)"),
        ({1: torch.zeros(2, 5, 3)}, r"k must be \(h, N, d\) = \(2, 4, 3\), got \(2, 5, 3\)"),
        ({2: torch.zeros(2, 4, 4)}, r"v must be \(h, N, d\) = \(2, 4, 3\), got \(2, 4, 4\)"),
        ({3: torch.zeros(4, 3)}, r"coords must be \(N, 2\) = \(4, 2\), got \(4, 3\)"),
        ({3: torch.zeros(4, 2, dtype=torch.int64)}, "coords must be float16, .* got torch.int64"),
        ({4: torch.zeros(1)}, r"slope must be \(h,\) = \(2,\), got \(1,\)"),
        ({4: torch.zeros(2, device="meta")}, "slope must be on cpu like q, got meta"),
    ],
)
def test_bad_input(change, text):
    arguments = case(4, 2, 3)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(ValueError, match=f"distance_attention: {text}"):
        ops.distance_attention(*arguments)
