"""Time and memory of the clusters of predicted expression, on predictions made on the fly.

python benchmarks/clusters.py --spots 100000 --genes 38982
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histokit.core.options import option, run
from histokit.evaluate.topics.clusters import ROWS, Block, score_clusters


@dataclasses.dataclass(frozen=True)
class Options:
    """Size of the test set."""

    spots: int = option(100_000, "spots of all slides")
    genes: int = option(38_982, "genes predicted")
    slides: int = option(20, "slides, of five cancer types in turn")
    width: int = option(256, "width of the head that predicts")
    seeds: int = option(5, "seeds of each clustering")


def main(cfg: Options) -> None:
    """Cluster once; print the scores, seconds and peak memory."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(cfg.width, cfg.genes)).astype(np.float32)
    kinds = rng.normal(size=(5, cfg.width)).astype(np.float32)

    def blocks():
        for slide in range(cfg.slides):
            own = np.random.default_rng(slide)
            for start in range(0, cfg.spots // cfg.slides, ROWS):
                rows = min(ROWS, cfg.spots // cfg.slides - start)
                hidden = kinds[slide % 5] + own.normal(size=(rows, cfg.width)).astype(np.float32)
                yield Block(f"s{slide}", f"cancer {slide % 5}", hidden @ weight)

    start = time.perf_counter()
    table = score_clusters(blocks, seeds=cfg.seeds)
    print(table.to_string(index=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{cfg.spots:,} spots x {cfg.genes:,} genes: {time.perf_counter() - start:.0f} s, "
        f"peak memory {peak:.2f} GB"
    )


if __name__ == "__main__":
    run(main, Options, __doc__)
