"""Build histokit._C: CPU kernels always, CUDA kernels where nvcc is found.

    pip install --no-build-isolation -e .

HISTOKIT_BUILD=0        pure Python: histokit.reference serves every op
HISTOKIT_CUDA=auto|0|1  auto: with nvcc yes, without it no
HISTOKIT_NVCC           path of nvcc, when it is not on PATH
HISTOKIT_CUDA_ARCHS     "80;90" by default, lowest first; that one also as PTX
HISTOKIT_SANITIZE=1     AddressSanitizer and UndefinedBehaviorSanitizer in the CPU kernels
HISTOKIT_REVISION       what build_info() calls the git revision, where there is no repository

The module keeps to Python's stable ABI, so that one wheel serves Python 3.11 and everything later.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
VERSION = re.search(r'__version__ = "(.+)"', Path("histokit/__init__.py").read_text())[1]
TORCH_TARGET = "0x020b000000000000"  # torch 2.11: one library for it and everything later


def find_nvcc():
    """Path of nvcc, or None where the CUDA half is not wanted or cannot be built."""
    wanted = os.environ.get("HISTOKIT_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"error: HISTOKIT_CUDA must be auto, 0 or 1, got {wanted!r}")
    nvcc = shutil.which(os.environ.get("HISTOKIT_NVCC", "nvcc"))
    if wanted == "1" and nvcc is None:
        sys.exit("error: HISTOKIT_CUDA=1 but no nvcc was found; set HISTOKIT_NVCC to its path")
    return None if wanted == "0" else nvcc


def toolkit_libraries(nvcc):
    """Library folders of the toolkit; nvcc itself is asked, for it may be a wrapper script."""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True
    ).stderr
    top = Path(re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)[1].strip())
    return [f for f in (top / "lib64", *top.glob("targets/*/lib"), top / "lib") if f.exists()]


def cuda_objects(nvcc, archs, folder):
    """Compile csrc/cuda/*.cu side by side, those that are out of date; returns the objects."""
    folder.mkdir(parents=True, exist_ok=True)
    # one front-end pass serves all: no kernel asks for its architecture
    code = ",".join([*(f"sm_{arch}" for arch in archs), f"compute_{archs[0]}"])
    flags = [f"-gencode=arch=compute_{archs[0]},code=[{code}]"]
    headers = [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.cuh"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)

    def compile_one(source):
        out = folder / f"{source.stem}-{'-'.join(archs)}.o"
        if not out.exists() or out.stat().st_mtime < max(newest, source.stat().st_mtime):
            command = [nvcc, "-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
            done = subprocess.run(
                [*command, *flags, "-c", source, "-o", out], stderr=subprocess.PIPE, text=True
            )
            sys.stderr.write(done.stderr)
            out.with_suffix(".log").write_text(done.stderr)  # warnings, which a test looks for
            done.check_returncode()
        return str(out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # backward passes take longest: begun last, one would keep a single core busy at the end
        sources = sorted(ROOT.glob("csrc/cuda/*.cu"), key=lambda p: ("backward" not in p.stem, p))
        return list(pool.map(compile_one, sources))


REVISION = Path("revision.txt")  # filled in by git archive and by sdist


def revision():
    """The git revision: of the environment, of the repository, or as it was packed."""
    describe = ["git", "describe", "--always", "--dirty"]
    found = os.environ.get("HISTOKIT_REVISION")
    if not found and Path(".git").exists():
        found = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    packed = REVISION.read_text().strip()
    return found or (packed if "Format" not in packed else "unknown")


class PackRevision(sdist):
    """An sdist that knows the revision it was made from."""

    def make_release_tree(self, base_dir, files):
        """What setuptools packs, and the revision."""
        super().make_release_tree(base_dir, files)
        packed = Path(base_dir) / REVISION
        packed.unlink()  # it may be a hard link to the repository's
        packed.write_text(revision() + "\n")


def write_build_info(folder, archs):
    """What build_info() tells, as a header that changes only when its content does."""
    text = (
        f'#define HISTOKIT_BUILD_CUDA_ARCHS "{";".join(archs)}"\n'
        f'#define HISTOKIT_BUILD_REVISION "{revision()}"\n'
    )
    folder.mkdir(parents=True, exist_ok=True)
    header = folder / "build_info.h"
    if not header.exists() or header.read_text() != text:
        header.write_text(text)


def extension():
    """Arguments of setup() for the compiled module; empty for a pure Python install."""
    if os.environ.get("HISTOKIT_BUILD", "1") == "0":
        return {}
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        print("histokit: no C++ compiler (g++ or $CXX); installing without kernels")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        sys.exit(
            "error: torch is needed to build the kernels; install it first, then "
            "pip install --no-build-isolation . (or set HISTOKIT_BUILD=0)"
        )
    nvcc = find_nvcc()
    archs = os.environ.get("HISTOKIT_CUDA_ARCHS", "80;90").split(";") if nvcc else []
    write_build_info(ROOT / "build", archs)
    flags = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-fopenmp-simd", "-Wno-psabi"]
    flags += ["-fno-math-errno", "-fno-trapping-math"]  # errno and FP traps: nobody reads them
    flags += ["-fno-ipa-cp-clone", "-fno-unswitch-loops"]  # they cost compile time and gain nothing
    link = []
    objects = []
    if os.environ.get("HISTOKIT_SANITIZE", "0") == "1":
        flags += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        link += ["-fsanitize=address,undefined"]
    if nvcc:
        objects = cuda_objects(nvcc, archs, ROOT / "build" / "cuda")
        flags.append("-DHISTOKIT_CUDA")
        link += [f"-L{folder}" for folder in toolkit_libraries(nvcc)]
        link += ["-lcudart_static", "-lrt", "-ldl", "-lpthread"]
    module = CppExtension(
        "histokit._C",
        sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp")),
        include_dirs=[str(ROOT / "build")],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        py_limited_api=True,
        extra_compile_args=flags,
        extra_link_args=link,
        extra_objects=objects,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


arguments = {"version": VERSION, **extension()}
arguments["cmdclass"] = {"sdist": PackRevision, **arguments.get("cmdclass", {})}
setup(**arguments)
