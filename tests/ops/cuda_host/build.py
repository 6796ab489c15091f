"""Compile the kernels of csrc/cuda for the host; call their launchers, or their ops, on the CPU."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths

SHIM = Path(__file__).resolve().parent
CSRC = SHIM.parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
KIND = os.environ.get("CUDA_HOST_SANITIZE")
SANITIZE = ["-g", f"-fsanitize={KIND}"] if KIND else []
FLAGS = [
    *("-x", "c++", "-std=c++20", "-O1", "-fPIC", "-pthread", "-fno-strict-aliasing"),
    *("-Wall", "-Werror", "-Wno-unknown-pragmas", f"-I{SHIM}"),
    *(f"-isystem{path}" for path in include_paths()),
]
GLUE_FLAGS = [
    f"-isystem{sysconfig.get_path('include')}",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    '-DHISTOKIT_BUILD_CUDA_ARCHS="host"',
    '-DHISTOKIT_BUILD_REVISION="tests"',
]
SMALL_BLOCKS = ["-DHK_BLOCK_WARPS=2"]  # of 4, for more blocks and ragged ends
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FIELD_TYPES = {
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
    "Dtype": ctypes.c_int32,
}


def build(cache: Path) -> Path:
    """The shared library of all kernels, with small blocks."""
    return _link(cache, "kernels", SOURCES, [], SMALL_BLOCKS)


def build_extension(cache: Path) -> Path:
    """histokit._C with the CUDA branches of the glue on CPU tensors, and kernels of real blocks."""
    glue = [*sorted(CSRC.glob("*.cpp")), *sorted((CSRC / "cpu").glob("*.cpp"))]
    torch_libraries = Path(torch.__file__).parent / "lib"
    link = [f"-L{torch_libraries}", "-ltorch_cpu", "-lc10"]
    return _link(cache, "extension", [*SOURCES, *glue], link)


def build_source(cache: Path, source: Path) -> Path:
    """The shared library of one file of kernels."""
    return _link(cache, source.stem, [source], [])


def _link(cache: Path, name: str, sources: list[Path], libraries: list[str], flags=()) -> Path:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(cache, source, flags), sources))
    command = ["g++", "-shared", *SANITIZE, *objects, *libraries]
    return _make(cache, name, command, objects)


def _compile(cache: Path, source: Path, more: list[str]) -> Path:
    folders = {CSRC, source.parent, SHIM}
    headers = sorted(path for folder in folders for path in folder.glob("*.*h"))
    flags = [*FLAGS, *SANITIZE, *more]
    if source.parent.name == "cpu":  # linked because the glue names them; not run
        flags += ["-O0", "-fopenmp-simd", "-Wno-psabi"]
    elif source.name == "glue.cpp":  # its stream is torch's; pretend.h has the one to use
        flags += [*GLUE_FLAGS, "-Dcurrent_stream=torch_stream"]
    elif source.parent == CSRC:
        flags += [*GLUE_FLAGS, "-include", str(SHIM / "pretend.h")]
    command = ["g++", *flags, "-c", str(source)]
    name = "-".join([source.parent.name, source.stem, *(flag.strip("-") for flag in more)])
    return _make(cache, name, command, [source, *headers])


def _make(cache: Path, name: str, command: list, read: list[Path]) -> Path:
    """Run a command that writes one file, unless it has run before on files of this content."""
    digest = hashlib.sha256(" ".join(map(str, command)).encode())
    for path in read:
        digest.update(path.read_bytes())
    target = cache / f"{name}-{digest.hexdigest()[:16]}"
    with _alone(cache / f"{name}.lock"):
        _made(target, name, command)
    return target


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock: several processes of a test run may want the same file at once."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _made(target: Path, name: str, command: list) -> None:
    cache = target.parent
    if not target.exists():
        plain = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
        part = Path(f"{target}.part")
        subprocess.run([*command, "-o", part], check=True, env=plain)
        for stale in cache.glob(f"{name}-{'?' * 16}"):
            stale.unlink()
        part.rename(target)


def params_type(header: str, name: str) -> type[ctypes.Structure]:
    """The params struct `name` as csrc/`header` declares it, so that no copy can drift."""
    text = re.sub(r"//.*", "", (CSRC / header).read_text())
    body = re.search(rf"struct {name} \{{(.*?)\}};", text, re.DOTALL).group(1)
    fields = []
    for statement in body.split(";")[:-1]:
        kind, names = re.match(r"\s*(?:const )?([\w:<>]+\*?) ([^;]*)", statement).groups()
        of = ctypes.c_void_p if kind.endswith("*") else FIELD_TYPES[kind]
        fields += [(field.strip(), of) for field in names.split(",")]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Launcher:
    """One launcher: called with the fields of its params; a tensor stands for its address."""

    def __init__(self, library: Path, op: str, header: str, params: str):
        self.params = params_type(header, params)
        symbol = f"_ZN8histokit{len(op)}{op}ENS_{len(params)}{params}EPv"
        self.function = getattr(ctypes.CDLL(str(library)), symbol)
        self.function.argtypes = [self.params, ctypes.c_void_p]
        self.function.restype = ctypes.c_char_p

    def __call__(self, **fields) -> None:
        values = {}
        for name, value in fields.items():
            if isinstance(value, torch.dtype):
                value = DTYPES[value]
            values[name] = value.data_ptr() if isinstance(value, Tensor) else value
        error = self.function(self.params(**values), None)
        if error is not None:
            raise RuntimeError(error.decode())


def _age(path: Path) -> float:
    return path.stat().st_mtime


def nvcc_check(cache: Path) -> None:
    """Compile every .cu for sm_80 and sm_90, warnings as errors.

    What the installation has compiled from these files, without a word, is not compiled again.
    """
    headers = [*sorted((CSRC / "cuda").glob("*.cuh")), *sorted(CSRC.glob("*.h"))]
    newest = max(path.stat().st_mtime for path in headers)
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    flags = ["-O3", "-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Werror", *archs]

    def check_one(source: Path) -> None:
        built = CSRC.parent / "build" / "cuda" / f"{source.stem}-80-90.o"
        said = built.with_suffix(".log")
        changed = max(newest, source.stat().st_mtime)
        if built.exists() and said.exists() and min(map(_age, (built, said))) > changed:
            assert said.read_text() == "", f"nvcc warns of {source.name}: {said.read_text()}"
            return
        command = ["nvcc", *flags, "-c", str(source)]
        _make(cache, f"nvcc-{source.stem}", command, [source, *headers])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(check_one, SOURCES))
