"""Moran's I of all genes of a slide beside squidpy's, in one run.

python benchmarks/moran.py
"""

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histokit.core.options import option, run
from histokit.data.moran import morans_i, neighbour_graph
from histokit.train import gene_programs


@dataclass(frozen=True)
class Options:
    """Command line."""

    spots: int = option(3_000, "spots on a square array")
    genes: int = option(15_000, "genes")
    density: float = option(0.15, "share of entries that are not zero")
    repeat: int = option(3, "timed calls of each; the shortest counts")


def seconds(call, repeat: int) -> float:
    """The shortest of some calls after one that is not counted."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main(cfg: Options) -> None:
    """Time both, compare them, and time the start of 64 prototypes from 200 genes."""
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    import squidpy

    print(f"importing squidpy takes {time.perf_counter() - start:.1f} s")
    places = np.arange(cfg.spots)
    side = int(cfg.spots**0.5) + 1
    centres = np.stack([places % side, places // side], 1) * 100.0
    y = sp.random(cfg.spots, cfg.genes, cfg.density, format="csr", random_state=0)
    graph = neighbour_graph(centres)
    data = anndata.AnnData(y, obsp={"spatial_connectivities": graph})

    def theirs():
        return squidpy.gr.spatial_autocorr(data, mode="moran", copy=True, show_progress_bar=False)

    squidpy_time = seconds(theirs, cfg.repeat)
    own_time = seconds(lambda: morans_i(y, graph), cfg.repeat)
    oracle, own = theirs().loc[data.var_names], morans_i(y, graph)
    print(f"{cfg.spots:,} spots, {cfg.genes:,} genes, {cfg.density:.0%} not zero")
    print(
        f"squidpy {squidpy_time:.2f} s, histokit {own_time:.2f} s: x{squidpy_time / own_time:.1f}"
    )
    difference = np.abs(own["I"].to_numpy() - oracle["I"].to_numpy()).max()
    print(f"largest difference of I {difference:.1e}")

    places = np.arange(10_000)
    centres = np.stack([places % 100, places // 100], 1) * 100.0
    y = sp.random(10_000, 200, 0.6, format="csr", random_state=0)
    membership = (np.random.default_rng(0).random((200, 64)) < 0.1).astype(float)

    def prototypes():
        morans_i(y, neighbour_graph(centres))
        gene_programs.project(gene_programs.profiles(y, membership), 256)

    print(f"64 programs of 200 genes over 10,000 spots: {seconds(prototypes, 3):.2f} s")


if __name__ == "__main__":
    run(main, Options, __doc__)
