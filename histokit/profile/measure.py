"""Measure a call: time, peak memory and operations, and the machine's own limits."""

from __future__ import annotations

import dataclasses
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], torch.Tensor]
Form = Literal["published", "careful", "here"]  # of a model: its authors', stock torch's best, ours
_HEADROOM = 0.9  # of the free memory that a measured process may take


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes and place of a measurement."""

    patches: int
    genes: int
    device: str
    dtype: torch.dtype

    def tensor(self, *shape: int) -> torch.Tensor:
        """Normal random numbers."""
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def place(self, module: nn.Module) -> nn.Module:
        """The module on this device, in this type, in evaluation mode."""
        return module.to(self.device, self.dtype).eval()


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        call: what is timed.
        check: results of this row and of what they must equal; run at few patches.
        traffic: bytes that it has to read and write at least.
        uncounted: operations of an attention that torch's counter does not see as products.
    """

    call: Call
    check: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    traffic: int
    uncounted: int = 0


def size_of(*what) -> int:
    """Bytes of tensors and of modules' parameters."""
    return sum(
        sum(p.nbytes for p in w.parameters()) if isinstance(w, nn.Module) else w.nbytes
        for w in what
    )


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(call: Call, repeat: int, device: str) -> list[float]:
    """Seconds of each of ``repeat`` calls, ascending; device events on CUDA."""
    found = []
    for _ in range(repeat):
        synchronize(device)
        if device.startswith("cuda"):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return sorted(found)


def peak_memory(call: Call, device: str) -> float:
    """MB that a call needs beyond what was there before: allocator on CUDA, resident on CPU.

    On CPU it holds for a process that has not yet run anything large, for memory that a call frees
    may stay with the process and be used again.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str, path: str = "/proc/self/status") -> int:
    return int(re.search(rf"^{field}:\s+(\d+)", Path(path).read_text(), re.MULTILINE)[1])


def free_memory(device: str) -> float:
    """GB that a process can still get on the device."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] / 2**30
    return _status("MemAvailable", "/proc/meminfo") / 2**20


def bound_memory(device: str) -> None:
    """Let this process fail to allocate, rather than the machine run out of memory."""
    if not device.startswith("cuda"):
        most = int((_status("VmData") / 2**20 + free_memory(device) * _HEADROOM) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """The machine's limits, each the best of what torch can do: a fraction of one is at most 1.

    Returns:
        matrix: GFLOP/s of products in ``dtype``, of two sizes, by MKL and by oneDNN.
        copy, fresh, read: GB/s of a float32 copy, of one into new memory, and of a sum.
    """
    a = torch.rand(100_000_000, device=device)
    b = torch.empty_like(a)

    def best(call: Call) -> float:
        call()
        return seconds_of(call, 5, device)[0]

    def product(size: int) -> float:
        m = torch.randn(size, size, device=device).to(dtype)
        forms = [lambda: torch.mm(m, m), lambda: F.linear(m, m)]
        if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
            forms.append(lambda: torch.ops.mkldnn._linear_pointwise(m, m, None, "none", [], ""))
        return 2 * size**3 / min(best(form) for form in forms) / 1e9

    return {
        "copy": 2 * a.nbytes / best(lambda: b.copy_(a)) / 1e9,
        "fresh": 2 * a.nbytes / best(a.clone) / 1e9,
        "read": a.nbytes / best(a.sum) / 1e9,
        "matrix": max(map(product, (4096, 8192) if device.startswith("cuda") else (1024, 2048))),
    }


def growth(seconds: dict[int, float], quadratic: float) -> dict[int, float]:
    """Measured seconds over those of the model ``c1 N + c2 N^2``, for each number of patches N.

    Args:
        seconds: the time of a call with N patches.
        quadratic: c2, known from the rate of attention; c1 is the median of what that leaves.
    """
    linear = statistics.median((t - quadratic * n**2) / n for n, t in seconds.items())
    return {n: t / (linear * n + quadratic * n**2) for n, t in seconds.items()}


def machine(device: str) -> str:
    """The device in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = model[1] if model else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


# ---- operations --------------------------------------------------------------------------------
# What torch's counter does not know, by the shapes of the arguments; a product and a sum are two.


def _sdpa(query, key, *_, **__):
    batch, heads, rows, dim = query
    return 4 * batch * heads * rows * key[2] * dim


def _sdpa_backward(grad, query, key, *_, **__):
    return 5 * _sdpa(query, key) // 2  # the scores again, and four gradients' products


def _encoder_layer(x, *rest, **_):
    batch, rows, width = x
    inner = rest[13][0]  # ffn_weight_1
    return 4 * batch * rows * width * (2 * width + rows + inner)


def _distance(query, *_, **__):
    rows, heads, dim = query
    return 4 * heads * rows**2 * dim


def _distance_backward(grad, query, *_, **__):
    return 5 * _distance(query) // 2  # what the second pass on CUDA forms again is not counted


def _cancer(x, score_weight, _, value, *__, **___):
    return 2 * x[0] * value[1] * value[2] * (2 if score_weight else 1)


def _prototypes(query, key, *_, **__):
    return 4 * query[0] * query[1] * key[0]


def _prototypes_backward(grad, query, key, *_, **__):
    return 5 * _prototypes(query, key) // 2


def _csr(row_offsets, col_index, values, dense, *_, **__):
    return 2 * values[0] * dense[1]


def _quadratic(weight, rows, **_):
    genes, dim = weight
    return 2 * min(rows[0] * genes * dim, rows[0] * dim**2 + genes * dim**2 + dim**3 // 6)


def _linear_mse(hidden, weight, bias, row_offsets, col, values, measured, with_grad, **_):
    (rows, dim), genes = hidden, weight[0]
    if min(rows, genes) <= dim:
        return 2 * rows * genes * dim * (3 if with_grad else 1)
    sparse = values[0] if row_offsets else rows * genes
    return 2 * dim * (rows * dim + sparse + genes * dim) * (2 if with_grad else 1)


def _product(x, weight, *_, **__):
    return 2 * x[0] * x[1] * weight[0]


def _unknown_to_torch() -> dict:
    aten, own = torch.ops.aten, torch.ops.histokit
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
        aten._transformer_encoder_layer_fwd: _encoder_layer,
        torch.ops.mkldnn._linear_pointwise: _product,
        own.distance_attention: _distance,
        own.distance_attention_backward: _distance_backward,
        own.cancer_cross_attention: _cancer,
        own.prototype_attention: _prototypes,
        own.prototype_attention_backward: _prototypes_backward,
        own.csr_matmul: _csr,
        own.csr_transpose_matmul: _csr,
        own.quadratic_form: _quadratic,
        own.linear_mse: _linear_mse,
    }


def operations(call: Call) -> int:
    """Floating-point operations of the matrix products and attentions of one call.

    torch's counter, and the terms that it misses: attention on the CPU, the fused encoder layer of
    ``nn.TransformerEncoder`` in evaluation, and this project's ops.
    """
    with FlopCounterMode(display=False, custom_mapping=_unknown_to_torch()) as counter:
        call()
    return counter.get_total_flops()
