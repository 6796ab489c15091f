"""Genes: panels, the normalization of counts, highly variable genes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.core.files import read_json
from histokit.core.tables import text_lines
from histokit.data.gene_keys import GeneKey, gene_key

VERSIONED_ID = re.compile(r"(ENS[A-Z]*G\d{6,})\.\d+(_PAR_Y)?")
TRANSFORMS = ("counts10k-log1p", "log1p", "log2")


def normalize(counts: sp.csr_matrix, library_size: np.ndarray, transform: str) -> sp.csr_matrix:
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

    A ``.json`` file is read as HEST-Bench's ``{"genes": [...]}``. Ensembl ids lose their version.

    Raises:
        InputError: no such file, one that is not text, no gene in it, or a gene listed twice.
    """
    path = Path(path)
    if path.suffix == ".json":
        listed = read_json(path).get("genes")
        if not isinstance(listed, list):
            raise InputError(f'{path} holds no list of genes; expected {{"genes": [...]}}')
        lines = [str(gene) for gene in listed]
    else:
        with text_lines(path, "gene list") as text:
            lines = list(text)
    lines = [line.split("#")[0].strip() for line in lines]
    genes = [line.removeprefix("- ").strip("'\" ") for line in lines]
    genes = [without_version(gene) for gene in genes if gene and not gene.endswith(":")]
    if not genes:
        raise InputError(f"the gene list {path} names no gene; expected one gene a line")
    twice = pd.Index(genes)[pd.Index(genes).duplicated()]
    if len(twice):
        raise InputError(f"the gene list {path} names {twice[0]} twice; list each gene once")
    return genes


def without_version(name: str) -> str:
    """An Ensembl gene id without its version, ``ENSG00000141510.18``; any other name as it is.

    The mark of the copies on chromosome Y stays: ``ENSG00000182378.15_PAR_Y``.
    """
    found = VERSIONED_ID.fullmatch(name)
    return f"{found[1]}{found[2] or ''}" if found else name


def select_panel(
    tables: dict[str, pd.DataFrame], panel: str, key: GeneKey | None = None
) -> pd.DataFrame:
    """The genes a model is trained on.

    Args:
        tables: gene table (index gene, columns gene_id, symbol) of every training slide.
        panel: ``common`` (measured on all of them), ``detected`` (the same here; what the spots
            detect is seen when they are read), ``union`` (on at least one; the loss skips
            what a slide did not measure), or a file of gene names, Ensembl ids or symbols.
        key: how the cohort's genes are joined; of these slides alone by default.

    Returns:
        DataFrame gene, gene_id, symbol, in the order of the model's outputs. A gene of a file that
        no slide measures is kept, with what the file calls it.

    Raises:
        InputError: no gene is left, or a file names one gene twice.
    """
    key = key or gene_key(tables.items())
    keyed = {slide: table.set_index(key.of(table), drop=False) for slide, table in tables.items()}
    union = pd.concat([table.loc[table.index.isin(key.names.keys())] for table in keyed.values()])
    union = union[~union.index.duplicated()]
    union = union.assign(gene=[key.names[k] for k in union.index])[["gene", "gene_id", "symbol"]]
    if panel == "union":
        chosen = union
    elif panel in ("common", "detected"):
        everywhere = np.ones(len(union), bool)
        for table in keyed.values():
            everywhere &= union.index.isin(table.index)
        chosen = union[everywhere]
        if chosen.empty:
            raise InputError(
                "no gene is measured on all training slides; use --panel union or a gene list"
            )
        _say_narrow(tables, len(chosen))
    else:
        chosen = _listed(read_gene_list(panel), union, panel)
    return chosen.reset_index(drop=True)


def _say_narrow(tables: Mapping[str, pd.DataFrame], common: int) -> None:
    """A slide with a small targeted panel narrows the genes of all: say which."""
    sizes = {slide: len(table) for slide, table in tables.items()}
    narrow = min(sizes, key=sizes.get)
    usual = int(np.median(list(sizes.values())))
    if sizes[narrow] < usual / 2:
        print(
            f"the panel has only {common:,} genes because slide {narrow} measured {sizes[narrow]:,}"
            f" (the usual slide {usual:,}); leave such slides out, or use --panel union"
        )


def _listed(names: list[str], union: pd.DataFrame, source: str) -> pd.DataFrame:
    """Rows of a union for the genes of a list, in its order; unknown ones under their own name."""
    places = np.full(len(names), -1)
    for column in ("gene", "gene_id", "symbol"):
        known = pd.Index(union[column])
        first = pd.Series(np.arange(len(known)), index=known)
        first = first[~known.duplicated(keep=False) & (known != "")]
        places = np.where(places >= 0, places, first.reindex(names).fillna(-1).astype(int))
    found = places >= 0
    print(
        f"panel {source}: {found.sum():,} of {len(names):,} genes are measured on training slides"
    )
    if not found.any():
        raise InputError(
            f"none of the {len(names):,} genes of {source} (such as {names[0]}) is measured on a "
            f"training slide, whose genes look like {union['gene'].iloc[0]}; give the same kind of "
            "name"
        )
    repeated = pd.Series(places[found]).duplicated(keep=False).to_numpy()
    if repeated.any():
        first, second = np.asarray(names)[found][repeated][:2]
        raise InputError(
            f"the gene list {source} names one gene twice, as {first} and as {second}; list it once"
        )
    chosen = union.iloc[places].reset_index(drop=True)
    unknown = [(name, name if VERSIONED_ID.fullmatch(f"{name}.1") else "", "") for name in names]
    unknown = pd.DataFrame(unknown, columns=chosen.columns)
    chosen[~found] = unknown[~found]
    return chosen


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
    """Scanpy's normalized dispersion, its Seurat flavor, on counts10k-log1p.

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

        data = anndata.AnnData(normalize(counts, library_size, "counts10k-log1p")[:, eligible])
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
