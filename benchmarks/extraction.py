"""Extraction's throughput: the encoder never waits for the image, and little is lost around it.

    python benchmarks/extraction.py --source ../shared/data/her2st

For each encoder, patches per second of one slide: of the bare network on ready tensors, of an
extraction as run_extract.py does it (windows read and resampled ahead), and of the plain way, one
patch and one call of PIL at a time. Weights are random, which costs the same. Writes
benchmarks/results/extraction-cpu.csv.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from histokit.core.files import write_rows
from histokit.core.memory import keep_freed_memory
from histokit.core.options import Checked, option, required, run
from histokit.data.join import join_spots
from histokit.data.layouts import read_source
from histokit.extract import writer
from histokit.extract.base import How
from histokit.extract.encoders import NetworkEncoder, import_timm
from histokit.extract.encoding import Encoding
from histokit.extract.images import open_image
from histokit.extract.patches import read_window, top_left
from histokit.profile.measure import machine

ENCODERS = ("tf_efficientnet_lite0", "resnet50", "vit_small_patch16_224")
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Options(Checked):
    """Command line."""

    source: str = required("a cohort, as run_extract.py takes it")
    patch_um: float = option(112.0, "side of a patch in microns")
    mpp: float | None = option(None, "microns per pixel where the source has none")
    patches: int = option(2000, "patches of the slide at most", least=32)
    repeat: int = option(3, "measurements, of which the median counts", least=1)
    workers: int = option(1, "threads that resample", least=1)


def main(cfg: Options) -> None:
    """Measure, print and write the table."""
    keep_freed_memory()  # by all three
    slide = read_source(cfg.source, "Unknown", [], cfg.mpp)[0]
    spots, _ = join_spots(slide, *writer.image_size(slide))
    spots = spots[: cfg.patches].copy()
    side = writer.patch_side(slide, cfg.patch_um, None)
    rows = []
    for name in ENCODERS:
        timm = import_timm()
        model = timm.create_model(name, pretrained=False, num_classes=0)
        data = timm.data.resolve_data_config({}, model=model)
        encoder = NetworkEncoder(name, model, data, "", How())
        rows.append({"encoder": name, **_measure(cfg, slide, spots, side, encoder)})
        print(rows[-1], flush=True)
    write_rows(RESULTS / "extraction-cpu.csv", rows)


def _measure(cfg: Options, slide, spots, side: int, encoder) -> dict:
    count, batch = spots.n_obs, Encoding(encoder).batch_size
    tensors = encoder.transform(np.zeros((batch, encoder.size, encoder.size, 3), np.uint8))
    calls = -(-count // batch)
    with torch.inference_mode():
        encoder.model(tensors)
        bare = _seconds(lambda: [encoder.model(tensors) for _ in range(calls)], cfg.repeat)
    encoding = Encoding(encoder)

    def extraction():
        given = slide, spots, [side], [cfg.patch_um], encoder.size, batch, cfg.workers
        for _ in encoding.scales(writer.slide_batches(*given)):
            pass

    before = resource.getrusage(resource.RUSAGE_SELF)
    ours = _seconds(extraction, cfg.repeat)
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    plain = _seconds(lambda: _one_by_one(slide, spots, side, encoder, batch), cfg.repeat)
    waited = encoding.waited / (encoding.waited + encoding.worked)
    return {
        "patches": count,
        "patch_px": side,
        "bare_per_s": round(calls * batch / bare, 1),
        "ours_per_s": round(count / ours, 1),
        "plain_per_s": round(count / plain, 1),
        "of_bare": round(count / ours / (calls * batch / bare), 3),
        "waited": round(waited, 3),
        "system_share": round(system / (user + system), 3),
        "machine": machine("cpu"),
    }


def _one_by_one(slide, spots, side: int, encoder, batch: int) -> None:
    image, size = open_image(slide.image), (encoder.size, encoder.size)
    mean, std = encoder.mean[0], encoder.std[0]
    corners = iter(top_left(spots.obsm["spatial"], side))
    while chosen := list(itertools.islice(corners, batch)):
        tensors = []
        for x, y in chosen:
            patch = Image.fromarray(read_window(image, int(x), int(y), side))
            pixels = np.asarray(patch.resize(size, Image.Resampling.BICUBIC))
            tensors.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std)
        with torch.inference_mode():
            encoder.model(torch.stack(tensors)).numpy()


def _seconds(call, repeat: int) -> float:
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


if __name__ == "__main__":
    run(main, Options, __doc__)
