"""Raw counts from h5ad, 10x h5 or folders, and text matrices: validated, with unique gene names.

Gene names follow scverse: where a symbol occurs twice and its ids tell the two apart, the first
keeps its name and the later ones get ``-1``, ``-2``; without ids two equal names are an error.
Control probes (BLANK, NegControl, NegPrb, Unassigned, antisense, DeprecatedCodeword,
Intergenic_Region) measure no gene and are dropped by name; so are names that a spreadsheet turned
into dates (1-Mar may be MARCHF1 or MTARC1) where no Ensembl id says what they were.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.utils import make_index_unique

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.data.counts_hdf5 import is_hdf5, read_10x, read_h5ad
from histokit.data.counts_mex import is_mex, read_mex, without_genomes
from histokit.data.counts_text import read_text
from histokit.data.genes import without_version

CONTROL_PROBE = re.compile(
    r"^(blank|negcontrol|negprb|unassigned|antisense|deprecatedcodeword|intergenic_region)",
    re.IGNORECASE,
)
ENSEMBL_ID = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?(_PAR_Y)?$")
PROBE = re.compile(r"ENS[A-Z]*G\d+\|[^|]*\|[^|]*")
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec)[a-z]*"
# 1-Mar, 1-Mar-2004, Sep-2 (JUN-1 and MAY-1 may be second genes), 2001-03-01, 01/03/2001, 43891
DATE = re.compile(
    rf"^(\d{{1,2}}[-/. ]{_MONTH}([-/. ]\d{{2,4}})?"
    r"|(feb|mar|apr|sep|sept|oct|nov|dec)-\d{1,4}"
    r"|\d{4}-\d\d-\d\d( 00:00:00)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}|\d+)$",
    re.IGNORECASE,
)
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
LARGEST = 1 << 24
_ALIKE = 5  # spots from which equal library sizes are no accident


@dataclasses.dataclass
class RawTable:
    """What a counts file holds.

    Attributes:
        matrix: (N, G) CSR.
        barcodes: (N,) names of spots.
        names: (G,) names of genes, in the file's words.
        ids: (G,) Ensembl ids, or None where the file has none.
        dropped: features of other kinds (antibodies, ...) that were left out, by kind.
        note: what was chosen in reading, such as a layer; empty where there was no choice.
    """

    matrix: sp.csr_matrix
    barcodes: list[str]
    names: list[str]
    ids: list[str] | None
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""


def read_counts(
    path: str | os.PathLike, slide_id: str, layer: str | None = None
) -> anndata.AnnData:
    """Read raw counts of one slide; the format is told by the file's content.

    Args:
        path: an AnnData file (X holds raw counts, or ``layer`` does), a 10x matrix in HDF5 or as
            a folder of barcodes, features and matrix, or a text table, plain or gzipped, with
            barcodes as rows and gene names in the header. Of several genomes, names keep the
            genome before them and ids lose it.
        slide_id: named in error messages.
        layer: the layer of an AnnData file, in place of X; ``raw`` is ``raw.X``.

    Returns:
        X: CSR float32 (spots, genes); obs_names barcodes; var_names unique gene names; var columns
        ``gene_id`` (Ensembl id without version, or ""), ``symbol``, ``measured``;
        ``uns["control_probes"]``, ``uns["other_features"]`` and ``uns["date_names"]`` count what
        was dropped, ``uns["renamed_genes"]`` the names made unique, ``uns["note"]`` says what was
        chosen.

    Raises:
        InputError: unreadable file, duplicated barcodes, gene names that nothing tells apart, no
            gene at all, or counts that are missing, negative, not whole numbers or scaled.
    """
    path = Path(path)
    where = f"slide {slide_id}: {path}"
    if path.is_dir() and not is_mex(path):
        raise InputError(
            f"{where} is a folder without barcodes.tsv, features.tsv and matrix.mtx (or .gz of "
            "them); give a counts file, or a folder with these three"
        )
    if not path.exists():
        raise InputError(f"{where} does not exist; a counts file was expected there")
    table = _read(path, slide_id, layer)
    table.barcodes = [name.strip() for name in table.barcodes]
    names = [without_version(name.strip()) for name in table.names]
    if table.matrix.shape != (len(table.barcodes), len(names)):
        raise InputError(
            f"{where} holds a matrix {table.matrix.shape} for {len(table.barcodes)} barcodes and "
            f"{len(names)} genes; it is damaged, copy it again"
        )
    if "" in names:
        raise InputError(
            f"{where} has a gene without a name (number {names.index('') + 1}); name it or leave "
            "it out"
        )
    if any(PROBE.fullmatch(name) for name in names):
        raise InputError(
            f"{where} counts probes, several of them a gene (such as "
            f"{next(n for n in names if PROBE.fullmatch(n))}); give the matrix of genes"
        )
    if repeated := _first_repeated(table.barcodes):
        raise InputError(f"{where} has the barcode {repeated!r} twice; barcodes must be unique")
    _check_raw(table.matrix, table.barcodes, names, where)
    _check_library(table.matrix, where)
    ids, genomes = None, ""
    if table.ids is not None:
        plain, genomes = without_genomes([i.strip() for i in table.ids])
        ids = [without_version(i) for i in plain]
    control = np.array([bool(CONTROL_PROBE.match(name)) for name in names], dtype=bool)
    dates = np.array([bool(DATE.match(name)) for name in names], dtype=bool) & ~control
    if ids is not None:  # an id says what such a gene was, and names it
        known = dates & np.array([bool(ENSEMBL_ID.match(i)) for i in ids], dtype=bool)
        names = [i if k else name for i, k, name in zip(ids, known, names, strict=True)]
        dates &= ~known
    keep = ~control & ~dates
    if not keep.any():
        raise InputError(
            f"{where} holds no gene: all of its {len(names)} features are control probes or dates"
        )
    genes = gene_table(np.asarray(names, dtype=object)[keep], _masked(ids, keep), where)
    result = anndata.AnnData(
        table.matrix.tocsr()[:, keep].astype(np.float32),
        obs=pd.DataFrame(index=pd.Index(table.barcodes, dtype=str)),
        var=genes,
    )
    result.uns["control_probes"] = int(control.sum())
    result.uns["date_names"] = int(dates.sum())
    result.uns["other_features"] = sum(table.dropped.values())
    result.uns["renamed_genes"] = int((genes.index != genes["symbol"]).sum())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in table.dropped.items())
    said = [table.note, genomes, kinds and f"left out {kinds}"]
    result.uns["note"] = "; ".join(filter(None, said))
    return result


def _read(path: Path, slide_id: str, layer: str | None) -> RawTable:
    """Choose a reader by content and turn its failures into one sentence."""
    kind = "mex" if path.is_dir() else None
    if kind is None:
        with reading(path, "counts file"):
            kind = is_hdf5(path)
    try:
        with warnings.catch_warnings():  # repeated names are dealt with below
            warnings.filterwarnings("ignore", ".*names are not unique", UserWarning)
            if kind == "10x":
                _no_layer(layer, "a 10x matrix")
                return RawTable(*read_10x(path))
            if kind == "mex":
                _no_layer(layer, "a 10x matrix")
                return RawTable(*read_mex(path))
            if kind == "h5ad":
                return RawTable(*read_h5ad(path, layer))
            if kind is None and not path.name.lower().endswith(TEXT_SUFFIXES):
                raise InputError(
                    f"{path} is no known counts format; use .h5ad, 10x .h5 or a text table "
                    f"({', '.join(TEXT_SUFFIXES)})"
                )
            _no_layer(layer, "a text table")
            return RawTable(*read_text(path))
    except InputError as error:
        raise InputError(f"slide {slide_id}: {error}") from error


def _no_layer(layer: str | None, what: str) -> None:
    if layer is not None:
        raise InputError(f"--layer {layer} belongs to an AnnData file, and this is {what}")


def _masked(values, keep: np.ndarray):
    return None if values is None else np.asarray(values, dtype=object)[keep]


def _first_repeated(values) -> str | None:
    index = pd.Index(values)
    repeated = index[index.duplicated()]
    return str(repeated[0]) if len(repeated) else None


def _check_library(matrix: sp.csr_matrix, where: str) -> None:
    """Refuse rounded CPM and the like: counts of different spots never add up to one number."""
    sizes = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    sizes = sizes[sizes > 0]
    if len(sizes) < _ALIKE:
        return
    usual = np.median(sizes)
    # rounding moves a sum by about the root of the number of genes, far below 0.5 %
    if usual > 500 and np.mean(np.abs(sizes - usual) <= 0.005 * usual) > 0.95:
        raise InputError(
            f"{where}: all spots add up to about {usual:,.0f}, so these are scaled values and not "
            "raw counts; give the raw counts (--layer NAME where a layer holds them)"
        )


def _check_raw(matrix: sp.csr_matrix, barcodes, names, where: str) -> None:
    data = matrix.data
    for bad, what in (
        (~np.isfinite(data), "is not a number"),
        (data < 0, "is negative"),
        (data != np.round(data), "is not a whole number"),
        (data > LARGEST, f"is above {LARGEST:,}, beyond which float32 is not exact"),
    ):
        if bad.any():
            entry = int(np.argmax(bad))
            row = int(np.searchsorted(matrix.indptr, entry, side="right") - 1)
            raise InputError(
                f"{where}: the count of gene {names[matrix.indices[entry]]} in barcode "
                f"{barcodes[row]} {what} ({data[entry]:g}); raw counts are expected"
            )


def gene_table(names: np.ndarray, ids, where: str) -> pd.DataFrame:
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
    table["gene_id"] = [without_version(i) if ENSEMBL_ID.match(i) else "" for i in ids]
    table["measured"] = True
    table.index = make_index_unique(pd.Index(table.index, dtype=str))
    return table
