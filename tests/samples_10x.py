"""Folders as Space Ranger writes them, by the file formats' description, of known pixel size."""

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

MPP = 0.4321  # um per full-resolution pixel of every sample
GENES = ["EPCAM", "KRT8", "CD3E", "COL1A1", "MKI67", "ACTB"]
IDS = [f"ENSG{i:011d}" for i in range(1, 7)]
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres"]
COLUMNS += ["pxl_col_in_fullres"]


def places(x_um, y_um, origin=(5000.0, 6000.0), turn=0.0, mirror=False):
    """Pixels (N, 2) as x, y of places in um on the array."""
    x_um, y_um = np.asarray(x_um, float) * (-1 if mirror else 1), np.asarray(y_um, float)
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    x, y = c * x_um - s * y_um, s * x_um + c * y_um
    return np.column_stack([origin[0] + x / MPP, origin[1] + y / MPP])


def visium_spots(rows=8, columns=16, **how) -> pd.DataFrame:
    """Positions in Space Ranger's columns; the last row of spots is not in tissue."""
    grid = [(r, c) for r in range(rows) for c in range(r % 2, columns, 2)]
    row, col = np.array(grid).T
    centers = places(col * 50.0, row * 100 * np.sqrt(3) / 2, **how)
    names = [f"ACGT{i:012d}-1" for i in range(len(grid))]
    table = [names, (row < rows - 1).astype(int), row, col, centers[:, 1], centers[:, 0]]
    return pd.DataFrame(dict(zip(COLUMNS, table, strict=True)))


def counts_of(barcodes, genes=GENES, seed=0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.poisson(2, (len(barcodes), len(genes))), list(barcodes), genes)


def write_h5(path: Path, counts: pd.DataFrame, ids=IDS, kinds=None, genomes=None) -> None:
    """A 10x matrix: features x barcodes, compressed by barcode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = sp.csc_matrix(counts.to_numpy().T)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = matrix.data, matrix.indices
        group["indptr"], group["shape"] = matrix.indptr, matrix.shape
        group["barcodes"] = [b.encode() for b in counts.index]
        group["features/id"] = [i.encode() for i in ids]
        group["features/name"] = [n.encode() for n in counts.columns]
        kinds = kinds or ["Gene Expression"] * len(ids)
        group["features/feature_type"] = [k.encode() for k in kinds]
        group["features/genome"] = [g.encode() for g in genomes or ["GRCh38"] * len(ids)]


def write_mex(folder: Path, counts: pd.DataFrame, old=False, zipped=True, ids=IDS, kinds=None):
    """A MEX folder; ``old`` writes genes.tsv of two columns."""
    folder.mkdir(parents=True, exist_ok=True)
    matrix = sp.coo_matrix(counts.to_numpy().T)
    kinds = kinds or ["Gene Expression"] * len(ids)
    rows = zip(ids, counts.columns, kinds, strict=True)
    features = ["\t".join(row[:2] if old else row) for row in rows]
    entries = zip(matrix.row + 1, matrix.col + 1, matrix.data, strict=True)
    lines = ["%%MatrixMarket matrix coordinate integer general", '%metadata_json: {"a": 2}']
    lines += [f"{matrix.shape[0]} {matrix.shape[1]} {matrix.nnz}"]
    lines += [f"{r} {c} {v}" for r, c, v in entries]
    for name, text in (
        ("barcodes.tsv", list(counts.index)),
        ("genes.tsv" if old else "features.tsv", features),
        ("matrix.mtx", lines),
    ):
        content = ("\n".join(text) + "\n").encode()
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((60, 60, 3), 200, np.uint8)).save(path)
    return path


def write_spatial(folder: Path, spots: pd.DataFrame, name="tissue_positions.csv", header=True):
    """The folder ``spatial``; returns its scale factors, which may be written again."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        spots.to_parquet(folder / name)
    else:
        spots.to_csv(folder / name, header=header, index=False)
    scales = {
        "spot_diameter_fullres": 65 / MPP,
        "tissue_hires_scalef": 0.15,
        "fiducial_diameter_fullres": 105 / MPP,
        "tissue_lowres_scalef": 0.045,
    }
    (folder / "scalefactors_json.json").write_text(json.dumps(scales))
    for picture in ("tissue_hires_image.png", "tissue_lowres_image.png"):
        write_image(folder / picture)
    return scales


def write_visium(outs: Path, spots=None, **how) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``outs`` with an image in it, and the filtered matrix; spots and counts."""
    spots = visium_spots() if spots is None else spots
    counts = counts_of(spots["barcode"][spots["in_tissue"] == 1])
    write_spatial(outs / "spatial", spots, **how)
    write_h5(outs / "filtered_feature_bc_matrix.h5", counts)
    write_image(outs / "he.tif")
    return spots, counts


def hd_bins(size, rows, columns, tissue=lambda row, col: row >= 0, **how) -> pd.DataFrame:
    """Positions of all bins, in tissue where ``tissue`` says so of the array row and column."""
    row, col = (a.ravel() for a in np.mgrid[:rows, :columns])
    centers = places((col + 0.5) * size, (row + 0.5) * size, **how)
    names = [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]
    inside = tissue(row, col).astype(int)
    table = [names, inside, row, col, centers[:, 1], centers[:, 0]]
    return pd.DataFrame(dict(zip(COLUMNS, table, strict=True)))


def write_hd(folder: Path, size: int, bins: pd.DataFrame, prefix="") -> pd.DataFrame:
    """One ``square_XXXum`` folder with the filtered matrix; its counts."""
    counts = counts_of(bins["barcode"][bins["in_tissue"] == 1], seed=size)
    write_h5(folder / f"{prefix}filtered_feature_bc_matrix.h5", counts)
    write_spatial(folder / "spatial", bins, "tissue_positions.parquet")
    scales = {
        "spot_diameter_fullres": size / MPP,
        "bin_size_um": float(size),
        "microns_per_pixel": MPP,
        "tissue_hires_scalef": 0.25,
        "tissue_lowres_scalef": 0.025,
    }
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(scales))
    return counts
