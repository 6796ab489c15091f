"""Whether the memory of extraction grows with the batch and not with the image.

    python benchmarks/large_slide.py --out work/large --side 60000

Makes a pyramidal BigTIFF of SIDE x SIDE pixels with synthetic tissue on a quarter of it, sends it
through run_extract.py, and writes peak resident size and patches a second beside those of a slide
of a tenth of the side into benchmarks/results/large-slide.csv.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips

sys.path.insert(0, str(Path(__file__).parents[1]))
from histokit.core.files import atomic_path, make_folder, write_rows
from histokit.core.options import Checked, option, required, run
from histokit.data.synthetic import MPP, draw_tissue, make_tissue
from histokit.profile.measure import machine

RESULT = Path(__file__).parent / "results" / "large-slide.csv"
TILE = 2700  # pixels of the synthetic picture that the tissue repeats


@dataclass(frozen=True)
class Options(Checked):
    """Options of the measurement."""

    out: str = required("folder for the slides and their features")
    side: int = option(60000, "side of the large slide in pixels", least=8000, most=200000)
    encoder: str = option("efficientnet-lite0", "as of run_extract.py")


def draw_slide(path: Path, side: int) -> None:
    """A pyramidal BigTIFF, tiled, JPEG, with tissue on the middle quarter; in bounded memory."""
    rng = np.random.default_rng(0)
    picture = draw_tissue(make_tissue(TILE, rng), TILE, rng, np.random.default_rng(1))
    tile = pyvips.Image.new_from_array(picture)
    count = -(-side // 2 // TILE)
    tissue = tile.replicate(count, count).crop(0, 0, side // 2, side // 2)
    slide = tissue.embed(side // 4, side // 4, side, side, extend="white")
    with atomic_path(path) as temporary:
        slide.tiffsave(
            str(temporary), tile=True, tile_width=256, tile_height=256, pyramid=True, bigtiff=True,
            compression="jpeg", Q=85, resunit="cm", xres=1000 / MPP, yres=1000 / MPP,
        )  # fmt: skip


def extract(path: Path, out: Path, encoder: str) -> tuple[float, float]:
    """Seconds, and the peak resident size in MiB, of an extraction in a process of its own."""
    script = Path(__file__).parents[1] / "run_extract.py"
    command = [sys.executable, script, "--source", path, "--out", out, "--encoder", encoder]
    start = time.perf_counter()
    child = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{script} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main(cfg: Options) -> None:
    """Both slides, and a row each."""
    out, rows = make_folder(cfg.out), []
    for side in (cfg.side // 10, cfg.side):
        path = out / f"slide-{side}.tif"
        if not path.is_file():
            draw_slide(path, side)
        data = out / f"data-{side}"
        if data.exists():
            sys.exit(f"{data} exists; remove it, or a finished extraction would be measured")
        seconds, peak = extract(path, data, cfg.encoder)
        with open(data / "slides.csv") as file:
            patches = int(next(csv.DictReader(file))["num_spots"])
        rows.append(
            {
                "side_px": side,
                "file_MB": round(path.stat().st_size / 1e6),
                "encoder": cfg.encoder,
                "patches": patches,
                "seconds": round(seconds, 1),
                "patches_a_second": round(patches / seconds, 1),
                "peak_MiB": round(peak),
            }
            | {"machine": machine("cpu")}
        )
        print(
            {key: rows[-1][key] for key in ("side_px", "patches", "patches_a_second", "peak_MiB")}
        )
    write_rows(RESULT, rows)


if __name__ == "__main__":
    run(main, Options, __doc__)
