import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from histokit.metrics import (
    StreamingPearson,
    macro_mean,
    mean_or_nan,
)


def scipy_pearson(pred, target):
    return [
        pearsonr(p, t).statistic for p, t in zip(pred.T.double(), target.T.double(), strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(
    spots=st.integers(2, 60),
    genes=st.integers(1, 5),
    chunk=st.integers(1, 60),
    offset=st.sampled_from([0.0, -3.0, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_equals_scipy_for_any_chunks(spots, genes, chunk, offset, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    pred = (torch.randn(spots, genes, generator=generator) + offset).to(dtype)
    target = (pred * 0.5 + torch.randn(spots, genes, generator=generator)).to(dtype)
    score = StreamingPearson(genes)
    for p, t in zip(pred.split(chunk), target.split(chunk), strict=True):
        score.update(p, t)
    if spots > 2:
        torch.testing.assert_close(
            score.compute()[0],
            torch.tensor(scipy_pearson(pred, target), dtype=torch.float64),
            atol=1e-7,
            rtol=0,
        )
    exact = ((pred.double() - target.double()) ** 2).mean(0)
    torch.testing.assert_close(score.mse()[0], exact, rtol=1e-7, atol=1e-12)
    variance = target.double().var(0, unbiased=False)
    torch.testing.assert_close(score.target_variance()[0], variance, rtol=1e-7, atol=1e-12)
    assert score.counts().unique().tolist() == [spots]


def test_float32_with_a_mean_of_a_million_keeps_five_digits():
    signal = torch.randn(5000, 3, dtype=torch.float64)
    pred = signal + torch.randn_like(signal)
    expected = torch.tensor(scipy_pearson(pred + 1e6, signal + 1e6))
    score = StreamingPearson(3)
    for p, t in zip((pred + 1e6).float().split(77), (signal + 1e6).float().split(77), strict=True):
        score.update(p, t)
    rounded = torch.tensor(
        scipy_pearson((pred + 1e6).float(), (signal + 1e6).float()), dtype=torch.float64
    )
    torch.testing.assert_close(score.compute()[0], rounded, atol=1e-10, rtol=0)
    torch.testing.assert_close(score.compute()[0], expected.double(), atol=1e-3, rtol=0)


def test_nan_and_masked_entries_are_skipped_not_zero():
    pred, target = torch.randn(40, 3), torch.randn(40, 3)
    mask = torch.rand(40, 3) > 0.3
    holed = target.clone()
    holed[::5, 1] = torch.nan
    score = StreamingPearson(3)
    score.update(pred[:13], holed[:13], mask[:13])
    score.update(pred[13:], holed[13:], mask[13:])
    use = mask & ~holed.isnan()
    for gene in range(3):
        rows = use[:, gene]
        expected = pearsonr(pred[rows, gene], target[rows, gene]).statistic
        assert score.compute()[0, gene] == pytest.approx(expected, abs=1e-7)
        assert score.counts()[0, gene] == rows.sum()


def test_unmeasured_gene_is_nan_and_counts_no_spot():
    score = StreamingPearson(2)
    score.update(torch.randn(9, 2), torch.randn(9, 2), torch.tensor([True, False]))
    assert score.compute()[0].isnan().tolist() == [False, True]
    assert score.mse()[0].isnan().tolist() == [False, True]
    assert score.counts().tolist() == [[9, 0]]
    assert not score.constant_target()[0, 1]


@pytest.mark.parametrize("value", [0.0, 0.1, -1e8, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_genes_are_nan_whatever_the_rounding(value, dtype):
    constant = torch.full((1001, 1), value, dtype=dtype)
    varying = torch.randn(1001, 1, dtype=dtype)
    for pred, target in ((constant, varying), (varying, constant)):
        score = StreamingPearson(1)
        for p, t in zip(pred.split(7), target.split(7), strict=True):
            score.update(p, t)
        assert score.compute().isnan().all()
    assert score.constant_target().all()
    assert not score.constant_pred().any()


def test_rounding_of_a_constant_prediction_is_no_correlation():
    jitter = torch.full((500, 1), 0.7)
    jitter[::2] += torch.finfo(torch.float32).eps / 2
    score = StreamingPearson(1)
    score.update(jitter, torch.randn(500, 1))
    assert jitter.unique().numel() == 2
    assert score.compute().isnan().all()


def test_slides_keep_apart_and_order_does_not_matter():
    pred, target = torch.randn(90, 4), torch.randn(90, 4)
    slide = torch.randint(0, 3, (90,))
    together = StreamingPearson(4, num_slides=3)
    together.update(pred, target, slide_index=slide)
    apart = StreamingPearson(4, num_slides=3)
    for s in (2, 0, 1):
        apart.update(pred[slide == s], target[slide == s], slide_index=s)
    torch.testing.assert_close(together.compute(), apart.compute())
    for s in range(3):
        expected = torch.tensor(scipy_pearson(pred[slide == s], target[slide == s]))
        torch.testing.assert_close(together.compute()[s], expected.double(), atol=1e-7, rtol=0)


def test_halves_merge_to_the_whole_through_a_state_dict():
    pred, target = torch.randn(50, 3), torch.randn(50, 3)
    whole, one, two = (StreamingPearson(3) for _ in range(3))
    whole.update(pred, target)
    one.update(pred[:20], target[:20])
    two.update(pred[20:], target[20:])
    restored = StreamingPearson(3)
    restored.load_state_dict(two.state_dict())
    one.merge(restored)
    torch.testing.assert_close(one.compute(), whole.compute())
    torch.testing.assert_close(one.mse(), whole.mse())
    empty = StreamingPearson(3)
    empty.merge(whole)
    torch.testing.assert_close(empty.compute(), whole.compute())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_double(dtype):
    pred, target = torch.randn(300, 2).to(dtype), torch.randn(300, 2).to(dtype)
    score = StreamingPearson(2)
    score.update(pred, target)
    expected = torch.tensor(scipy_pearson(pred, target), dtype=torch.float64)
    torch.testing.assert_close(score.compute()[0], expected, atol=1e-9, rtol=0)


def test_no_spot_and_one_spot_have_no_correlation():
    score = StreamingPearson(2)
    score.update(torch.zeros(0, 2), torch.zeros(0, 2))
    assert score.mse().isnan().all()
    score.update(torch.randn(1, 2), torch.randn(1, 2))
    assert score.compute().isnan().all()
    assert score.counts().tolist() == [[1, 1]]


def test_perfect_prediction_has_no_error():
    target = torch.randn(100, 2) * 1e3
    score = StreamingPearson(2)
    score.update(target, target.clone())
    torch.testing.assert_close(score.compute(), torch.ones(1, 2, dtype=torch.float64))
    assert (score.mse() == 0).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.zeros(3, 2), torch.zeros(3, 2)), r"pred must be \(N, 4\), got \(3, 2\)"),
        ((torch.zeros(3, 4), torch.zeros(2, 4)), r"target must be \(3, 4\) as pred, got \(2, 4\)"),
        ((torch.zeros(3, 4).int(), torch.zeros(3, 4)), "pred must be floating point"),
        ((torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(4)), "mask must be bool"),
        ((torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(3) > 0), "mask must be"),
        ((torch.zeros(3, 4), torch.zeros(3, 4), None, 2), r"slide_index must be in 0..1, got 2..2"),
        (
            (torch.zeros(3, 4), torch.zeros(3, 4), None, torch.tensor([0, 1])),
            r"slide_index must be \(3,\)",
        ),
    ],
)
def test_wrong_input_names_argument_expected_and_got(arguments, text):
    with pytest.raises(ValueError, match=text):
        StreamingPearson(4, num_slides=2).update(*arguments)


def test_merge_refuses_other_genes():
    with pytest.raises(ValueError, match="must hold"):
        StreamingPearson(4).merge(StreamingPearson(5))


def test_macro_weighs_cancers_equally_and_leaves_nothing_out_but_nan():
    values, cancers = np.array([0.1, 0.3, 0.8]), np.array(["A", "A", "B"])
    assert macro_mean(values, cancers) == pytest.approx(0.5)
    assert mean_or_nan([np.nan, 2.0]) == 2.0
    assert np.isnan(mean_or_nan([np.nan]))
