"""HEST-Bench and HEST-1k in miniature, as their downloads lie on disk."""

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


def patches_and_counts(rng, spots=SPOTS):
    """Patches whose darkness and grain steer the counts: uint8 (N, 224, 224, 3) and (N, G)."""
    latent = rng.normal(size=(spots, 2))
    images = np.empty((spots, 224, 224, 3), np.uint8)
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


# id: organ, code of HEST's table, the authors' filling, technology, how genes are named, side in
# spots, patient
HEST_1K = {
    "TENX95": ("Breast", "IDC", "IDC", "Xenium", "symbols", 8, "1"),
    "TENX99": ("Breast", "IDC", "IDC", "Xenium", "symbols", 9, "2"),
    "NCBI783": ("Breast", "IDC", "IDC", "Visium", "ids", 8, "3"),
    "MISC63": ("Bowel", "COAD", "COAD", "Visium HD", "symbols", 8, ""),
    "TENX111": ("Bowel", "COAD", "COAD", "Visium", "both", 9, "4"),
    "SPA116": ("Breast", "", "Cancer_Unspecified", "Spatial Transcriptomics", "ids", 8, "5"),
    "TENX41": ("Prostate", "", "Healthy", "Visium", "symbols", 8, ""),
    "TENX62": ("Lung", "LUSC", "LUSC", "Visium", "both", 8, "6"),
}
ROLES_1K = {  # test slides of each split are in the training of the other
    "split_0": {"train": "TENX95 MISC63 SPA116 TENX41", "val": "TENX62", "test": "TENX99 TENX111"},
    "split_1": {"train": "TENX99 TENX111 SPA116 TENX62", "val": "TENX41",
                "test": "TENX95 NCBI783 MISC63"},
}  # fmt: skip
TWIN = "GENE3-OLD"  # a second symbol of the id of GENE3
FEW = GENES[:40]  # what the panels of Xenium measure


def gene_id(name):
    """The Ensembl id of a symbol."""
    number = GENES.index(name) if name in GENES else 3
    return f"ENSG{number:011}"


def write_hest_1k(folder):
    """HEST-1k: ``st``, ``patches`` and two metadata tables."""
    for name in ("st", "patches"):
        (folder / name).mkdir(parents=True)
    rows = []
    for seed, (slide_id, told) in enumerate(HEST_1K.items()):
        organ, code, _, technology, named, side, patient = told
        rng = np.random.default_rng(100 + seed)
        images, counts = patches_and_counts(rng, side * side)
        names = [f"{i // side:03}x{i % side:03}" for i in range(side * side)]
        centers = np.array([(400 + 450 * (i % side), 400 + 450 * (i // side))
                            for i in range(side * side)], float)  # fmt: skip
        with h5py.File(folder / "patches" / f"{slide_id}.h5", "w") as file:
            file["img"] = images
            file["coords"] = (centers - 224).astype(int)
            file["barcode"] = np.array([[name.encode()] for name in names])
        # the two symbols of one id are one row where ids name genes
        genes = FEW if technology == "Xenium" else GENES if named == "ids" else [*GENES, TWIN]
        twin = rng.poisson(2.0, (side * side, 1))
        counts = np.hstack([counts, twin])[:, [(*GENES, TWIN).index(g) for g in genes]]
        ids = [gene_id(name) for name in genes]
        data = anndata.AnnData(
            counts.astype(np.float32),
            obs=pd.DataFrame(index=names),
            var=pd.DataFrame(index=[f"{i}.7" for i in ids] if named == "ids" else genes),
            obsm={"spatial": centers},
        )
        if named == "both":
            data.var["gene_ids"] = ids
        data.write_h5ad(folder / "st" / f"{slide_id}.h5ad")
        state = "Cancer" if code else "Healthy"
        rows.append((slide_id, f"Study of {slide_id}", organ, state, code, "Homo sapiens", patient,
                     technology, 0.25))  # fmt: skip
    columns = "id dataset_title organ disease_state oncotree_code species patient st_technology"
    table = pd.DataFrame(rows, columns=[*columns.split(), "pixel_size_um_estimated"])
    table.to_csv(folder / "HEST_v1_1_0.csv", index=False, encoding="utf-8-sig")
    older = table.assign(patient=table["patient"].where(table["id"] != "TENX111", ""))
    older.iloc[:-1].to_csv(folder / "HEST_v1_0_0.csv", index=False, encoding="utf-8-sig")
    return folder


def write_histoprism(folder, absent=()):
    """HistoPrism's files: two splits, the list of genes, the map of symbols, lists of 50 genes.

    ``absent`` slides are named by a training split and not in HEST-1k's folder.
    """
    for split, roles in ROLES_1K.items():
        (folder / "splits" / split).mkdir(parents=True)
        for role, members in roles.items():
            rows = []
            for slide_id in members.split():
                organ, code, filled, technology, *_ = HEST_1K[slide_id]
                rows.append((slide_id, organ, code, "Cancer" if code else "Healthy", technology,
                             filled))  # fmt: skip
            if role == "train":
                rows += [(s, "Skin", "SKCM", "Cancer", "Visium", "SKCM") for s in absent]
            table = pd.DataFrame(rows, columns=["sample_id", "organ", "oncotree_code",
                                                "disease_state", "st_technology",
                                                "oncotree_code_filled"])  # fmt: skip
            if role == "test":  # the authors' table of test slides has other columns
                table = table[["sample_id", "oncotree_code", "oncotree_code_filled"]]
            table.to_csv(folder / "splits" / split / f"{role}_split.csv", index=role != "test")
    ids = sorted({gene_id(name) for name in GENES})
    (folder / "stpath_genes.yaml").write_text(
        "".join(f"- {i}\n" for i in [*ids, "ENSMUSG00000000001"])
    )
    mapping = {name: gene_id(name) for name in (*GENES, TWIN)}
    (folder / "symbol2ensembl.json").write_text(
        json.dumps(mapping | {"Actb": "ENSMUSG00000000001"})
    )
    for code in ("IDC", "COAD"):
        place = folder / "hest_bench" / code
        place.mkdir(parents=True)
        listed = GENES[:30] if code == "IDC" else GENES[10:40]
        (place / "var_50genes.json").write_text(json.dumps({"genes": listed}))
    sets = [f"HALLMARK_{k}\tabout\t" + "\t".join(GENES[k * 10 : k * 10 + 15]) for k in range(4)]
    (folder / "h.all.symbols.gmt").write_text("\n".join(sets) + "\n")
    return folder
