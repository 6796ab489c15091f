import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DEVICES

from histokit import ops
from histokit.ops import reference

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def moments(pred, target, mask=None, index=None, slides=1, function=ops.pearson_update, sizes=None):
    state = torch.zeros(6, slides, pred.shape[1], dtype=torch.float64, device=pred.device)
    sizes = sizes or [len(pred)]
    by_gene = mask is not None and mask.ndim == 1
    masks = [mask] * len(sizes) if mask is None or by_gene else mask.split(sizes)
    indices = [None] * len(sizes) if index is None else index.split(sizes)
    for p, t, m, i in zip(pred.split(sizes), target.split(sizes), masks, indices, strict=True):
        function(state, p, t, m, i)
    return state.cpu()


def correlation(state):
    return state[5] / (state[3] * state[4]).sqrt()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([0, 1, 3, 8, 9, 40]),
    genes=st.sampled_from([1, 7, 17, 530]),
    slides=st.integers(1, 3),
    dtype=st.sampled_from(FLOATS),
    mask=st.sampled_from([None, "gene", "entry"]),
    holes=st.booleans(),
    offset=st.sampled_from([0.0, 100.0]),
    cut=st.integers(0, 40),
    device=st.sampled_from(DEVICES),
)
def test_equals_reference(rows, genes, slides, dtype, mask, holes, offset, cut, device):
    torch.manual_seed(0)
    pred = torch.randn(rows, genes, device=device) + offset
    target = pred + torch.randn(rows, genes, device=device)
    if holes:
        pred[torch.rand_like(pred) < 0.2] = torch.nan
        target[:, 0] = torch.nan
    pred, target = pred.to(dtype), target.to(dtype)
    shape = {None: None, "gene": (genes,), "entry": (rows, genes)}[mask]
    mask = None if shape is None else torch.rand(shape, device=device) < 0.7
    index = torch.randint(slides, (rows,), device=device) if slides > 1 else None
    sizes = [min(cut, rows), rows - min(cut, rows)]
    ours = moments(pred, target, mask, index, slides, sizes=sizes)
    truth = moments(pred, target, mask, index, slides, reference.pearson_update)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
def test_large_means_keep_float64_accuracy(device):
    pred = torch.randn(2000, 5) + 1e6
    target = 0.3 * (pred - 1e6) + torch.randn(2000, 5) - 1e6
    expected = [np.corrcoef(pred[:, g].double(), target[:, g].double())[0, 1] for g in range(5)]
    for sizes in ([2000], [1, 999, 1000]):
        state = moments(pred.to(device), target.to(device), sizes=sizes)
        np.testing.assert_allclose(correlation(state)[0], expected, atol=1e-5)


def test_first_rows_missing_or_far_away():
    pred, target = torch.randn(300, 3) + 1e6, torch.randn(300, 3)
    pred[:40, 0] = torch.nan
    target[:17, 1] = torch.nan
    ours = moments(pred, target)
    expected = np.corrcoef(pred[40:, 0].double(), target[40:, 0].double())[0, 1]
    assert abs(correlation(ours)[0, 0] - expected) < 1e-8
    torch.testing.assert_close(ours, moments(pred, target, function=reference.pearson_update))


def test_masked_genes_and_infinity():
    pred, target = torch.randn(20, 3), torch.randn(20, 3)
    pred[4, 1] = torch.inf
    state = moments(pred, target, torch.tensor([True, True, False]))
    assert state[0].tolist() == [[20, 20, 0]]
    assert torch.equal(state[:, 0, 2], torch.zeros(6, dtype=torch.float64))
    assert correlation(state)[0, 0].isfinite()
    assert correlation(state)[0, 1].isnan()


def test_half_values_are_read_exactly():
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = every.view(dtype)
        values = values[values.isfinite()]
        state = moments(values[None], values[None])
        torch.testing.assert_close(state[1, 0], values.double(), rtol=0, atol=0)


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_mixed_types(kinds):
    pred, target = torch.randn(30, 4).to(kinds[0]), torch.randn(30, 4).to(kinds[1])
    torch.testing.assert_close(
        moments(pred, target), moments(pred, target, function=reference.pearson_update)
    )


def test_strided_views():
    pred, target = torch.randn(40, 50), torch.randn(40, 50)
    expected = moments(pred[::2, 3:20].contiguous(), target[::2, 3:20].contiguous())
    torch.testing.assert_close(moments(pred[::2, 3:20], target[::2, 3:20]), expected)
    across = moments(pred.T.contiguous().T[::2, 3:20], target[::2, 3:20])
    torch.testing.assert_close(across, expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({0: torch.zeros(5, 2, 3)}, ValueError, r"state must be \(6, S, G\) = \(6, any, any\)"),
        ({0: torch.zeros(6, 2, 3)}, ValueError, "state must be float64, got torch.float32"),
        ({1: torch.zeros(4, 2)}, ValueError, r"pred must be \(N, G\) = \(any, 3\), got \(4, 2\)"),
        ({2: torch.zeros(5, 3)}, ValueError, r"target must be \(N, G\) = \(4, 3\), got \(5, 3\)"),
        ({2: torch.zeros(4, 3, dtype=torch.int32)}, ValueError, "target must be float16"),
        ({3: torch.ones(4, 3)}, ValueError, "mask must be bool on cpu, got torch.float32"),
        ({3: torch.ones(4, dtype=torch.bool)}, ValueError, r"mask must be .* = \(3,\), got \(4,\)"),
        ({4: None}, ValueError, "slide_index must be given with 2 slides, got None"),
        ({4: torch.tensor([0, 1, 2, 0])}, IndexError, r"slide_index must be in \[0, 2\), got 2"),
    ],
)
def test_bad_input(change, error, text):
    arguments = [
        torch.zeros(6, 2, 3, dtype=torch.float64), torch.randn(4, 3), torch.randn(4, 3), None,
        torch.tensor([0, 1, 0, 1]),
    ]  # fmt: skip
    for key, value in change.items():
        arguments[key] = value
    with pytest.raises(error, match=f"pearson_update: {text}"):
        ops.pearson_update(*arguments)
