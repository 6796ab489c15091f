"""Sparse targets as strangers bring them: what is wrong is refused, what is not measured is not."""

import numpy as np
import pytest
import scipy.sparse
import torch
from op_checks import DEVICES, needs_kernels

from histokit import ops
from histokit.ops import reference

NAMES = ["linear_pearson", "linear_mse"]
FAULTS = [
    ([0, 3, 4, 4, 6], [1, 1, 3, 0, 2, 4], "row 0 .* column 1 twice; .*sum_duplicates.*coalesce"),
    ([0, 3, 4, 4, 6], [0, 1, 3, 0, 2, 2], "row 3 .* column 2 twice"),
    ([0, 3, 4, 4, 6], [0, 3, 1, 0, 2, 4], r"row 0 .* do not ascend; .*sort_indices\(\)"),
    ([0, 3, 4, 4, 6], [0, 1, 3, 6, 2, 4], r"row 1 .* column 6, which is not in \[0, 6\)"),
    ([0, 3, 4, 4, 6], [-1, 1, 3, 0, 2, 4], r"row 0 .* column -1, which is not in"),
    ([0, 3, 4, 4, 5], [0, 1, 3, 0, 2, 4], "row 3 .* ascend from 0 to 6"),
    ([1, 3, 4, 4, 6], [0, 1, 3, 0, 2, 4], "row 0 .* ascend from 0 to 6"),
    ([0, 3, 2, 4, 6], [0, 1, 3, 0, 2, 4], "row 1 .* ascend from 0 to 6"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dim", [2, 9])  # residuals are formed with 9, sums of squares with 2
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("offsets", "columns", "text"), FAULTS)
def test_what_is_wrong_is_refused(name, dim, backend, device, offsets, columns, text):
    csr = ops.Csr(torch.tensor(offsets), torch.tensor(columns), torch.arange(6.0), 6)
    csr = ops.Csr(*(t.to(device) for t in csr[:3]), 6)
    hidden, weight = torch.randn(4, dim, device=device), torch.randn(6, dim, device=device)
    for _ in range(2):  # what was found wrong is not taken for checked
        with pytest.raises(ValueError, match=f"{name}: {text}"), ops.use(backend):
            getattr(ops, name)(hidden, weight, None, csr)


@needs_kernels
@pytest.mark.parametrize("dim", [2, 9])
@pytest.mark.parametrize(("offsets", "columns", "text"), FAULTS)
def test_what_compiled_calls_run_refuses_it_too(dim, offsets, columns, text):
    csr = torch.tensor(offsets), torch.tensor(columns), torch.arange(6.0)
    hidden, weight = torch.randn(4, dim), torch.randn(6, dim)
    said = text.split(" .*")[0] + "|row_offsets must"
    with pytest.raises((ValueError, RuntimeError), match=said):
        torch.ops.histokit.linear_mse(hidden, weight, None, *csr, None, False)
    with pytest.raises((ValueError, RuntimeError), match=said):
        torch.ops.histokit.csr_transpose_matmul(*csr, hidden, 6)


@needs_kernels
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize(("offsets", "columns", "text"), [*FAULTS, ([0, 2, 6], [0, 3] * 3, "")])
def test_the_check_is_the_references(device, kind, offsets, columns, text):
    given = torch.tensor(offsets).to(device, kind), torch.tensor(columns).to(device, kind)
    found = torch.ops.histokit.csr_check(*given, torch.ones(6, device=device), 6)
    expected = reference.csr_check(*given, torch.ones(6, device=device), 6)
    if (expected == 4).any():  # then the reference does not look at columns
        found, expected = found == 4, expected == 4
    assert torch.equal(found, expected)


@needs_kernels
@pytest.mark.parametrize("device", DEVICES)
def test_long_rows_are_checked_to_their_end(device):
    column = torch.arange(1000, device=device)
    offsets = torch.tensor([0, 1000], device=device)
    values = torch.ones(1000, device=device)
    check = torch.ops.histokit.csr_check
    assert not check(offsets, column, values, 1000).any()
    for at in (1, 31, 32, 33, 64, 998, 999):
        for value, fault in ((column[at] - 1, 1), (1000, 3), (-1, 3)):
            wrong = column.clone()
            wrong[at] = value
            assert check(offsets, wrong, values, 1000).tolist() == [fault]


def test_a_target_is_checked_once_and_again_when_it_changes(monkeypatch):
    csr = ops.Csr(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2), 3)
    hidden, weight = torch.randn(2, 4), torch.randn(3, 4)
    calls, find = [], reference.csr_check
    monkeypatch.setattr(reference, "csr_check", lambda *a: (calls.append(1), find(*a))[1])
    with ops.use("reference"):
        for _ in range(3):
            ops.linear_mse(hidden, weight, None, csr)
        assert len(calls) == 1
        csr.col_index[1] = 3
        with pytest.raises(ValueError, match="column 3, which is not in"):
            ops.linear_mse(hidden, weight, None, csr)
        with pytest.raises(ValueError, match="target must be"):
            ops.linear_mse(hidden, weight, None, csr._replace(num_cols=2))


@pytest.mark.parametrize("name", NAMES)
def test_scipy_and_numpy_are_told_what_to_do(name):
    hidden, weight = torch.randn(3, 2), torch.randn(4, 2)
    matrix = scipy.sparse.random(3, 4, 0.5, format="csr")
    with pytest.raises(ValueError, match=rf"{name}: target .* SciPy matrix; .*sum_duplicates\(\)"):
        getattr(ops, name)(hidden, weight, None, matrix)
    with pytest.raises(ValueError, match=f"{name}: target must be a torch.Tensor, got numpy"):
        getattr(ops, name)(hidden, weight, None, np.ones((3, 4)))
    with pytest.raises(ValueError, match=f"{name}: hidden must be a torch.Tensor, got numpy"):
        getattr(ops, name)(np.ones((3, 2)), weight, None, torch.ones(3, 4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dim", [3, 40])
@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_measured_does_not_matter(bad, form, dim, backend, device):
    torch.manual_seed(0)
    hidden = torch.randn(30, dim, device=device, requires_grad=True)
    weight = torch.randn(20, dim, device=device, requires_grad=True)
    bias = torch.randn(20, device=device, requires_grad=True)
    measured = torch.arange(20, device=device) % 4 != 1
    target = torch.rand(30, 20, device=device)
    spoilt = target.where(measured, bad)
    found = []
    for value in (target, spoilt):
        value = value.to_sparse_csr() if form == "csr" else value
        with ops.use(backend):
            loss = ops.linear_mse(hidden, weight, bias, value, measured)
        found.append([loss, *torch.autograd.grad(loss, (hidden, weight, bias))])
    for clean, other in zip(*found, strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, other)
