"""The precision of a network's matrix products: one option of the scripts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "tf32", "bfloat16")
LOWER = ("bfloat16", "float16")  # those that autocast gives to products


def lower_type(precision: str) -> torch.dtype | None:
    """The type that autocast gives to products; None where they stay as they are."""
    import torch

    return getattr(torch, precision) if precision in LOWER else None


@contextlib.contextmanager
def tensor_float(precision: str, device: str) -> Iterator[None]:
    """For its duration float32 products and convolutions on CUDA may be of TF32, if that is asked.

    TF32 keeps 10 of the 23 bits of a factor and sums in float32; it also serves the products inside
    the ops. A CPU has no such type, which is said.

    Args:
        precision: of ``PRECISIONS``.
        device: where the network runs.
    """
    import torch

    if precision != "tf32":
        yield
        return
    if not device.startswith("cuda"):
        print(f"--precision tf32 changes nothing on {device}: float32", file=sys.stderr)
        yield
        return
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextlib.contextmanager
def products(precision: str, device: str) -> Iterator[None]:
    """A block whose matrix products are of this precision; results may be of the lower type."""
    import torch

    lower = lower_type(precision)
    if lower is None:
        with tensor_float(precision, device):
            yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # on the CPU it takes no mixed types
        with torch.autocast(torch.device(device).type, lower):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def from_autocast(options: dict) -> dict:
    """Options of a run, of which older ones call the precision ``autocast``."""
    if "autocast" not in options:
        return options
    options = dict(options)
    old = options.pop("autocast")
    return {"precision": "float32" if old == "none" else old} | options
