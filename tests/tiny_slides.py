"""Tiny slides of the three-file contract for the tests of extraction."""

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from PIL import Image

SIDE = 400


def picture(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """A pink and purple picture uint8 (side, side, 3) that is different everywhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(90, 240, (side // 8, side // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def spots_table(count: int = 12, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    centers = rng.uniform(20, SIDE - 20, (count, 2))
    table = pd.DataFrame(centers, columns=["x", "y"])
    return table.assign(barcode=[f"spot{i}" for i in range(count)], region="tumor")


def counts_table(count: int = 12, genes: int = 6, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = ["EPCAM", "KRT8", "CD3E", "COL1A1", "MKI67", "ACTB", "GAPDH", "RPL3"][:genes]
    counts = rng.poisson(3, (count, genes))
    return pd.DataFrame(counts, [f"spot{i}" for i in range(count)], names)


def write_cohort(folder: Path, slides=("a", "b"), spots=None, counts=None, columns=()) -> Path:
    """A cohort of tiny slides; ``spots`` and ``counts`` replace the tables of the first one.

    ``columns`` replaces values of cohort.csv.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, name in enumerate(slides):
        Image.fromarray(picture(seed)).save(folder / f"{name}.png")
        first = seed == 0
        table = spots if first and spots is not None else spots_table(seed=seed)
        table.to_csv(folder / f"{name}-spots.csv", index=False)
        table = counts if first and counts is not None else counts_table(seed=seed)
        table.to_csv(folder / f"{name}-counts.tsv", sep="\t")
        rows.append(
            {
                "slide_id": name,
                "cancer": "IDC",
                "patient": f"P{seed}",
                "technology": "test",
                "image": f"{name}.png",
                "spots": f"{name}-spots.csv",
                "counts": f"{name}-counts.tsv",
                "mpp": 2.0,
            }
            | dict(columns)
        )
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder


def write_hest(folder, key="barcode", side=224, spatial=True, patient="1"):
    """A HEST folder of one slide of 12 stored patches; returns its counts."""
    (folder / "patches").mkdir(parents=True)
    (folder / "st").mkdir()
    rng = np.random.default_rng(0)
    counts = counts_table()
    with h5py.File(folder / "patches" / "TENX1.h5", "w") as file:
        file["img"] = rng.integers(0, 255, (12, side, side, 3), dtype=np.uint8)
        file["coords"] = np.arange(24).reshape(12, 2) * 100
        file[key] = np.array([[b.encode()] for b in counts.index])
    data = anndata.AnnData(counts.astype(np.float32)[::-1])
    if spatial:
        data.obsm["spatial"] = np.arange(24).reshape(12, 2)[::-1] * 100.0 + 111.3
    data.write_h5ad(folder / "st" / "TENX1.h5ad")
    row = {
        "id": "TENX1",
        "oncotree_code": "SKCM",
        "patient": patient,
        "dataset_title": "Study",
        "st_technology": "Xenium",
        "pixel_size_um_estimated": 0.25,
    }
    pd.DataFrame([row]).to_csv(folder / "HEST_v1_1_0.csv", index=False, encoding="utf-8-sig")
    return counts
