"""Small predicted maps for the tests of what is written from them."""

import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image
from tiny_slides import picture

from histokit.maps.slide_map import SlideMap

NAMES = ["EPCAM", "HLA-A", "a/b", "Gén-β", "CD3E"]
UNIT = "log1p of counts per 10,000"


def gene_table(names=NAMES, evaluated=True) -> pd.DataFrame:
    """Genes as a map has them; the last one has no interval and is not trusted."""
    count = len(names)
    pcc = np.linspace(0.6, 0.1, count) if evaluated else np.full(count, np.nan)
    low, high = pcc - 0.1, pcc + 0.1
    if count > 1:
        pcc[-1] = low[-1] = high[-1] = np.nan
    columns = {
        "gene_id": [f"ENSG{i:011d}" for i in range(count)],
        "symbol": names,
        "train_mean": np.linspace(0, 2, count),
        "train_sd": np.linspace(0.1, 1, count),
        "pcc": pcc,
        "pcc_low": low,
        "pcc_high": high,
        "rank": np.arange(1, count + 1),
        "trusted": pcc > 0.3,
    }
    return pd.DataFrame(columns, index=pd.Index(names, name="gene"))


def block_of(values: np.ndarray):
    """A function of start and stop that gives columns of (N, G) values."""
    return lambda start, stop: values[:, start:stop]


def slide_map(across=4, names=NAMES, side=100.0, seed=0, **replaced) -> SlideMap:
    """A map of ``across`` x ``across`` patches on a picture of a quarter of level 0."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(across)), axis=-1).reshape(-1, 2)
    count = len(grid)
    values = rng.normal(1, 1, (count, len(names))).astype(np.float32)
    pixels = int((across + 1) * side / 4 // 8 * 8)
    made = {
        "slide_id": "S 1",
        "barcodes": [f"patch{i}" for i in range(count)],
        "centers": grid * side + side + 0.128,
        "side": side,
        "mpp": 0.5,
        "unit": UNIT,
        "genes": gene_table(names),
        "block": block_of(values),
        "picture": Image.fromarray(picture(seed, pixels)),
        "scale": 0.25,
        "spread": block_of(np.abs(values) / 10),
        "scores": {"HALLMARK_HYPOXIA": values[:, 0] * 2, "T/B cells": values[:, 0] - 1},
        "novelty": rng.uniform(0, 2, count).astype(np.float32),
        "measured": sp.csr_matrix(np.where(values > 1, values, np.float32(0))),
        "about": {"run": "runs/r1", "folds": 5, "image": "slides/S 1.tif"},
        "said": ["Trust ranks, not values."],
    }
    return SlideMap(**(made | replaced))


def bare_map(names=("EPCAM",), **replaced) -> SlideMap:
    """One patch without anything that a map may lack."""
    absent = {"spread": None, "scores": {}, "novelty": None, "measured": None, "mpp": None}
    genes = gene_table(list(names), evaluated=False)
    made = absent | {"genes": genes, "about": {}, "said": []} | replaced
    return slide_map(1, names, **made)
