"""Xenium folders, SpatialData stores and HEST downloads for tests, written by hand."""

import gzip
import json

import anndata
import h5py
import numpy as np
import pandas as pd
import tifffile
from tiny_slides import counts_table, picture

PIXEL_SIZE = 0.2125
GENES = ("EPCAM", "KRT8", "CD3E", "SILENT")
CONTROLS = {
    "NegControlProbe_00001": "Negative Control Probe",
    "UnassignedCodeword_0001": "Unassigned Codeword",
}
# DAPI pixels of an H&E pixel: turned by 90 degrees, mirrored, 1.2896 times as large, and shifted.
TURNED = np.array([[0.0, 1.2896, 900.0], [1.2896, 0.0, 1700.0], [0.0, 0.0, 1.0]])
# The same size turned by 30 degrees: unlike a mirrored map, its transpose is another map.
_TURN = 1.2896 * np.array([[np.cos(0.5236), -np.sin(0.5236)], [np.sin(0.5236), np.cos(0.5236)]])
TILTED = np.vstack([np.column_stack([_TURN, [2000.0, 300.0]]), [0, 0, 1]])
# One transcript: H&E pixel, feature, quality. Squares of 100 px.
TRANSCRIPTS = [
    (10.0, 20.0, "EPCAM", 40.0),
    (99.0, 20.0, "EPCAM", 20.0),
    (99.0, 20.0, "KRT8", 19.9),  # too low
    (150.0, 20.0, "KRT8", 33.0),
    (150.0, 350.0, "CD3E", 33.0),
    (150.0, 350.0, "NegControlProbe_00001", 40.0),
    (150.0, 351.0, "UnassignedCodeword_0001", 40.0),
    (-0.5, 20.0, "EPCAM", 40.0),  # left of the image
    (260.0, 350.0, "NegControlProbe_00001", 40.0),  # a square of controls alone
]


def to_um(pixels, matrix=TURNED) -> np.ndarray:
    """Microns of the run (N, 2) of H&E pixels (N, 2)."""
    pixels = np.asarray(pixels, float)
    return (np.column_stack([pixels, np.ones(len(pixels))]) @ matrix.T)[:, :2] * PIXEL_SIZE


def transcripts_table(matrix=TURNED) -> pd.DataFrame:
    table = pd.DataFrame(TRANSCRIPTS, columns=["px", "py", "feature_name", "qv"])
    um = to_um(table[["px", "py"]], matrix)
    return pd.DataFrame(
        {
            "transcript_id": np.arange(len(table), dtype=np.uint64),
            "cell_id": "UNASSIGNED",
            "feature_name": table["feature_name"],
            "x_location": um[:, 0].astype(np.float32),
            "y_location": um[:, 1].astype(np.float32),
            "qv": table["qv"].astype(np.float32),
            "is_gene": table["feature_name"].isin(GENES),
        }
    )


def write_10x(path, counts, kinds, ids) -> None:
    """A 10x matrix in HDF5 of counts, a table of barcodes and features."""
    by_barcode = counts.to_numpy()
    data, indices, indptr = [], [], [0]
    for row in by_barcode:
        data += row[row > 0].tolist()
        indices += np.flatnonzero(row).tolist()
        indptr.append(len(data))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([str(b).encode() for b in counts.index])
        group["data"], group["indices"] = np.array(data, np.int32), np.array(indices, np.int64)
        group["indptr"], group["shape"] = np.array(indptr), np.array(by_barcode.shape[::-1])
        features = group.create_group("features")
        features["id"] = np.array([i.encode() for i in ids])
        features["name"] = np.array([n.encode() for n in counts.columns])
        features["feature_type"] = np.array([k.encode() for k in kinds])


def write_xenium(folder, matrix=TURNED, transcripts=None, cells=True, experiment=None):
    """A Xenium folder with an aligned H&E image; returns its folder.

    ``transcripts`` replaces the table, False leaves it out.
    """
    folder.mkdir(parents=True)
    known = {"pixel_size": PIXEL_SIZE, "analysis_sw_version": "xenium-3.0.0.15"}
    (folder / "experiment.xenium").write_text(
        json.dumps(known if experiment is None else experiment)
    )
    tifffile.imwrite(folder / "run_he_image.ome.tif", picture(side=400))
    lines = [",".join(repr(float(v)) for v in row) for row in matrix]
    (folder / "run_he_imagealignment.csv").write_text("\n".join(lines) + "\n")
    if transcripts is not False:
        table = transcripts_table(matrix) if transcripts is None else transcripts
        table.to_parquet(folder / "transcripts.parquet", index=False)
    if cells:
        write_cells(folder, matrix)
    return folder


def write_cells(
    folder, matrix=TURNED, ids=("aaaaficg-1", "aaaaficf-1", "aaabbaka-1", "aaabbbkb-1")
):
    """Four cells: two in one square, one in another, one left of the image."""
    um = to_um([(30, 30), (60, 70), (150, 350), (-5, 20)], matrix)
    cells = pd.DataFrame({"cell_id": list(ids), "x_centroid": um[:, 0], "y_centroid": um[:, 1]})
    cells.to_parquet(folder / "cells.parquet", index=False)
    names = [*GENES, *CONTROLS]
    values = [[3, 0, 1, 0, 1, 0], [2, 0, 0, 0, 0, 0], [0, 4, 0, 0, 0, 2], [9, 9, 9, 0, 0, 0]]
    counts = pd.DataFrame(values, index=list(ids), columns=names)
    kinds = ["Gene Expression"] * len(GENES) + list(CONTROLS.values())
    ensembl = [f"ENSG0000000000{i}" for i in range(len(GENES))] + list(CONTROLS)
    write_10x(folder / "cell_feature_matrix.h5", counts, kinds, ensembl)


def cells_as_csv(folder) -> None:
    """Replace cells.parquet by cells.csv.gz of the same content."""
    table = pd.read_parquet(folder / "cells.parquet")
    with gzip.open(folder / "cells.csv.gz", "wt") as file:
        table.to_csv(file, index=False)
    (folder / "cells.parquet").unlink()


def write_hest_slide(
    folder, mpp=0.274, tag=0.274, technology="Visium", slide_id="TENX9", array=True
):
    """A HEST folder of one whole slide: ``wsis``, ``st`` and metadata; returns its spots."""
    for name in ("wsis", "st"):
        (folder / name).mkdir(parents=True)
    per_cm = 10_000 / tag
    tifffile.imwrite(
        folder / "wsis" / f"{slide_id}.tif",
        picture(side=400),
        tile=(256, 256),
        photometric="rgb",
        resolution=(per_cm, per_cm),
        resolutionunit="CENTIMETER",
    )
    spots = pd.DataFrame({"array_row": np.repeat([0, 1, 2], 4)})
    spots["array_col"] = spots["array_row"] % 2 + np.tile(np.arange(4) * 2, 3)
    spots["x"], spots["y"] = 30.5 + spots["array_col"] * 40, 40.25 + spots["array_row"] * 69.28
    spots.index = [f"spot{i}" for i in range(12)]
    obs = spots[["array_row", "array_col"] if array else []].assign(in_tissue=0)
    counts = anndata.AnnData(counts_table().astype(np.float32), obs=obs)
    counts.obsm["spatial"] = spots[["x", "y"]].to_numpy()
    counts.write_h5ad(folder / "st" / f"{slide_id}.h5ad")
    write_hest_metadata(folder, [slide_id], mpp, technology)
    return spots


def write_hest_metadata(folder, slides, mpp=0.274, technology="Visium", patient="7"):
    rows = [
        {
            "dataset_title": "Study",
            "id": name,
            "oncotree_code": "IDC",
            "patient": patient,
            "st_technology": technology,
            "pixel_size_um_estimated": mpp,
        }
        for name in slides
    ]
    pd.DataFrame(rows).to_csv(folder / "HEST_v1_1_0.csv", index=False, encoding="utf-8-sig")


def write_bench(
    folder, slides=("A", "B"), attributes=None, spatial=True, key="barcodes", flat=True
):
    """A task of HEST-Bench with patches cut of 448 level-0 pixels; returns the centers (12, 2)."""
    for name in ("adata", "patches", "splits"):
        (folder / name).mkdir(parents=True)
    (folder / "var_50genes.json").write_text(json.dumps({"genes": ["EPCAM", "KRT8"]}))
    centers = np.column_stack([np.linspace(300.2, 3000.9, 12), np.linspace(400.6, 900.3, 12)])
    rng = np.random.default_rng(0)
    for slide in slides:
        counts = anndata.AnnData(counts_table().astype(np.float32))
        if spatial:
            counts.obsm["spatial"] = centers
        counts.write_h5ad(folder / "adata" / f"{slide}.h5ad")
        with h5py.File(folder / "patches" / f"{slide}.h5", "w") as file:
            file["img"] = rng.integers(0, 255, (12, 224, 224, 3), dtype=np.uint8)
            file["img"].attrs.update(attributes or {})
            file["coords"] = (centers - 224).astype(int)
            names = np.array([b.encode() for b in counts.obs_names])
            file[key] = names if flat else names[:, None]
    return centers


HIRES = 0.25  # of the full image


def visium_spots(pitch=40.0) -> pd.DataFrame:
    """Twelve spots of a Visium array (barcodes as index) at places in pixels."""
    table = pd.DataFrame({"array_row": np.repeat([0, 1, 2], 4)})
    table["array_col"] = table["array_row"] % 2 + np.tile(np.arange(4) * 2, 3)
    table["x"] = 60 + table["array_col"] * pitch / 2
    table["y"] = 50 + table["array_row"] * pitch * 3**0.5 / 2
    table.index = [f"ACGT{i}-1" for i in range(12)]
    return table


def write_visium_store(
    path,
    version=3,
    name="D",
    array=True,
    circles=True,
    full=True,
    counts=None,
    shift=(0.0, 0.0),
    radius=13.0,
):
    """A SpatialData store as spatialdata-io makes it of a Visium run; returns the spots.

    Args:
        path: where the store is made.
        version: of Zarr.
        name: of the slide, and of its coordinate system.
        array: whether the table holds the array's rows and columns.
        circles: whether there are shapes; else obsm spatial alone.
        full: whether the full image is there.
        counts: in place of whole numbers.
        shift: of the full image's pixel (0, 0) in the coordinate system of the slide.
        radius: of the circles.
    """
    import spatialdata
    from spatialdata._io.format import SpatialDataContainerFormatV01
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale, Translation

    spots = visium_spots()
    places = spots[["x", "y"]].to_numpy()
    pixels = np.moveaxis(picture(side=400), -1, 0)
    small = Scale([HIRES, HIRES], axes=("x", "y"))
    axes = {"dims": ("c", "y", "x")}
    images = {
        f"{name}_hires_image": Image2DModel.parse(
            pixels[:, ::4, ::4], transformations={f"{name}_downscaled_hires": Identity()}, **axes
        )
    }
    if full:
        move = Translation(list(shift), axes=("x", "y")) if any(shift) else Identity()
        images[f"{name}_full_image"] = Image2DModel.parse(
            pixels, scale_factors=[2, 2], chunks=(3, 128, 128), transformations={name: move}, **axes
        )
    values = counts_table().to_numpy() if counts is None else counts
    obs = spots[["array_row", "array_col"] if array else []].assign(in_tissue=[1] * 11 + [0])
    # instances in another order than the shapes
    obs = obs.assign(region=pd.Categorical([name] * 12), spot_id=np.arange(12)).iloc[::-1]
    table = anndata.AnnData(values[::-1].astype(np.float32), obs=obs)
    table.var_names = counts_table().columns
    table.var["gene_ids"] = [f"ENSG0000000010{i}" for i in range(table.n_vars)]
    table.obsm["spatial"] = places[::-1]
    table = TableModel.parse(table, region=name, region_key="region", instance_key="spot_id")
    shapes = {}
    if circles:
        known = {name: Identity(), f"{name}_downscaled_hires": small}
        shapes[name] = ShapesModel.parse(places, geometry=0, radius=radius, transformations=known)
    store = spatialdata.SpatialData(images=images, shapes=shapes, tables={"table": table})
    formats = {"sdata_formats": [SpatialDataContainerFormatV01()]} if version == 2 else {}
    store.write(path, **formats)
    return spots
