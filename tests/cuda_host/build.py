"""Compile the kernels of csrc/cuda for the host, and call their launchers on CPU tensors."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths

SHIM = Path(__file__).resolve().parent
CSRC = SHIM.parents[1] / "csrc"
SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
FLAGS = [
    *("-x", "c++", "-std=c++20", "-O1", "-g", "-fPIC", "-pthread", "-fno-strict-aliasing"),
    *("-Wall", "-Werror", "-Wno-unknown-pragmas", "-DHK_BLOCK_WARPS=2", f"-I{SHIM}"),
    *(f"-isystem{path}" for path in include_paths()),
]
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FIELD_TYPES = {
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
    "Dtype": ctypes.c_int32,
}


def build(cache: Path) -> Path:
    """The shared library of all kernels, compiled again only when a source has changed."""
    sanitize = os.environ.get("CUDA_HOST_SANITIZE", "")
    flags = [*FLAGS, *([f"-fsanitize={sanitize}"] if sanitize else [])]
    read = [*SOURCES, *(CSRC / "cuda").glob("*.cuh"), *CSRC.glob("*.h"), *SHIM.glob("*.h")]
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in sorted(read):
        digest.update(path.read_bytes())
    library = cache / f"kernels-{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}

    with tempfile.TemporaryDirectory(dir=cache) as folder, ThreadPoolExecutor(2) as pool:

        def compile_one(source: Path) -> Path:
            target = Path(folder, f"{source.stem}.o")
            subprocess.run(["g++", *flags, "-c", source, "-o", target], check=True, env=plain)
            return target

        objects = list(pool.map(compile_one, SOURCES))
        link = ["g++", "-shared", "-pthread", *flags[len(FLAGS) :], *objects]
        subprocess.run([*link, "-o", Path(folder, library.name)], check=True, env=plain)
        os.replace(Path(folder, library.name), library)
    return library


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


def nvcc_check(cache: Path) -> None:
    """Compile every .cu for sm_80 and sm_90 with warnings as errors, unless it passed before."""
    headers = [*sorted((CSRC / "cuda").glob("*.cuh")), *sorted(CSRC.glob("*.h"))]
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    flags = ["-O3", "-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Werror", *archs]

    def check_one(source: Path) -> None:
        text = b"".join(path.read_bytes() for path in (source, *headers))
        passed = cache / f"nvcc-{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}"
        if not passed.exists():
            subprocess.run(["nvcc", *flags, "-c", source, "-o", os.devnull], check=True)
            passed.touch()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(check_one, SOURCES))
