import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DEVICES, needs_kernels

from histokit import ops
from histokit.ops import reference


def case(rows, genes, dim, with_bias=True, density=0.3, constant=False):
    torch.manual_seed(0)
    hidden = torch.randn(rows, dim, dtype=torch.float64) + 0.5
    weight = torch.randn(genes, dim, dtype=torch.float64) / dim**0.5
    bias = torch.randn(genes, dtype=torch.float64) if with_bias else None
    target = torch.rand(rows, genes, dtype=torch.float64) * 4
    target = target.where(torch.rand(rows, genes) < density, 0)
    if constant and genes > 2:
        target[:, 0] = 0
        target[:, 1] = 2.5
        weight[2] = 0
    return hidden, weight, bias, target


def in_form(target, form):
    if form == "dense":
        return target
    target = target.to_sparse_csr()
    if form == "csr":
        return target
    kind = torch.int32 if form == "int32" else torch.int64
    crow, col = target.crow_indices().to(kind), target.col_indices().to(kind)
    return ops.Csr(crow, col, target.values(), target.shape[1])


SHAPES = {
    "rows": st.sampled_from([2, 3, 17, 70]),
    "genes": st.sampled_from([1, 5, 300]),
    "dim": st.sampled_from([1, 4, 17, 130]),
    "with_bias": st.booleans(),
    "density": st.sampled_from([0.0, 0.1, 1.0]),
    "form": st.sampled_from(["dense", "csr", "int32", "int64"]),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
    "device": st.sampled_from(DEVICES),
}


def check_against_reference(name, hidden, weight, bias, target, form, dtype, device, *rest):
    def call(module, kind, value):
        arguments = [
            None if a is None else a.detach().to(device, kind).requires_grad_()
            for a in (hidden, weight, bias)
        ]
        out = getattr(module, name)(*arguments, value.to(device, kind), *rest)
        outputs = list(out) if isinstance(out, tuple) else [out]
        total = sum(o.nan_to_num().sum() for o in outputs)
        wanted = [a for a in arguments if a is not None]
        return outputs, torch.autograd.grad(total, wanted)

    def ours_target():
        value = in_form(target.to(dtype), form)
        if isinstance(value, ops.Csr):
            return _Movable(value)
        return value

    ours, our_grads = call(ops, dtype, ours_target())
    theirs, their_grads = call(reference, dtype, target)
    truth, true_grads = call(reference, torch.float64, target.to(dtype))
    pairs = list(zip(ours, theirs, truth, strict=True))
    pairs += list(zip(our_grads, their_grads, true_grads, strict=True))
    scale = 1 + float(target.square().mean())
    for i, (a, b, c) in enumerate(pairs):
        assert torch.equal(a.isnan(), c.isnan()), f"NaN of result {i}"
        a, b, c = (t.double().nan_to_num() for t in (a, b, c))
        error = (b - c).abs().max()
        allowed = 2 * error + 32 * torch.finfo(dtype).eps * (c.abs().max() + scale)
        assert (a - c).abs().max() <= allowed, f"result {i}"


class _Movable:
    """A Csr with the one method of a tensor that the helper above calls."""

    def __init__(self, csr):
        self.csr = csr

    def to(self, device, kind):
        csr = self.csr
        return ops.Csr(csr.row_offsets.to(device), csr.col_index.to(device),
                       csr.values.to(device, kind), csr.num_cols)  # fmt: skip


@settings(max_examples=50, deadline=None, derandomize=True)
@given(**{**SHAPES, "rows": st.sampled_from([9, 17, 70])})
def test_linear_pearson(rows, genes, dim, with_bias, density, form, dtype, device):
    data = case(rows, genes, dim, with_bias, density, constant=True)
    check_against_reference("linear_pearson", *data, form, dtype, device)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(**SHAPES, measured=st.booleans())
def test_linear_mse(rows, genes, dim, with_bias, density, form, dtype, device, measured):
    measured = torch.arange(genes, device=device) % 3 != 1 if measured else None
    data = case(rows, genes, dim, with_bias, density)
    check_against_reference("linear_mse", *data, form, dtype, device, measured)


@needs_kernels
@pytest.mark.parametrize("name", ["linear_pearson", "linear_mse"])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_in_several_blocks(name, form, monkeypatch):
    monkeypatch.setattr("histokit.ops.targets.ROWS", 7)
    monkeypatch.setattr("histokit.ops.targets.GENES", 11)
    data = case(20, 40, 5)
    check_against_reference(name, *data, form, torch.float32, "cpu")


@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_linear_pearson_equals_numpy(rows, form):
    hidden, weight, bias, target = case(rows, 4, 6, density=0.9)
    r, mse = ops.linear_pearson(hidden, weight, bias, in_form(target, form))
    pred = hidden @ weight.T + bias
    if rows == 1:
        assert r.isnan().all()
    else:
        expected = [np.corrcoef(pred[:, g], target[:, g])[0, 1] for g in range(4)]
        np.testing.assert_allclose(r, expected, atol=1e-11)
    torch.testing.assert_close(mse, (pred - target).square().mean(0))


@pytest.mark.parametrize("device", DEVICES)
def test_large_means_keep_accuracy(device):
    hidden, weight, bias, target = case(2000, 3, 4, density=1.0)
    target = (hidden @ weight.T + torch.randn(2000, 3)).float() + 1e6
    hidden = hidden.float() + 1e3
    pred = hidden.double() @ weight.float().double().T
    expected = [np.corrcoef(pred[:, g], target[:, g].double())[0, 1] for g in range(3)]
    arguments = [a.float().to(device) for a in (hidden, weight, bias, target)]
    r, _ = ops.linear_pearson(*arguments)
    np.testing.assert_allclose(r.cpu(), expected, atol=1e-5)


def test_constant_series_are_nan():
    hidden, weight, bias, target = case(20, 4, 3, constant=True)
    for form in ("dense", "csr"):
        r, _ = ops.linear_pearson(hidden, weight, bias, in_form(target, form))
        assert r.isnan().tolist() == [True, True, True, False]
        same = torch.full_like(hidden, 0.7)
        assert ops.linear_pearson(same, weight, bias, in_form(target, form))[0].isnan().all()


def test_linear_mse_differentiated_twice():
    """The op hands out the gradients that it keeps, but only in the last backward."""
    hidden, weight = (torch.randn(n, 3, requires_grad=True) for n in (5, 7))
    loss = ops.linear_mse(hidden, weight, None, torch.randn(5, 7))
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    expected = first.clone()
    first.zero_()
    for _ in range(2):
        loss.backward(retain_graph=True)
    (3 * loss).backward()
    torch.testing.assert_close(weight.grad, 5 * expected)


def test_linear_mse_of_nothing_is_nan():
    hidden, weight, bias, target = case(5, 3, 2)
    none = torch.zeros(3, dtype=torch.bool)
    for form in ("dense", "csr"):
        assert ops.linear_mse(hidden, weight, bias, in_form(target, form), none).isnan()
        empty = in_form(target[:0], form)
        assert ops.linear_mse(hidden[:0].requires_grad_(), weight, bias, empty).isnan()


@needs_kernels
@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize("name", ["linear_pearson", "linear_mse"])
def test_gradcheck(name, form):
    hidden, weight, bias, target = case(6, 5, 3, density=0.7)
    target = in_form(target, form)
    torch.autograd.gradcheck(
        lambda *a: getattr(ops, name)(*a, target),
        [a.requires_grad_() for a in (hidden, weight, bias)],
    )


@needs_kernels
def test_gradcheck_of_unmeasured_genes_is_zero():
    hidden, weight, _, target = case(6, 5, 3)
    measured = torch.tensor([True, False, True, True, False])
    arguments = [a.requires_grad_() for a in (hidden, weight)]
    torch.autograd.gradcheck(lambda h, w: ops.linear_mse(h, w, None, target, measured), arguments)
    ops.linear_mse(*arguments, None, target, measured).backward()
    assert torch.equal(weight.grad[~measured], torch.zeros(2, 3, dtype=torch.float64))


@needs_kernels
def test_gradcheck_of_the_sparse_products():
    target = in_form(case(6, 5, 3)[3], "int64")
    dense = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda d: torch.ops.histokit.csr_matmul(*target[:3], d, 0), dense)
    dense = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    op = torch.ops.histokit.csr_transpose_matmul
    torch.autograd.gradcheck(lambda d: op(*target[:3], d, 5)[0], dense)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 700])
def test_sparse_products_over_several_blocks(rows):
    torch.manual_seed(0)
    target = torch.randn(rows, 2500) * (torch.rand(rows, 2500) < 0.05)
    target[:, 7], target[0] = 3, 1
    csr = in_form(target, "int64")
    weight, hidden = torch.randn(2500, 150), torch.randn(rows, 150)
    torch.testing.assert_close(torch.ops.histokit.csr_matmul(*csr[:3], weight, 0), target @ weight,
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    out, moments = torch.ops.histokit.csr_transpose_matmul(*csr[:3], hidden, 2500)
    torch.testing.assert_close(out, target.T @ hidden, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moments[0], target.double().mean(0))
    torch.testing.assert_close(moments[1], target.double().var(0, correction=0) * rows)


@needs_kernels
@pytest.mark.parametrize(
    ("crow", "col"),
    [
        ([0, 2, 2], [2000, 0]),
        ([0, 2, 2], [7, 7]),
        ([0, 1, 2], [0, 3000]),
        ([0, 1, 2], [-1, 0]),
        ([0, 2, 1], [0, 1]),
        ([1, 1, 2], [0, 1]),
        ([0, 1, 9], [0, 1]),
    ],
)
def test_broken_sparse_matrix(crow, col):
    """What Python does not check, as in compiled calls, the CPU kernels do not read."""
    csr = torch.tensor(crow), torch.tensor(col), torch.ones(2)
    text = "row_offsets must ascend from 0 to the number of values, and col_index strictly"
    with pytest.raises(RuntimeError, match=text):
        torch.ops.histokit.csr_transpose_matmul(*csr, torch.randn(2, 4), 3000)
    with pytest.raises(RuntimeError, match=text):
        torch.ops.histokit.csr_matmul(*csr, torch.randn(3000, 4), 0)


@pytest.mark.parametrize("name", ["linear_pearson", "linear_mse"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({0: torch.zeros(5)}, r"hidden must be \(N, d\) = \(any, any\), got \(5,\)"),
        ({0: torch.zeros(6, 4, dtype=torch.int64)}, "hidden must be float16"),
        ({1: torch.zeros(5, 2)}, r"weight must be \(G, d\) = \(any, 3\), got \(5, 2\)"),
        ({2: torch.zeros(4)}, r"bias must be \(G,\) = \(5,\), got \(4,\)"),
        ({2: torch.zeros(5, device="meta")}, "bias must be on cpu like hidden, got meta"),
        ({3: torch.zeros(5, 5)}, r"target must be \(N, G\) = \(6, 5\), got \(5, 5\)"),
        ({3: torch.zeros(6, 5).to_sparse()}, "target must be dense or sparse CSR, got"),
        (
            {3: ops.Csr(torch.zeros(7, dtype=torch.int32), torch.zeros(0, dtype=torch.int64),
                        torch.zeros(0), 5)},
            "target's indices must have one type, got torch.int32 and torch.int64",
        ),
    ],
)  # fmt: skip
def test_bad_input(name, change, text):
    arguments = list(case(6, 5, 3))
    for key, value in change.items():
        arguments[key] = value
    with pytest.raises(ValueError, match=f"{name}: {text}"):
        getattr(ops, name)(*arguments)


@pytest.mark.parametrize(
    ("measured", "text"),
    [(torch.ones(5), "bool on cpu, got torch.float32"), (torch.ones(4, dtype=torch.bool), "(G,)")],
)
def test_bad_measured(measured, text):
    with pytest.raises(ValueError, match="linear_mse: measured must be") as error:
        ops.linear_mse(*case(6, 5, 3), measured)
    assert text in str(error.value)
