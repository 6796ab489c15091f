"""Which implementation serves an op, and the checks that all ops share."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

# A library that is there but does not load is an error, not a fallback: the import says why.
HAS_KERNELS = importlib.util.find_spec("histokit._C") is not None
if HAS_KERNELS:
    from histokit import _C  # noqa: F401  registers torch.ops.histokit
HAS_CUDA = HAS_KERNELS and torch._C._dispatch_has_kernel_for_dispatch_key(
    "histokit::csr_matmul", "CUDA"
)
TENSOR_CORES = os.environ.get("HISTOKIT_TENSOR_CORES", "0")  # read once; 1 turns them on
if TENSOR_CORES not in ("0", "1"):
    raise ValueError(f"HISTOKIT_TENSOR_CORES must be 0 or 1, got {TENSOR_CORES!r}")
BACKENDS = ("auto", "kernels", "reference")
_backend: ContextVar[str] = ContextVar("backend", default="auto")
_traced = "auto"  # the last choice of any thread: torch.compile cannot read the other
_told = set()


class use:  # noqa: N801  reads as a verb: ops.use("reference")
    """Choose the implementation of all ops: at once, and as a context until its end.

    The choice holds for the running thread or task, others have their own; what torch.compile
    traces takes the last one.

    ``auto`` takes the kernels where they serve the device and the reference elsewhere, ``kernels``
    raises RuntimeError instead of falling back, ``reference`` is plain PyTorch.
    """

    def __init__(self, backend: str):
        if backend not in BACKENDS:
            raise ValueError(f"use: backend must be one of {BACKENDS}, got {backend!r}")
        self._before = _backend.get()
        self._choose(backend)

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_) -> None:
        self._choose(self._before)

    @staticmethod
    def _choose(backend: str) -> None:
        global _traced
        _backend.set(backend)
        _traced = backend


def _chosen() -> str:
    return _traced if torch.compiler.is_compiling() else _backend.get()


def is_reference() -> bool:
    """Whether plain PyTorch was asked for."""
    return _chosen() == "reference"


def kernels_serve(op: str, tensor: Tensor) -> bool:
    """Whether the kernels take this call; says once when the reference has to."""
    if is_reference():
        return False
    if tensor.device.type == "cpu" or tensor.is_meta:
        missing = None if HAS_KERNELS else "histokit was installed without compiled kernels"
    elif tensor.device.type == "cuda":
        missing = None if HAS_CUDA else "histokit was built without CUDA (nvcc)"
    else:
        missing = f"there are no kernels for {tensor.device.type}"
    if missing is None:
        return True
    if _chosen() == "kernels":
        raise RuntimeError(f"{op}: {missing}; reinstall with a compiler or use('auto')")
    if not torch.compiler.is_compiling() and missing not in _told:
        _told.add(missing)
        warnings.warn(f"{missing}; plain PyTorch serves its ops, slower", stacklevel=3)
    return False


def full_precision(tensor: Tensor):
    """Autocast off for a block: kernels sum in float32 whatever the type of the data."""
    if not torch.amp.is_autocast_available(tensor.device.type):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def has_values(tensor: Tensor) -> bool:
    """Whether a check may read the tensor: it is not a stand-in for shapes, and none compiles."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    fake = sys.modules.get("torch._subclasses.fake_tensor")  # not imported for the question alone
    return fake is None or not isinstance(tensor, fake.FakeTensor)


def on_cuda(tensor: Tensor) -> bool:
    """Whether the forms for CUDA take this tensor, which must not make the host wait."""
    return tensor.is_cuda


def products() -> int:
    """How many products on tensor cores make one of float32; 0 for none."""
    if TENSOR_CORES == "0":
        return 0
    if torch.compiler.is_compiling():  # it cannot trace the question; three are always right
        return 3
    return 1 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 3


def host_checks(op: str, tensor: Tensor) -> bool:
    """Whether Python looks at the values of an index.

    On CUDA it would wait for all that was launched before. There the kernels look themselves, and
    end with a device-side assertion that names the argument; ``HISTOKIT_CHECK=1`` asks for the
    sentence, and the wait.
    """
    if not has_values(tensor):
        return False
    waits = on_cuda(tensor) and kernels_serve(op, tensor)
    return not waits or os.environ.get("HISTOKIT_CHECK") == "1"


def no_second_derivative(op: str):
    """For ``torch.library.register_autograd`` of an op's backward pass, which has none itself."""

    def backward(ctx, *_):
        raise RuntimeError(
            f"{op}: the kernels have no second derivatives; take ops.use('reference') for them"
        )

    return backward


def acc_type(tensor: Tensor) -> torch.dtype:
    """The type of sums and small parameters: float64 for float64 data, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def check_tensor(op: str, name: str, value: object) -> None:
    """Raise ValueError unless it is a tensor, and one whose derivative is not asked for ahead."""
    if not isinstance(value, Tensor):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ValueError(
            f"{op}: {name} must be a torch.Tensor, got {kind.removeprefix('builtins.')}"
        )
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise ValueError(
            f"{op}: {name} carries a forward-mode tangent, which the ops do not follow; take "
            "torch.autograd.grad, or the function of histokit.reference"
        )


def check_float(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all are floating tensors on one device; None is skipped."""
    first = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
            raise ValueError(
                f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
            )
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise ValueError(
                f"{op}: {name} must be on {first[1]} like {first[0]}, got {tensor.device}"
            )


def check_shape(op: str, name: str, tensor: Tensor | None, expected: tuple, symbols: str) -> None:
    """Raise ValueError unless the shape is ``expected``, where None stands for any size."""
    if tensor is None:
        return
    same = tensor.ndim == len(expected) and all(
        want is None or want == got for want, got in zip(expected, tensor.shape, strict=True)
    )
    if not same:
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        sizes += "," if len(expected) == 1 else ""
        raise ValueError(f"{op}: {name} must be {symbols} = ({sizes}), got {tuple(tensor.shape)}")


def check_index(op: str, index: Tensor | None, rows: int, size: int, like: Tensor) -> None:
    """Check a slide index: int64 (N,) with values in [0, size); needed when size is not 1."""
    if index is None:
        if size != 1:
            raise ValueError(f"{op}: slide_index must be given with {size} slides, got None")
        return
    check_tensor(op, "slide_index", index)
    check_shape(op, "slide_index", index, (rows,), "(N,)")
    if index.dtype != torch.int64:
        raise ValueError(f"{op}: slide_index must be int64, got {index.dtype}")
    if index.device != like.device:
        raise ValueError(f"{op}: slide_index must be on {like.device}, got {index.device}")
    if rows == 0 or not host_checks(op, index):
        return
    low, high = index.aminmax()
    if low < 0 or high >= size:
        bad = int(low if low < 0 else high)
        raise IndexError(f"{op}: slide_index must be in [0, {size}), got {bad}")


def check_divides(op: str, name: str, parts: int, width: int) -> None:
    """Raise ValueError unless ``parts`` divides ``width``, which must not be 0."""
    if width < 1:
        raise ValueError(f"{op}: the width must be at least 1, got {width}")
    if parts < 1 or width % parts:
        raise ValueError(f"{op}: {name} must divide the width {width}, got {parts}")
