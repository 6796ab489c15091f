"""What is asked of an op beyond one reverse derivative is right or an error, never wrong."""

import pytest
import torch
from op_checks import needs_kernels
from test_ops import CALLS, differentiable

from histokit import ops, reference

DIFFERENTIABLE = [name for name in CALLS if name != "pearson_update"]
pytestmark = needs_kernels


def first_of(out):
    return out[0] if isinstance(out, tuple) else out


def twice(name, backend):
    function, inputs = CALLS[name]
    arguments = differentiable(inputs(7, torch.float64))
    with ops.use(backend):
        out = first_of(function(*arguments))
        (grad,) = torch.autograd.grad(out.square().sum(), arguments[0], create_graph=True)
        return torch.autograd.grad(grad.square().sum() + out.sum(), arguments[0])[0]


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name != "linear_pearson"])
def test_second_derivatives_are_refused(name):
    expected = rf"{name}: .* no second derivatives; take ops\.use\('reference'\)"
    with pytest.raises(RuntimeError, match=expected):
        twice(name, "auto")
    assert twice(name, "reference").isfinite().all()


def test_second_derivatives_of_correlations_are_right():
    torch.testing.assert_close(*(twice("linear_pearson", b) for b in ("auto", "reference")))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_graph_that_is_kept_but_not_differentiated_is_no_error(name):
    function, inputs = CALLS[name]
    grads = []
    for create_graph in (False, True):
        arguments = differentiable(inputs(7))
        loss = first_of(function(*arguments)).square().sum()
        grads.append(torch.autograd.grad(loss, arguments[0], create_graph=create_graph)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name):
    function, inputs = CALLS[name]
    arguments = inputs(7)
    with torch.autograd.forward_ad.dual_level():
        function(*arguments)  # nobody asks for a derivative here
        dual = torch.autograd.forward_ad.make_dual(arguments[0], torch.ones_like(arguments[0]))
        with pytest.raises(ValueError, match=f"{name}: .* carries a forward-mode tangent"):
            function(dual, *arguments[1:])
    with pytest.raises((ValueError, RuntimeError)):
        torch.func.jvp(
            lambda x: first_of(function(x, *arguments[1:])), (arguments[0],),
            (torch.ones_like(arguments[0]),),
        )  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap", "hessian"])
def test_function_transforms(name, transform):
    function, inputs = CALLS[name]
    arguments = inputs(7, torch.float64)

    def total(x, backend="auto"):
        with ops.use(backend):
            return first_of(function(x, *arguments[1:])).square().sum()

    given = arguments[0]
    if transform == "vmap":
        given = torch.stack([given, 2 * given])
    found = []
    for backend in ("auto", "reference"):
        try:
            found.append(getattr(torch.func, transform)(lambda x, b=backend: total(x, b))(given))
        except (ValueError, RuntimeError, NotImplementedError):
            return  # an error is clear; what is not one must be right
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_and_fake_tensors_have_the_shapes(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    function, inputs = CALLS[name]
    arguments = inputs(7)
    expected = first_of(function(*arguments))
    meta = first_of(function(*(a.to("meta") for a in arguments)))
    assert meta.is_meta
    assert (meta.shape, meta.dtype) == (expected.shape, expected.dtype)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) for a in arguments]
        out = first_of(function(*differentiable(fake)))
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
        out.sum().backward()
        assert fake[0].grad.shape == arguments[0].shape


def test_backends_belong_to_their_thread():
    import threading

    from histokit.ops import dispatch

    found = []
    with ops.use("reference"):
        thread = threading.Thread(target=lambda: found.append(dispatch.is_reference()))
        thread.start()
        thread.join()
        assert dispatch.is_reference()
    assert found == [False]
    assert not dispatch.is_reference()


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_losses_and_correlations_are_float32(low, backend):
    hidden, weight, target = torch.randn(9, 3), torch.randn(5, 3), torch.rand(9, 5) * 600
    with ops.use(backend):
        loss = ops.linear_mse(hidden.to(low), weight, None, target)
        r, mse = ops.linear_pearson(hidden.to(low), weight, None, target)
    assert {loss.dtype, r.dtype, mse.dtype} == {torch.float32}
    assert loss.isfinite()  # above float16's largest number
    expected = reference.linear_mse(hidden.to(low).float(), weight, None, target)
    torch.testing.assert_close(loss, expected)
    doubles = ops.linear_pearson(hidden.double(), weight.double(), None, target)
    assert {t.dtype for t in doubles} == {torch.float64}


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_training_with_a_gradient_scaler(low):
    """GradScaler begins at 65,536, which a loss of float16 does not survive."""
    torch.manual_seed(0)
    x, truth = torch.randn(200, 6), torch.randn(10, 6)
    target = (x @ truth.T).relu()
    layer, head = torch.nn.Linear(6, 16), torch.nn.Linear(16, 10)
    optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=low):
            hidden = layer(x).relu()
            assert hidden.dtype == low
            loss = ops.linear_mse(hidden, head.weight, head.bias, target.to_sparse_csr())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert scaler.get_scale() >= 65536 / 4  # it did not have to retreat step after step
