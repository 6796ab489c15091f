"""What the start of BP-Booster from pathways costs on a cohort: graphs and Moran's I by squidpy.

python benchmarks/moran.py --slides 100
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histokit.core.options import option, run
from histokit.data.graph import TOUCHING, morans_i, spot_graph
from histokit.train import gene_programs


@dataclass(frozen=True)
class Options:
    """Command line."""

    slides: int = option(100, "slides")
    spots: int = option(3_000, "spots on a square array")
    genes: int = option(15_000, "genes")
    density: float = option(0.15, "share of entries that are not zero")


def main(cfg: Options) -> None:
    """Time graph and statistic on every slide, then the profiles of 64 programs of 200 genes."""
    places = np.arange(cfg.spots)
    side = int(cfg.spots**0.5) + 1
    centers = np.stack([places % side, places // side], 1) * 100.0
    graph_time, moran_time = [], []
    for seed in range(cfg.slides):
        y = sp.random(cfg.spots, cfg.genes, cfg.density, format="csr", random_state=seed)
        start = time.perf_counter()
        graph = spot_graph(centers, TOUCHING)
        middle = time.perf_counter()
        morans_i(y, graph)
        graph_time.append(middle - start)
        moran_time.append(time.perf_counter() - middle)
    print(
        f"{cfg.slides} slides of {cfg.spots:,} spots and {cfg.genes:,} genes: graphs "
        f"{sum(graph_time):.1f} s, Moran's I {sum(moran_time):.1f} s "
        f"(median {np.median(moran_time):.2f} s a slide; the first, with its imports and "
        f"compilation, {graph_time[0] + moran_time[0]:.1f} s)"
    )
    rng = np.random.default_rng(0)
    y = sp.random(10_000, 200, 0.3, format="csr", random_state=0)
    membership = (rng.random((200, 64)) < 0.1).astype(float)
    start = time.perf_counter()
    gene_programs.project(gene_programs.profiles(y, membership), 256)
    print(f"64 prototypes of 200 genes over 10,000 spots: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    run(main, Options, __doc__)
