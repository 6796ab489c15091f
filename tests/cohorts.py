"""A small extracted cohort, written straight into the files between the stages."""

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

GENES = [f"GENE{i}" for i in range(30)]


def write_cohort(folder, slides=None, dim=16, encoder="tiny", genes=None, seed=0):
    """Slides given as {slide_id: (cancer, patient, number of spots)}; features carry signal."""
    slides = slides or {
        "A1": ("IDC", "A", 40),
        "A2": ("IDC", "A", 35),
        "B1": ("PRAD", "B", 45),
        "B2": ("PRAD", "B", 30),
        "C1": ("IDC", "C", 38),
        "D1": ("PRAD", "D", 33),
    }
    genes = genes or {}
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(dim, len(GENES))) * (rng.random((dim, len(GENES))) < 0.2)
    for name in ("expression", "thumbnails", f"features/{encoder}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for slide_id, (cancer, patient, n) in slides.items():
        x = rng.normal(size=(n, dim)).astype(np.float32)
        names = genes.get(slide_id, GENES)
        columns = [GENES.index(g) for g in names]
        rate = np.exp(0.5 * x @ loadings + 3)[:, columns]
        counts = rng.poisson(rate * rng.lognormal(0, 0.3, (n, 1))).astype(np.float32)
        barcodes = [f"{slide_id}-{i}" for i in range(n)]
        centers = np.stack([np.arange(n) % 7, np.arange(n) // 7], 1) * 100.0 + 60
        data = anndata.AnnData(
            sp.csr_matrix(counts),
            obs=pd.DataFrame(index=barcodes),
            var=pd.DataFrame({"gene_id": "", "symbol": names, "measured": True}, index=names),
            obsm={"spatial": centers},
        )
        data.write_h5ad(folder / "expression" / f"{slide_id}.h5ad")
        with h5py.File(folder / "features" / encoder / f"{slide_id}.h5", "w") as file:
            order = rng.permutation(n)  # rows need not stand in the order of the counts
            file["features"] = x[order]
            file["coords"] = (centers[order] - 50).astype(np.int64)
            file["barcodes"] = [barcodes[i] for i in order]
            file.attrs.update(encoder=encoder, weights_sha256="none", patch_um=112.0, mpp=1.0)
        Image.new("RGB", (400, 400), (230, 200, 220 - 20 * len(rows))).save(
            folder / "thumbnails" / f"{slide_id}.jpg"
        )
        rows.append((slide_id, cancer, patient, "Visium", 1.0, "table", f"{slide_id}.png", n))
    columns = "slide_id cancer patient technology mpp mpp_source image num_spots".split()
    table = pd.DataFrame(rows, columns=columns)
    table["num_genes"], table["thumbnail_scale"] = len(GENES), 0.5
    table.to_csv(folder / "slides.csv", index=False)
    return folder
