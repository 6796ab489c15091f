"""Genes: panels, the normalisation of counts, highly variable genes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.errors import InputError
from histokit.files import read_json

TRANSFORMS = ("counts10k-log1p", "log1p", "log2")


def normalise(counts: sp.csr_matrix, library_size: np.ndarray, transform: str) -> sp.csr_matrix:
    """Raw counts to model targets; zeros stay zeros, so the result is as sparse as the counts.

    Args:
        counts: (N, G) CSR, raw counts.
        library_size: (N,) total counts of each spot over all its measured genes, in or out of
            the panel.
        transform: ``counts10k-log1p``, log(1 + 10,000 c / library size), the scverse default;
            ``log1p``, log(1 + c), as HEST-Bench and HistoPrism do; ``log2``, log2(1 + c), as Stem.

    Returns:
        (N, G) CSR float32. A spot without counts stays zero.
    """
    if transform not in TRANSFORMS:
        raise InputError(
            f"unknown target transform {transform!r}; choose from {', '.join(TRANSFORMS)}"
        )
    values = counts.data.astype(np.float64)
    if transform == "counts10k-log1p":
        factor = 1e4 / np.maximum(library_size, 1)
        values *= np.repeat(factor, np.diff(counts.indptr))
    values = np.log1p(values)
    if transform == "log2":
        values /= np.log(2)
    return sp.csr_matrix(
        (values.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape
    )


def read_gene_list(path: str | Path) -> list[str]:
    """Gene names from a text file: one a line, or a YAML list; ``#`` starts a comment.

    A ``.json`` file is read as HEST-Bench's ``{"genes": [...]}``.

    Raises:
        InputError: no such file, no gene in it, or a gene listed twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the gene list {path} does not exist")
    if path.suffix == ".json":
        text = "\n".join(map(str, read_json(path).get("genes", [])))
    else:
        text = path.read_text("utf-8-sig")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    genes = [line.removeprefix("- ").strip("'\" ") for line in lines]
    genes = [gene for gene in genes if gene and not gene.endswith(":")]
    if not genes:
        raise InputError(f"the gene list {path} names no gene; expected one gene a line")
    twice = pd.Index(genes)[pd.Index(genes).duplicated()]
    if len(twice):
        raise InputError(f"the gene list {path} names {twice[0]} twice; list each gene once")
    return genes


def select_panel(tables: dict[str, pd.DataFrame], panel: str) -> pd.DataFrame:
    """The genes a model is trained on.

    Args:
        tables: gene table (index gene, columns gene_id, symbol) of every training slide.
        panel: ``common`` (measured on all of them), ``detected`` (the same here; what the spots
            detect is seen when they are read), ``union`` (on at least one; the loss skips
            what a slide did not measure), or a file of gene names, Ensembl ids or symbols.

    Returns:
        DataFrame gene, gene_id, symbol, in the order of the model's outputs.
    """
    union = pd.concat(tables.values())
    union = union[~union.index.duplicated()]
    if panel == "union":
        chosen = union.index
    elif panel in ("common", "detected"):
        chosen = union.index
        for table in tables.values():
            chosen = chosen[chosen.isin(table.index)]
        if len(chosen) == 0:
            raise InputError(
                "no gene is measured on all training slides; use --panel union or a gene list"
            )
    else:
        chosen = pd.Index(read_gene_list(panel))
        known = set(union.index) | set(union["gene_id"]) | set(union["symbol"])
        found = sum(gene in known for gene in chosen)
        print(f"panel {panel}: {found:,} of {len(chosen):,} genes are measured on training slides")
        if found == 0:
            raise InputError(
                f"none of the {len(chosen):,} genes of {panel} (such as {chosen[0]}) is "
                f"measured on a training slide, whose genes look like {union.index[0]}; give the "
                "same kind of name"
            )
    frame = union.reindex(chosen).fillna("")
    return frame.rename_axis("gene").reset_index()[["gene", "gene_id", "symbol"]]


def detected(counts: sp.csr_matrix) -> np.ndarray:
    """Whether a gene is seen in at least 10 % of a slide's spots, HEST-Bench's rule.

    Args:
        counts: (N, G) CSR raw counts of one slide.

    Returns:
        (G,) bool.
    """
    return counts.getnnz(axis=0) >= np.ceil(0.1 * counts.shape[0])


def rank_hvgs(variability: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Rank genes by how variable they are.

    Args:
        variability: (G,) of any scale, such as the variance.
        eligible: (G,) bool, the genes that take part; those without variability (NaN) do not.

    Returns:
        (G,) float; 1 is the most variable gene, NaN a gene that takes no part.
    """
    ranks = np.full(len(variability), np.nan)
    found = np.flatnonzero(eligible & ~np.isnan(variability))
    order = np.argsort(-variability[found], kind="stable")
    ranks[found[order]] = np.arange(1, len(order) + 1)
    return ranks


def dispersion(counts: sp.csr_matrix, library_size: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """Scanpy's normalised dispersion, its Seurat flavour, on counts10k-log1p.

    The dispersion within a bin of genes of similar mean: on shallow data it prefers genes close
    to noise.

    Args:
        counts: (N, G) CSR raw counts of the training spots.
        library_size: (N,) total counts of each spot.
        eligible: (G,) bool, the genes that take part.

    Returns:
        (G,) float, NaN for a gene that takes no part; for all where fewer than three do, which
        are too few to bin.
    """
    variability = np.full(counts.shape[1], np.nan)
    if eligible.sum() >= 3:
        import anndata
        import scanpy

        data = anndata.AnnData(normalise(counts, library_size, "counts10k-log1p")[:, eligible])
        scanpy.pp.highly_variable_genes(data, n_top_genes=data.n_vars, flavor="seurat")
        variability[eligible] = data.var["dispersions_norm"].fillna(-np.inf)
    return variability


def moments(
    y: sp.csr_matrix, measured: np.ndarray, slide: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each gene over the spots that measured it, zero where none did.

    Args:
        y: (N, G) CSR, empty where a slide did not measure a gene.
        measured: (S, G) bool, the genes that each slide measured.
        slide: (N,) int, the slide of each spot.

    Returns:
        Two (G,) float64 arrays.
    """
    counted = np.bincount(slide, minlength=len(measured)) @ measured
    return moments_of_sums(power_sums(y), counted)


def power_sums(y: sp.csr_matrix) -> np.ndarray:
    """Sums over spots of each gene and of its squares: (2, G) float64."""
    # not y.sum(axis=0), which adds in the type of y
    values = y.data.astype(np.float64)
    return np.stack([np.bincount(y.indices, v, y.shape[1]) for v in (values, values**2)])


def moments_of_sums(sums: np.ndarray, count) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (G,) from ``power_sums`` over so many spots; zero where there were none."""
    mean, square = sums / np.maximum(count, 1)
    return mean, np.maximum(square - mean**2, 0)
