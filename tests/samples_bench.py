"""HEST-Bench in miniature, as its download lies on disk."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
from PIL import Image

SPLITS = {  # test slides of each fold, as published
    "SKCM": [["TENX117"], ["TENX115"]],
    "LUNG": [["TENX118"], ["TENX141"]],
    "IDC": [["TENX95"], ["TENX99"], ["NCBI783"], ["NCBI785"]],
}
GENES = [f"GENE{i}" for i in range(60)]
LISTED = GENES[5:55]
SPOTS = 144


def patches_and_counts(rng):
    """Patches whose darkness and grain steer the counts: uint8 (N, 224, 224, 3) and (N, G)."""
    latent = rng.normal(size=(SPOTS, 2))
    images = np.empty((SPOTS, 224, 224, 3), np.uint8)
    for image, (dark, grain) in zip(images, latent, strict=True):
        coarse = rng.normal(0, 12 + 8 / (1 + np.exp(-grain)), (28, 28, 3))
        color = np.array([200, 140, 190]) - 20 * np.tanh(dark) + coarse
        small = Image.fromarray(np.clip(color, 0, 255).astype(np.uint8))
        image[:] = np.asarray(small.resize((224, 224), Image.Resampling.BICUBIC))
    loadings = np.random.default_rng(9).normal(0, 0.6, (2, len(GENES)))
    return images, rng.poisson(np.exp(latent @ loadings + 1.5))


def write_slide(task, slide_id, seed):
    """One slide of a task: ``patches/ID.h5`` and ``adata/ID.h5ad``, rows in different orders."""
    rng = np.random.default_rng(seed)
    images, counts = patches_and_counts(rng)
    names = [f"{i // 12:03}x{i % 12:03}" for i in range(SPOTS)]  # the same on every slide
    centers = np.array([(400 + 450 * (i % 12), 400 + 450 * (i // 12)) for i in range(SPOTS)], float)
    with h5py.File(task / "patches" / f"{slide_id}.h5", "w") as file:
        file["img"] = images
        file["coords"] = (centers - 224).astype(int)  # 112 um are 448 px of 0.25 um
        file["barcode"] = np.array([[name.encode()] for name in names])
    order = rng.permutation(SPOTS)
    data = anndata.AnnData(
        counts[order].astype(np.float32),
        obs=pd.DataFrame(index=[names[i] for i in order]),
        var=pd.DataFrame(index=GENES),
        obsm={"spatial": centers[order]},
    )
    data.write_h5ad(task / "adata" / f"{slide_id}.h5ad")


def write_hest_bench(folder, tasks=tuple(SPLITS)):
    """The tasks, each with its slides, splits and gene list."""
    for task in tasks:
        place = folder / task
        for name in ("adata", "patches", "splits"):
            (place / name).mkdir(parents=True)
        slides = [slide for test in SPLITS[task] for slide in test]
        for slide in slides:
            write_slide(place, slide, [ord(c) for c in task + slide])
        for fold, test in enumerate(SPLITS[task]):
            for role, members in (("test", test), ("train", [s for s in slides if s not in test])):
                rows = [(s, f"patches/{s}.h5", f"adata/{s}.h5ad") for s in members]
                columns = ["sample_id", "patches_path", "expr_path"]
                table = pd.DataFrame(rows, columns=columns)
                table.to_csv(place / "splits" / f"{role}_{fold}.csv", index=False)
        (place / "var_50genes.json").write_text(json.dumps({"genes": LISTED}))
    return folder
