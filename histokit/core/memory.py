"""Memory of a process: how much, whether it ran out, whether what is freed is used again."""

from __future__ import annotations

import ctypes
from pathlib import Path

_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "bad_alloc")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = (1 << 31) - 1  # bytes; larger blocks go back to the kernel in any case


def process_memory(name: str = "VmRSS") -> int:
    """Bytes that this process holds, or held at most (``VmHWM``); 0 where Linux is not there."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's come as RuntimeError, known by words."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


def keep_freed_memory(kept: bool = True) -> None:
    """Let this process use again what it frees, or, as it comes, give large blocks back.

    glibc gives them back to the kernel and takes them anew, page by page and zeroed: a third of the
    CPU time of an extraction, and most of the time of a form that writes large tensors. Does
    nothing where the C library has no ``mallopt``. Kept memory spoils a measurement of its peak.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST if kept else 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST if kept else 128 << 10)
        libc.malloc_trim(0)
