"""A small cohort of H&E-like slides with planted expression.

    python -m histokit.data.synthetic --out DIR

Four smooth fields (tumor, immune, stroma, proliferation) shape a slide twice: they steer nuclei
(density, size, darkness), fibres, glands and stain in the picture, and the mean expression of one
gene program each. Library size and counting noise know nothing of the picture, so what a model
can reach is limited, as on tissue. Everything follows from ``seed``; nothing is fetched.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.ndimage as ndi
import scipy.sparse as sp
from PIL import Image

from histokit.core.files import atomic_path, make_folder
from histokit.core.options import Checked, option, required, run
from histokit.core.threads import available_cpus
from histokit.data.synthetic_genes import MARKERS, PROGRAMS, background_genes

PATIENTS = {"IDC": 3, "PRAD": 3, "SKCM": 2}
FIELDS = tuple(PROGRAMS)
MPP = 0.5
PITCH_UM = 100.0
MOST_TOGETHER = 4  # slides drawn at a time; one takes some 0.6 GB
STRIP = 64  # rows of a picture that are colored at a time
COARSE = 10  # level-0 pixels in one cell of the latent fields
# optical density of the stains in red, green, blue, as Macenko et al. 2009 found them on tissue
HAEMATOXYLIN = np.array([0.61, 0.70, 0.37])
EOSIN = np.array([0.15, 0.88, 0.45])


@dataclass
class Tissue:
    """Latent fields (4, h, w) with unit variance and the tissue mask (h, w) of one slide."""

    fields: np.ndarray
    mask: np.ndarray


def make_cohort(
    folder: str | os.PathLike,
    seed: int = 0,
    slides_per_patient: int = 1,
    size: int = 2700,
    num_genes: int = 600,
) -> Path:
    """Write a cohort in the three-file contract.

    Args:
        folder: gets ``cohort.csv``, ``images``, ``spots`` and ``counts``.
        seed: the seed of everything; the same seed writes the same pixels and counts.
        slides_per_patient: slides of each of the eight patients.
        size: side of an image in pixels of 0.5 um; 2700 gives about 180 spots.
        num_genes: at least 190, the genes of the programs and markers.

    Returns:
        the path of ``cohort.csv``. Beside it, ``new/IDC-4.tif`` is a slide of another patient
        without spots and counts, whose file states its microns per pixel.
    """
    folder = make_folder(folder)
    for name in ("images", "spots", "counts", "new"):
        make_folder(folder / name)
    genes = _gene_effects(num_genes, np.random.default_rng(seed))
    slides = [
        (f"{cancer}-{patient}" + (f"-{section}" if slides_per_patient > 1 else ""), cancer, patient)
        for cancer, patients in PATIENTS.items()
        for patient in range(1, patients + 1)
        for section in range(1, slides_per_patient + 1)
    ]
    with ThreadPoolExecutor(min(available_cpus(), MOST_TOGETHER)) as pool:
        drawn = [pool.submit(_draw_new, folder / "new" / "IDC-4.tif", size, seed)]
        for number, (slide_id, cancer, patient) in enumerate(slides):
            rng = np.random.default_rng([seed, number, patient])
            of_patient = np.random.default_rng([seed, 1000 + patient, len(cancer), ord(cancer[0])])
            drawn.append(
                pool.submit(_make_slide, folder, slide_id, cancer, genes, size, rng, of_patient)
            )
        for slide in drawn:
            slide.result()
    rows = [
        {
            "slide_id": slide_id,
            "cancer": cancer,
            "patient": f"{cancer}-P{patient}",
            "technology": "synthetic",
            "image": f"images/{slide_id}.jpg",
            "spots": f"spots/{slide_id}.csv",
            "counts": f"counts/{slide_id}." + ("tsv.gz" if _as_text(slide_id) else "h5ad"),
            "mpp": MPP,
        }
        for slide_id, cancer, patient in slides
    ]
    with atomic_path(folder / "cohort.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return folder / "cohort.csv"


def _draw_new(path: Path, size: int, seed: int) -> None:
    """The picture of a patient of whom nothing was measured, with its resolution in the file."""
    rng, patient_rng = np.random.default_rng([seed, 4]), np.random.default_rng([seed, 1004])
    picture = Image.fromarray(draw_tissue(make_tissue(size, rng), size, rng, patient_rng))
    compressed = io.BytesIO()  # like the others, whose compression encoders see
    picture.save(compressed, "JPEG", quality=90)
    with atomic_path(path) as temporary:
        Image.open(compressed).save(
            temporary, compression="tiff_deflate", resolution_unit=3, resolution=10_000 / MPP
        )


def _as_text(slide_id: str) -> bool:
    """Whether a slide has its counts as text, of a smaller panel."""
    return slide_id.startswith("SKCM-2")


def _make_slide(folder, slide_id, cancer, genes, size, rng, patient_rng) -> None:
    tissue = make_tissue(size, rng)
    with atomic_path(folder / "images" / f"{slide_id}.jpg") as temporary:
        Image.fromarray(draw_tissue(tissue, size, rng, patient_rng)).save(temporary, quality=90)
    spots = hex_spots(tissue, size, rng)
    counts = _draw_counts(tissue, spots, genes, cancer, rng, patient_rng)
    listed = spots.drop(spots.index[5::60])  # a few spots that only the counts know, and ...
    kept = np.delete(np.arange(len(spots)), np.s_[7::70])  # ... a few that have no counts
    with atomic_path(folder / "spots" / f"{slide_id}.csv") as temporary:
        listed.round(2).to_csv(temporary, index=False)
    if _as_text(slide_id):
        counts = counts[kept, : counts.n_vars - 40]
        with atomic_path(folder / "counts" / f"{slide_id}.tsv.gz") as temporary:
            table = pd.DataFrame(counts.X.toarray().astype(int), counts.obs_names, counts.var_names)
            table.to_csv(temporary, sep="\t", compression={"method": "gzip", "mtime": 0})
    else:
        with atomic_path(folder / "counts" / f"{slide_id}.h5ad") as temporary:
            _with_controls(counts[kept], rng).write_h5ad(temporary)


def _with_controls(counts: anndata.AnnData, rng) -> anndata.AnnData:
    """Two control probes beside the genes, as imaging panels have."""
    probes = pd.DataFrame(index=["NegControlProbe_00001", "BLANK_0001"])
    noise = sp.csr_matrix(rng.poisson(0.2, (counts.n_obs, 2)).astype(np.float32))
    return anndata.AnnData(
        sp.hstack([counts.X, noise]).tocsr(), obs=counts.obs, var=pd.concat([counts.var, probes])
    )


def _smooth(shape: tuple[int, int], sigma: float, rng) -> np.ndarray:
    """Gaussian field with zero mean and unit variance."""
    field = ndi.gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def make_tissue(size: int, rng: np.random.Generator) -> Tissue:
    """Latent fields of one slide, a value every ``COARSE`` px; tumor and stroma compete."""
    shape = (size // COARSE, size // COARSE)
    tumor, immune, extra, growth = (_smooth(shape, sigma, rng) for sigma in (26, 16, 26, 20))
    stroma = -0.8 * tumor + 0.6 * extra
    proliferation = 0.5 * tumor + 0.85 * growth
    immune = immune - 0.3 * tumor
    ys, xs = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    edge = np.maximum(np.abs(xs), np.abs(ys)) ** 2 + 0.10 * _smooth(shape, 18, rng)
    return Tissue(np.stack([tumor, immune, stroma, proliferation]), edge < 0.82)


def _up(field: np.ndarray, size: int) -> np.ndarray:
    """A coarse field at full resolution, float32 (size, size)."""
    image = Image.fromarray(field.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _squash(field: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-2.5 * field))


def draw_tissue(tissue: Tissue, size: int, rng, patient_rng) -> np.ndarray:
    """An H&E-like picture uint8 (size, size, 3) at 0.5 um a pixel; stain varies by patient."""
    tumor, immune, stroma, proliferation = (_squash(f) for f in tissue.fields)
    mask = np.clip(_up(ndi.gaussian_filter(tissue.mask.astype(float), 0.7), size), 0, 1)
    lumen = _lumens(tumor, size, rng)
    nuclei = _nuclei(tissue, (tumor, immune, stroma, proliferation), lumen, size, rng)
    fibres = _fibres(size, rng)
    grain = _up(rng.standard_normal((size // 3, size // 3)), size)
    in_tumour, in_stroma = _up(tumor, size), _up(stroma, size)
    eosin = 0.20 + in_stroma * (0.22 + 0.30 * fibres) + 0.10 * in_tumour + 0.05 * grain
    haem = 0.10 + 0.16 * in_tumour + 0.12 * _up(proliferation, size) * in_tumour + 0.03 * grain
    gaps = np.clip(1.6 * (fibres - 0.12) + 1.4 * (1 - in_stroma), 0, 1)  # slits between fibres
    body = mask * (1 - lumen) * gaps
    eosin = np.clip(eosin * body * (1 - 0.6 * nuclei), 0, None)
    haem = np.clip(haem, 0, None) * body + nuclei * mask
    strength = patient_rng.uniform(0.8, 1.2, 2)
    stains = [_unit(color + patient_rng.normal(0, 0.04, 3)) for color in (HAEMATOXYLIN, EOSIN)]
    colors = [(s * stain).astype(np.float32) for s, stain in zip(strength, stains, strict=True)]
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * 2
    picture = np.empty((size, size, 3), np.uint8)
    for top in range(0, size, STRIP):  # three colors of a whole picture are more than caches hold
        rows = slice(top, top + STRIP)
        density = haem[rows, :, None] * colors[0] + eosin[rows, :, None] * colors[1] + 0.02
        picture[rows] = np.clip(248 * np.exp(-density) + noise[rows], 0, 255)
    return picture


def _unit(vector: np.ndarray) -> np.ndarray:
    vector = np.clip(vector, 0.01, None)
    return vector / np.linalg.norm(vector)


def _lumens(tumor: np.ndarray, size: int, rng) -> np.ndarray:
    """Gland lumens in differentiated tumor, float32 in [0, 1]."""
    holes = _smooth((size // 4, size // 4), 7, rng)
    field = _up(holes, size) + 1.2 * (_up(tumor, size) - 1)
    return np.clip((field - 0.95) * 8, 0, 1)


def _fibres(size: int, rng) -> np.ndarray:
    """Wavy collagen: noise drawn out along one axis, then bent; float32 in [0, 1]."""
    half = size // 2
    noise = ndi.gaussian_filter(rng.standard_normal((half, half)).astype(np.float32), (1.6, 22))
    ys, xs = np.mgrid[:half, :half].astype(np.float32)
    bend_y, bend_x = (60 * _up(_smooth((half // 10,) * 2, 12, rng), half) for _ in range(2))
    bent = ndi.map_coordinates(noise, [ys + bend_y, xs + bend_x], order=1, mode="wrap")
    return _up(np.clip(0.5 + 0.28 * bent / bent.std(), 0, 1), size)


def _nuclei(tissue: Tissue, fields, lumen: np.ndarray, size: int, rng) -> np.ndarray:
    """Hematoxylin of ellipses: epithelial (large), lymphocytes (small, dark), spindle cells."""
    tumor, immune, stroma, proliferation = fields
    canvas = np.zeros((size, size), dtype=np.float32)
    cell_um2 = (COARSE * MPP) ** 2
    kinds = (  # nuclei per square micron, half axes in px, darkness
        (0.0048 * tumor * (0.5 + proliferation), (9.0, 6.8), 0.62),
        (0.0120 * np.clip(immune - 0.45, 0, None), (5.0, 4.6), 1.05),
        (0.0016 * stroma, (11.0, 3.0), 0.80),
    )
    for density, axes, darkness in kinds:
        number = rng.poisson(density * tissue.mask * cell_um2)
        rows, columns = np.nonzero(number)
        rows, columns = (np.repeat(v, number[rows, columns]) for v in (rows, columns))
        growth = proliferation[rows, columns]
        centers = (np.stack([rows, columns], 1) + rng.random((len(rows), 2))) * COARSE
        for (y, x), grown, draw in zip(
            centers, growth, rng.standard_normal((len(rows), 4)), strict=True
        ):
            if lumen[int(y), int(x)] < 0.2:
                stretch = 1 + 0.12 * draw[:2] + (0.35 * (grown - 0.5) if darkness < 0.7 else 0)
                dark = darkness * (1 + 0.15 * draw[2]) * (1 + 0.5 * (grown - 0.5))
                _stamp(canvas, y, x, np.abs(axes * stretch) + 1, 3.0 * draw[3], dark)
    texture = 1 + 0.18 * _up(rng.standard_normal((size // 2, size // 2)), size)
    return canvas * texture


def _stamp(canvas, y, x, axes, angle, darkness) -> None:
    """One ellipse with a soft rim, by maximum so that neighbors do not add up."""
    reach = int(axes.max()) + 2
    top, left = int(y) - reach, int(x) - reach
    window = canvas[max(top, 0) : top + 2 * reach + 1, max(left, 0) : left + 2 * reach + 1]
    rows = np.arange(max(top, 0), max(top, 0) + window.shape[0], dtype=np.float32)[:, None] - y
    columns = np.arange(max(left, 0), max(left, 0) + window.shape[1], dtype=np.float32) - x
    cos, sin = np.cos(angle), np.sin(angle)
    radius = np.hypot(
        (columns * cos + rows * sin) / axes[0], (rows * cos - columns * sin) / axes[1]
    )
    inside = np.clip((1 - radius) * 4, 0, 1)
    rim = 0.75 + 0.25 * np.clip(radius, 0, 1) ** 4  # chromatin is denser at the membrane
    np.maximum(window, darkness * inside * rim, out=window)


def hex_spots(tissue: Tissue, size: int, rng) -> pd.DataFrame:
    """Spots under tissue on a Visium-like hexagonal grid of 100 um: barcode, x, y, array place."""
    pitch = PITCH_UM / MPP
    rows = []
    for row in range(int(size / (pitch * np.sqrt(3) / 2))):
        y = pitch * (0.6 + row * np.sqrt(3) / 2)
        for column in range(int(size / pitch)):
            x = pitch * (0.5 + column + 0.5 * (row % 2))
            if x < size and y < size and tissue.mask[int(y) // COARSE, int(x) // COARSE]:
                rows.append((x, y, row, column))
    table = pd.DataFrame(rows, columns=["x", "y", "array_row", "array_col"])
    codes = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(len(table))]
    table.insert(0, "barcode", codes)
    return table


def _gene_effects(num_genes: int, rng) -> pd.DataFrame:
    """Base level, loadings on the four fields and cancer offsets (log scale), a row a gene."""
    planted = [gene for genes in (*PROGRAMS.values(), *MARKERS.values()) for gene in genes]
    genes = planted + background_genes(num_genes - len(planted))
    table = pd.DataFrame(index=genes)
    table["base"] = np.where(table.index.isin(planted), 0.4, 1.2) + rng.normal(0, 0.8, len(genes))
    for field, program in PROGRAMS.items():
        loading = rng.uniform(0.5, 1.0, len(genes)) * table.index.isin(program)
        table[field] = loading + rng.normal(0, 0.05, len(genes))
    for cancer, markers in MARKERS.items():
        offset = rng.normal(0, 0.25, len(genes))
        table[cancer] = offset + np.where(table.index.isin(markers), 2.5, 0.0)
    for markers in MARKERS.values():  # markers live in tumor cells
        table.loc[markers, "tumor"] += 0.5
        table.loc[markers, "base"] -= 1.0
    return table


def _draw_counts(tissue, spots, genes, cancer, rng, patient_rng) -> anndata.AnnData:
    """Negative binomial counts of spots; the fields are averaged over a 112 um patch."""
    window = round(112 / MPP / COARSE)
    places = (
        (spots["y"].to_numpy() // COARSE).astype(int),
        (spots["x"].to_numpy() // COARSE).astype(int),
    )
    fields = np.stack([ndi.uniform_filter(f, window)[places] for f in tissue.fields], axis=1)
    patient = patient_rng.normal(0, 0.15, len(genes))
    log_mean = genes["base"].to_numpy() + genes[cancer].to_numpy() + patient
    log_mean = log_mean + fields @ genes[list(FIELDS)].to_numpy().T
    library = rng.lognormal(0, 0.35, (len(spots), 1))
    mean = library * np.exp(log_mean)
    counts = rng.poisson(rng.gamma(5.0, mean / 5.0))
    return anndata.AnnData(
        sp.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=spots["barcode"].to_numpy()),
        var=pd.DataFrame(index=genes.index),
    )


@dataclass(frozen=True)
class Options(Checked):
    """Options of ``python -m histokit.data.synthetic``."""

    out: str = required("folder to write the cohort into")
    seed: int = option(0, "seed of pixels and counts", least=0)
    slides_per_patient: int = option(1, "slides of each of the eight patients", least=1)
    size: int = option(2700, "side of an image in pixels of 0.5 um", least=400, most=20000)
    genes: int = option(600, "number of genes", least=190)


def main(cfg: Options) -> None:
    """Write the cohort."""
    path = make_cohort(cfg.out, cfg.seed, cfg.slides_per_patient, cfg.size, cfg.genes)
    print(f"wrote the synthetic cohort {path}")


if __name__ == "__main__":
    run(main, Options, __doc__)
