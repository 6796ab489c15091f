"""Writing a map of every gene of a large slide, and reading one gene back.

    python benchmarks/large_map.py --out work/large-map --patches 100000 --genes 38982

Predictions are made block by block from a hidden layer of 256, as models make them, and written by
``histokit.maps.anndata_file``. Writes peak resident size, seconds and the time of one gene into
benchmarks/results/large-map.csv.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from histokit.core.files import make_folder, write_rows
from histokit.core.options import Checked, option, required, run
from histokit.maps.anndata_file import write_anndata
from histokit.maps.ensemble import EnsembleMap
from histokit.maps.slide_map import SlideMap
from histokit.profile.measure import machine

RESULT = Path(__file__).parent / "results" / "large-map.csv"
HIDDEN, READS = 256, 20


@dataclass(frozen=True)
class Options(Checked):
    """Options of the measurement."""

    out: str = required("folder for the file, which is removed again")
    patches: int = option(100_000, "patches of the slide", least=100)
    genes: int = option(38_982, "genes", least=10)
    dtype: str = option("float16", "of the file", choices=("float16", "float32"))


def large_map(patches: int, genes: int) -> SlideMap:
    """A map of random predictions on a square grid."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(patches, HIDDEN, generator=random)
    head = torch.randn(genes, HIDDEN, generator=random) / HIDDEN**0.5, torch.zeros(genes)
    across = int(np.ceil(patches**0.5))
    places = np.stack([np.arange(patches) % across, np.arange(patches) // across], axis=1)
    names = [f"GENE{i}" for i in range(genes)]
    table = pd.DataFrame({"gene_id": "", "symbol": names}, index=names)
    for column in ("train_mean", "train_sd", "pcc", "pcc_low", "pcc_high", "rank"):
        table[column] = np.arange(genes, dtype=float)
    return SlideMap(
        slide_id="large",
        barcodes=[f"{y:05d}x{x:05d}" for x, y in places],
        centers=places * 224.0 + 112,
        side=224.0,
        mpp=0.5,
        unit="log(1 + counts per 10,000)",
        genes=table.assign(trusted=True),
        block=EnsembleMap([hidden], [head]).block,
        picture=Image.new("RGB", (400, 400)),
        scale=400 / (across * 224),
    )


def read_gene(path: Path, gene: int) -> np.ndarray:
    """All patches of one gene, from a file that is opened anew."""
    with h5py.File(path) as file:
        return file["X"][:, gene]


def main(cfg: Options) -> None:
    """Write, read back and compare, then one row."""
    path = make_folder(cfg.out) / "large.h5ad"
    slide = large_map(cfg.patches, cfg.genes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    write_anndata(slide, path, cfg.dtype)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    reads = []
    for gene in np.linspace(0, cfg.genes - 1, READS).astype(int):
        start = time.perf_counter()
        values = read_gene(path, int(gene))
        reads.append(time.perf_counter() - start)
        np.testing.assert_allclose(values, slide.block(gene, gene + 1)[:, 0], atol=2e-3, rtol=1e-3)
    row = {
        "patches": cfg.patches,
        "genes": cfg.genes,
        "dtype": cfg.dtype,
        "file_GB": round(path.stat().st_size / 1e9, 2),
        "seconds": round(seconds, 1),
        "resident_before_MiB": round(before),
        "peak_MiB": round(peak),
        "one_gene_ms": round(1000 * statistics.median(reads), 1),
        "slowest_gene_ms": round(1000 * max(reads), 1),
        "machine": machine("cpu"),
    }
    path.unlink()
    print(row)
    write_rows(RESULT, [row])


if __name__ == "__main__":
    run(main, Options, __doc__)
