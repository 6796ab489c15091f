"""Registers, shared memory and spills of CUDA kernels, as ptxas counts them; needs no GPU.

python benchmarks/registers.py csrc/cuda/distance_attention_mma*.cu      # or: make registers
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHS = ("sm_80", "sm_90", "sm_90a")
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for .*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
ROW = "{:40} {:7} {:>9} {:>13} {:>12} {:>11}"


def compiled(source: str, arch: str) -> str:
    """What ptxas says of one file for one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-O3", "-std=c++17", "-Xptxas", "-v", f"-arch={arch}", "-cubin", source]
        done = subprocess.run(
            [*command, "-o", Path(folder) / "out.cubin"], capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(f"error: {source} does not compile for {arch}:\n{done.stderr}")
    return done.stderr


def short(mangled: str) -> str:
    """A kernel's name and the arguments of its plan: forward_mma<half, 1, 128, 2, 32>."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    name = name.split("(histokit::")[0].replace("(int)", "").replace(" >", ">")
    return re.sub(r"void |histokit::\(anonymous namespace\)::(Plan<)?|__nv_|__|>(?=[>,])", "", name)


def rows(said: str, arch: str) -> list[str]:
    """A line for each kernel in what ptxas said."""
    found = []
    for entry in ENTRY.finditer(said):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        counts = entry["registers"], shared[1] if shared else 0, entry["stores"], entry["loads"]
        found.append(ROW.format(short(entry["name"]), arch, *counts))
    return sorted(found)


def main(sources: list[str]) -> None:
    """Print a row for each kernel and architecture."""
    print(ROW.format("kernel", "arch", "registers", "static shared", "spill stores", "spill loads"))
    for source in sources:
        for arch in ARCHS:
            print("\n".join(rows(compiled(source, arch), arch)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
