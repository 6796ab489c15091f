"""Products of float32 matrices on CPUs of other makers than Intel, by oneDNN.

torch's own float32 products are MKL's, which is the faster of the two on Intel's CPUs (up to twice,
where a factor is transposed). On others MKL does not use vectors of 512 bits; oneDNN, which torch
brings but gives only to bfloat16, does, and was 1.6 to 2.1 times faster there on the shapes of
these models. Its sums run along K at one stretch: up to K = 1,024 its error is within 1.7 times
MKL's (root mean square against float64), at 3,840 it is 2.1 times.

Everything else (other devices and types, autocast, small products but those of
``transposed_matmul``) is left to torch, as are all products under ``ops.use("reference")``.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from histokit.ops import dispatch


def _cpu_is_intels() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


USES_ONEDNN = torch.backends.mkldnn.is_available() and not _cpu_is_intels()
LEAST = 1 << 20  # multiplications; below, a call of oneDNN costs more than it gains
ROWS = 512  # of a sum over rows at a time: copies stay in the cache, and short sums are exacter


def _is_ours(x: Tensor, other: Tensor) -> bool:
    """Whether a product is not left to torch, whatever its size: float32 on the CPU."""
    return (
        x.device.type == other.device.type == "cpu"
        and x.dtype == other.dtype == torch.float32
        and not dispatch.is_reference()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _served(x: Tensor, other: Tensor, size: int) -> bool:
    return USES_ONEDNN and size >= LEAST and _is_ours(x, other)


def _recorded(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of x (N, K) and weight (M, K) of any strides: x weight^T + bias (N, M)."""
    bias = None if bias is None else bias.contiguous()  # its stride would not be read
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of a (N, K) and b (K, M): (N, M); torch's own where autograd records it."""
    served = _served(a, b, a.numel() * b.shape[1]) and not _recorded(a, b)
    return _onednn(a, b.T) if served else a @ b


def transposed_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Of a (N, P) and b (N, Q): a^T b (P, Q), by blocks of rows; else as ``matmul``.

    oneDNN wants sums along rows that lie together, so both have to be copied into that order. Small
    products on the CPU are summed in float64, which costs nothing there: MKL adds up all N rows in
    one chain on some processors.
    """
    is_ours = _is_ours(a, b) and not _recorded(a, b)
    if is_ours and a.numel() * b.shape[1] < LEAST:
        return (a.T.double() @ b.double()).float()
    if not (is_ours and USES_ONEDNN):
        return a.T @ b
    if a.shape[1] > b.shape[1]:  # the first of the two is copied apart from the product
        return transposed_matmul(b, a).T.contiguous()
    out = None
    for x, y in zip(a.split(ROWS), b.split(ROWS), strict=True):
        part = _onednn(x.T, y.T)
        out = part if out is None else out.add_(part)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            matmul(grad, weight) if for_x else None,
            transposed_matmul(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` of x (..., K) and weight (M, K); differentiable once."""
    if not _served(x, weight, x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    return _Linear.apply(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Linear):
    """``nn.Linear`` through :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., M)."""
        return linear(x, self.weight, self.bias)
