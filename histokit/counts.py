"""Raw counts from h5ad, 10x h5 and text matrices: validated, with unique gene names.

Gene names follow scverse: where a symbol occurs twice and its ids tell the two apart, the first
keeps its name and the later ones get ``-1``, ``-2``; without ids two equal names are an error.
Control probes (BLANK, NegControl, NegPrb, Unassigned, antisense, DeprecatedCodeword,
Intergenic_Region) measure no gene and are dropped by name.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.utils import make_index_unique

from histokit.errors import InputError

CONTROL_PROBE = re.compile(
    r"^(blank|negcontrol|negprb|unassigned|antisense|deprecatedcodeword|intergenic_region)",
    re.IGNORECASE,
)
ENSEMBL_ID = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")
ID_COLUMNS = ("gene_id", "gene_ids", "ensembl_id", "ensembl")
SYMBOL_COLUMNS = ("symbol", "gene_symbols", "gene_symbol", "gene_name", "feature_name")
SUFFIXES = (".h5ad", ".h5", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def read_counts(path: str | os.PathLike, slide_id: str) -> anndata.AnnData:
    """Read raw counts of one slide.

    Args:
        path: ``.h5ad`` (X holds raw counts), 10x ``.h5``, or ``.csv/.tsv[.gz]`` with barcodes as
            rows and gene names in the header.
        slide_id: named in error messages.

    Returns:
        X: CSR float32 (spots, genes); obs_names barcodes; var_names unique gene names; var columns
        ``gene_id`` (Ensembl id or ""), ``symbol``, ``measured``; ``uns["control_probes"]`` counts
        the dropped probes and ``uns["renamed_genes"]`` the names made unique.

    Raises:
        InputError: unreadable file, duplicated barcodes, gene names that nothing tells apart, or
            counts that are missing, negative or not whole numbers.
    """
    path = Path(path)
    where = f"slide {slide_id}: {path}"
    if not path.is_file():
        raise InputError(f"{where} does not exist; a counts file was expected there")
    suffix = next((s for s in sorted(SUFFIXES, key=len)[::-1] if path.name.endswith(s)), None)
    if suffix is None:
        raise InputError(f"{where} is no known counts format; use one of {', '.join(SUFFIXES)}")
    reader = {".h5ad": _read_h5ad, ".h5": _read_10x}.get(suffix, _read_text)
    try:
        with warnings.catch_warnings():  # repeated names are dealt with below
            warnings.filterwarnings("ignore", ".*names are not unique", UserWarning)
            matrix, barcodes, names, ids = reader(path)
    except (OSError, KeyError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"{where} cannot be read as {suffix} ({error}); it may be cut short, copy it again"
        ) from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if repeated := _first_repeated(barcodes):
        raise InputError(f"{where} has the barcode {repeated!r} twice; barcodes must be unique")
    _check_raw(matrix, barcodes, names, where)
    keep = np.array([not CONTROL_PROBE.match(name) for name in names], dtype=bool)
    genes = _gene_table(np.asarray(names, dtype=object)[keep], _masked(ids, keep), where)
    result = anndata.AnnData(
        matrix.tocsr()[:, keep].astype(np.float32),
        obs=pd.DataFrame(index=pd.Index(barcodes, dtype=str)),
        var=genes,
    )
    result.uns["control_probes"] = int((~keep).sum())
    result.uns["renamed_genes"] = int((genes.index != genes["symbol"]).sum())
    return result


def _masked(values, keep: np.ndarray):
    return None if values is None else np.asarray(values, dtype=object)[keep]


def _first_repeated(values) -> str | None:
    index = pd.Index(values)
    repeated = index[index.duplicated()]
    return str(repeated[0]) if len(repeated) else None


def _read_h5ad(path: Path):
    table = anndata.read_h5ad(path)
    matrix = table.X if table.X is not None else table.layers["counts"]
    names = table.var_names.astype(str).to_list()
    ids = next((table.var[c].astype(str).to_list() for c in ID_COLUMNS if c in table.var), None)
    symbols = next((table.var[c].astype(str) for c in SYMBOL_COLUMNS if c in table.var), None)
    if symbols is not None and all(ENSEMBL_ID.match(name) for name in names[:50]):
        ids = names
        names = [s if s not in ("", "nan") else i for s, i in zip(symbols, names, strict=True)]
    return sp.csr_matrix(matrix), table.obs_names.astype(str).to_list(), names, ids


def _read_10x(path: Path):
    """Cell Ranger / Space Ranger ``matrix`` group, genes as rows of a CSC matrix."""
    with h5py.File(path) as file:
        group = file["matrix"]
        features = group["features"]
        genes, spots = group["shape"][:]
        arrays = tuple(group[key][:] for key in ("data", "indices", "indptr"))
        matrix = sp.csr_matrix(arrays, shape=(spots, genes))
        barcodes, names, ids = (
            node.asstr()[:] for node in (group["barcodes"], features["name"], features["id"])
        )
        kind = features["feature_type"].asstr()[:]
    is_gene = kind == "Gene Expression"
    return matrix[:, is_gene], barcodes.tolist(), names[is_gene].tolist(), ids[is_gene].tolist()


def _read_text(path: Path):
    """One line at a time into CSR, so that a whole-transcriptome table is never dense in memory."""
    delimiter = "," if ".csv" in path.name else "\t"
    opener = gzip.open if path.suffix == ".gz" else open
    barcodes, columns, values, lengths = [], [], [], [0]
    with opener(path, "rt", encoding="utf-8-sig", newline="") as handle:
        lines = csv.reader(handle, delimiter=delimiter)
        header = next(lines, None)
        if not header:
            raise ValueError("the table is empty; a header of gene names was expected")
        names = None
        for number, fields in enumerate(lines, start=2):
            if names is None:  # R's write.table leaves out the name of the barcode column
                names = header if len(header) == len(fields) - 1 else header[1:]
            if len(fields) != len(names) + 1:
                raise ValueError(
                    f"line {number} has {len(fields)} columns where the header asks for "
                    f"{len(names) + 1}; the file may be cut short"
                )
            nonzero = [i for i, field in enumerate(fields[1:]) if field != "0"]
            barcodes.append(fields[0])
            columns.append(np.array(nonzero, dtype=np.int32))
            values.append(_numbers([fields[i + 1] for i in nonzero], number))
            lengths.append(len(nonzero))
    if names is None:
        raise ValueError("the table has a header and no rows")
    matrix = sp.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.cumsum(lengths)),
        shape=(len(barcodes), len(names)),
    )
    matrix.eliminate_zeros()
    return matrix, barcodes, names, None


def _numbers(fields: list[str], line: int) -> np.ndarray:
    """Text to float64; an empty field is a missing value (NaN), which the check reports."""
    try:
        return np.array([field or "nan" for field in fields], dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"line {line} holds something that is no number ({error}); counts must be numbers, "
            "with barcodes as rows"
        ) from error


def _check_raw(matrix: sp.csr_matrix, barcodes, names, where: str) -> None:
    data = matrix.data
    for bad, what in (
        (~np.isfinite(data), "is not a number"),
        (data < 0, "is negative"),
        (data != np.round(data), "is not a whole number"),
    ):
        if bad.any():
            entry = int(np.argmax(bad))
            row = int(np.searchsorted(matrix.indptr, entry, side="right") - 1)
            raise InputError(
                f"{where}: the count of gene {names[matrix.indices[entry]]} in barcode "
                f"{barcodes[row]} {what} ({data[entry]:g}); raw counts are expected"
            )


def _gene_table(names: np.ndarray, ids, where: str) -> pd.DataFrame:
    """Unique names with their ids; raises InputError for equal names that no id tells apart."""
    named_by_id = [n if ENSEMBL_ID.match(n) else "" for n in names]
    ids = named_by_id if ids is None else ["" if i == "nan" else i for i in ids]
    table = pd.DataFrame({"gene_id": ids, "symbol": names}, index=names, dtype=object)
    unclear = table["symbol"].duplicated(keep=False) & (
        table.duplicated(["symbol", "gene_id"], keep=False) | (table["gene_id"] == "")
    )
    if unclear.any():
        raise InputError(
            f"{where} has the gene {table['symbol'][unclear].iloc[0]!r} twice and no id to tell "
            "the two apart; add a gene_id column or merge them"
        )
    table["gene_id"] = [re.sub(r"\.\d+$", "", i) if ENSEMBL_ID.match(i) else "" for i in ids]
    table["measured"] = True
    table.index = make_index_unique(pd.Index(table.index, dtype=str))
    return table
