"""Train and evaluate a cohort with as many genes and spots as HEST-1k's; measure rate and memory.

    python benchmarks/scale.py    # trains on 4 slides of 3,000 spots and 38,982 genes, tests on 20
    python benchmarks/scale.py --train-slides 40    # what is on disk already is kept
    python benchmarks/scale.py --train-slides 20 --test-slides 1 --spots 300 --epochs 50 \
        --out work/flat    # 1,000 steps

The slides are drawn at random around eight programs that the features carry. Training and
evaluation run as their users run them, each in a process of its own whose resident size is sampled:
its largest, and whether it is as large in the last tenth of the time as in the middle one. Writes
benchmarks/results/scale-cpu.csv.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from histokit.core.files import make_folder
from histokit.core.options import option, run
from histokit.core.progress import progress_bar
from histokit.extract.slide_table import upsert_row
from histokit.extract.writer import write_expression, write_features

CANCERS = ("IDC", "PRAD")
PROGRAMS, MAP_SEED = 8, 7
ENCODER = "efficientnet-lite0"  # the features are not its own; their attributes say so


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    out: str = option("work/scale", "folder for the cohort and its run")
    train_slides: int = option(4, "slides that train")
    test_slides: int = option(20, "slides that test")
    spots: int = option(3000, "spots of a slide")
    genes: int = option(38_982, "genes")
    dim: int = option(1024, "dimension of the features")
    density: float = option(0.08, "share of the counts that are not zero")
    model: str = option("histoprism", "model of run_train.py")
    epochs: int = option(2, "epochs")


def main(cfg: Options) -> None:
    """Make the cohort, then train and evaluate on it."""
    out = Path(cfg.out)
    make_cohort(cfg, out / "data")
    split = pd.DataFrame({"slide_id": _slides(cfg)})
    split["split"] = ["train"] * cfg.train_slides + ["test"] * cfg.test_slides
    split.to_csv(out / "split.csv", index=False)
    folder = out / "runs" / f"{cfg.model}-{cfg.train_slides}-{time.time():.0f}"
    train = ["--data", out / "data", "--run", folder, "--folds", out / "split.csv"]
    train += ["--model", cfg.model, "--preset", "small", "--epochs", cfg.epochs, "--no-refit"]
    train += ["--cache-gb", 0.5, "--panel", "union"]
    evaluate = ["--run", folder, "--no-predictions", "--no-pictures"]
    rows = []
    for stage, arguments, passes, slides in (
        ("run_train.py", train, cfg.epochs, cfg.train_slides),
        ("run_eval.py", evaluate, 1, cfg.test_slides),
    ):
        spots = cfg.spots * slides
        seconds, sizes, said = child([sys.executable, str(ROOT / stage), *map(str, arguments)])
        waited = re.search(r"waited for slides (\d+)%", said)
        rows.append(
            {
                "stage": stage,
                "model": cfg.model,
                "slides": slides,
                "spots_a_slide": cfg.spots,
                "genes": cfg.genes,
                "passes": passes,
                "seconds": round(seconds, 1),
                "spots_a_second": round(spots * passes / seconds),
                "peak_gb": round(max(sizes), 2),
                "middle_gb": round(_median(sizes, 0.45), 2),
                "end_gb": round(_median(sizes, 0.9), 2),
                "waited_percent": int(waited[1]) if waited else "",
                "dense_predictions_gb": round(4 * spots * cfg.genes / 1e9, 1),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
        print(rows[-1])
    path = ROOT / "benchmarks" / "results" / "scale-cpu.csv"
    new = pd.DataFrame(rows)
    if path.exists():
        old = pd.read_csv(path)
        new = pd.concat([old, new]).drop_duplicates(
            ["stage", "model", "slides", "spots_a_slide"], keep="last"
        )
    new.to_csv(path, index=False)
    print(f"wrote {path}")


def child(command: list[str]) -> tuple[float, list[float], str]:
    """Run a command: seconds, its resident GB over time, what it printed. Stops where it fails."""
    start, sizes = time.perf_counter(), []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while True:
        try:
            said = process.communicate(timeout=0.2)[0]
            break
        except subprocess.TimeoutExpired:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE):
                sizes.append(int(found[1]) * 1024 / 1e9)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - start, sizes, said


def _median(sizes: list[float], begin: float) -> float:
    """Of the tenth of the samples that begins at this share of the time."""
    first = int(begin * len(sizes))
    return statistics.median(sizes[first : first + max(1, len(sizes) // 10)])


def make_cohort(cfg: Options, data: Path) -> None:
    """Write what run_extract.py would write, slide by slide; finished slides are kept."""
    folders = {name: make_folder(data / name) for name in ("expression", "thumbnails")}
    features = make_folder(data / "features" / ENCODER)
    rng = np.random.default_rng(MAP_SEED)
    to_programs = rng.normal(size=(cfg.dim, PROGRAMS)) / np.sqrt(cfg.dim)
    loading = rng.normal(size=(PROGRAMS, cfg.genes)).astype(np.float32) * 0.5
    level = rng.gamma(0.35, 1.0, cfg.genes).astype(np.float32)
    level *= cfg.density / np.mean(1 - np.exp(-level))
    names = [f"GENE{i:05d}" for i in range(cfg.genes)]
    for i, slide in enumerate(progress_bar(_slides(cfg), desc="slides", unit="slide")):
        if (features / f"{slide}.h5").is_file():
            continue
        rng = np.random.default_rng(i)
        x = rng.normal(size=(cfg.spots, cfg.dim)).astype(np.float32)
        counts = _counts(rng, (x @ to_programs).astype(np.float32), loading, level)
        side = int(np.ceil(np.sqrt(cfg.spots)))
        centers = np.stack(np.divmod(np.arange(cfg.spots), side), axis=1) * 200.0 + 112
        barcodes = [f"{slide}-{n}" for n in range(cfg.spots)]
        table = pd.DataFrame({"gene_id": "", "symbol": names, "measured": True}, index=names)
        spots = anndata.AnnData(counts, pd.DataFrame(index=barcodes), table)
        spots.obsm["spatial"] = centers
        write_expression(folders["expression"] / f"{slide}.h5ad", spots, "drawn")
        picture = rng.integers(200, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folders["thumbnails"] / f"{slide}.jpg")
        row = {"slide_id": slide, "cancer": CANCERS[i % len(CANCERS)], "patient": f"P{i}"}
        row |= {"technology": "drawn", "mpp": 0.5, "mpp_source": "drawn", "image": ""}
        sizes = {"num_spots": cfg.spots, "num_genes": cfg.genes, "thumbnail_scale": 0.01}
        upsert_row(data / "slides.csv", row | sizes)
        attributes = {"encoder": ENCODER, "weights_sha256": "drawn", "transform": "drawn"}
        attributes |= {"pooling": "drawn", "precision": "float32", "mpp": 0.5, "patch_um": 112.0}
        attributes |= {"patch_size_level0": 224}
        corners = (centers - 112).astype(np.int64)
        write_features(features / f"{slide}.h5", x, corners, barcodes, attributes)


def _slides(cfg: Options) -> list[str]:
    return [f"S{i:03d}" for i in range(cfg.train_slides + cfg.test_slides)]


def _counts(rng, programs: np.ndarray, loading: np.ndarray, level: np.ndarray) -> sp.csr_matrix:
    """Poisson counts around level * exp(programs . loading), some rows at a time."""
    blocks = []
    for start in range(0, len(programs), 250):
        rate = level * np.exp(programs[start : start + 250] @ loading)
        blocks.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sp.vstack(blocks, format="csr")


if __name__ == "__main__":
    run(main, Options, __doc__)
