"""What the tests of all ops share: devices, the error budget, calls of both implementations."""

import pytest
import torch

import histokit
from histokit import ops
from histokit.ops import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and histokit.has_cuda() else [])
needs_kernels = pytest.mark.skipif(
    not histokit.has_kernels(), reason="histokit was installed without compiled kernels"
)


def to(value, device=None, dtype=None):
    """A copy of a tensor (or what is no tensor, unchanged) elsewhere; types of integers stay."""
    if isinstance(value, ops.Csr):
        return ops.Csr(*(to(v, device, dtype) for v in value))
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device, dtype if value.is_floating_point() else None)


def results(function, arguments, options, gradient=None):
    """Outputs of a call and its gradients to every floating argument that gets one."""
    arguments = [
        a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() and gradient
        else a
        for a in arguments
    ]  # fmt: skip
    out = function(*arguments, **options)
    outputs = list(out) if isinstance(out, tuple) else [out]
    if gradient:
        wanted = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
        torch.manual_seed(1)
        total = sum(
            (o * torch.randn(o.shape, dtype=torch.float64).to(o)).nan_to_num().sum()
            for o in outputs
        )
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        outputs += [g for g in grads if g is not None]
    return [o.detach().cpu() for o in outputs]


def rounded(arguments, dtype):
    """The arguments as they are; at float64 each moved by one unit in its last place or none."""
    if dtype != torch.float64:
        return arguments
    generator = torch.Generator().manual_seed(3)

    def moved(a):
        if (
            not isinstance(a, torch.Tensor)
            or a.layout != torch.strided
            or not a.is_floating_point()
        ):
            return a
        sign = torch.randint(-1, 2, a.shape, generator=generator).to(a)
        return a.detach() * (1 + sign * torch.finfo(a.dtype).eps)

    return [moved(a) for a in arguments]


def check_budget(name, arguments, options, dtype, device="cpu", gradient=True, slack=2.0, fewest=1):
    """The op's error against float64 is at most twice eager's at this dtype, plus round-off.

    Round-off is a few units in the last place of the largest true value of any result, since
    eager's error may happen to be zero, and a gradient may be what is left of larger terms. At
    float64 eager is the truth and its own error is out of sight; in its place stands what one unit
    in the last place of each input changes. Results of fewer than ``fewest`` numbers are left out:
    of a single one eager's error may be next to nothing by luck.
    """
    arguments = [to(a, device, dtype) for a in arguments]
    options = {k: to(v, device, dtype) for k, v in options.items()}
    wide = [to(a, None, torch.float64) for a in arguments]
    wide_options = {k: to(v, None, torch.float64) for k, v in options.items()}
    eager = getattr(reference, name)
    ours = results(getattr(ops, name), arguments, options, gradient)
    theirs = results(eager, rounded(arguments, dtype), options, gradient)
    truth = results(eager, wide, wide_options, gradient)
    scale = max((t.nan_to_num().abs().max().item() for t in truth if t.numel()), default=0.0)
    for i, (a, b, c) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert a.shape == c.shape
        if a.numel() == 0:
            continue
        if a.numel() < fewest:
            continue
        assert torch.equal(a.isnan(), c.isnan()), f"{name}: NaN of result {i}"
        a, b, c = (t.double().nan_to_num() for t in (a, b, c))
        budget = slack * (b - c).abs().max() + 16 * torch.finfo(dtype).eps * scale
        assert (a - c).abs().max() <= budget, f"{name}: result {i}"
