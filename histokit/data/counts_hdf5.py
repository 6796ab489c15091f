"""Counts from HDF5 files: AnnData and 10x, of which only what is needed is read and all is checked.

Files of other versions and of other programs hold elements that this AnnData cannot read; they are
never touched. Sparse indices are checked in full before anything multiplies with them, because
SciPy does not and would read memory that is not its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import anndata
import h5py
import numpy as np
import scipy.sparse as sp
from anndata.io import read_elem

from histokit.core.errors import InputError
from histokit.core.files import open_hdf5

ID_COLUMNS = ("gene_id", "gene_ids", "ensembl_id", "ensembl")
SYMBOL_COLUMNS = ("symbol", "gene_symbols", "gene_symbol", "gene_name", "feature_name", "features")
KIND_COLUMNS = ("feature_types", "feature_type", "feature_biotype")
GENES = "Gene Expression"
# Kinds of features that are no genes. A column that names none of these and no genes says something
# else, such as a biotype.
OTHERS = frozenset(
    "antibody capture,protein expression,crispr guide capture,multiplexing capture,custom,peaks,"
    "antigen capture,chromatin accessibility,negative control probe,negative control codeword,"
    "unassigned codeword,deprecated codeword,genomic control,blank codeword,spike-in".split(",")
)
RAW = "raw"  # how --layer names raw.X
_ROWS = 1024  # of a dense matrix at a time
_MAGIC = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> str | None:
    """``10x`` or ``h5ad`` for an HDF5 file, whatever it is called; None for another file.

    Raises:
        InputError: an HDF5 file that is neither.
    """
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return None
    with open_hdf5(path, "HDF5 file of counts") as file:
        if "matrix" in file and isinstance(file["matrix"], h5py.Group):
            return "10x"
        if "obs" in file and "var" in file:
            return "h5ad"
        raise InputError(
            f"{path} is HDF5 but neither AnnData (obs, var, X) nor 10x (matrix): it holds "
            f"{', '.join(list(file)[:8]) or 'nothing'}"
        )


def read_10x(path: Path):
    """Matrix, barcodes, names, ids and dropped features of a 10x ``matrix`` group (version 3)."""
    with open_hdf5(path, "10x matrix") as file:
        group = file["matrix"]
        if "features" not in group:
            raise InputError(f"{path} is a 10x matrix of an old version without features")
        features = group["features"]
        genes, spots = (int(size) for size in group["shape"][:])
        arrays = [_array(group[key], path) for key in ("data", "indices", "indptr")]
        barcodes, names, ids = (
            _text(node, path) for node in (group["barcodes"], features["name"], features["id"])
        )
        if "feature_type" not in features:
            raise InputError(
                f"{path} does not say which features are genes (no feature_type); write it again "
                "with Space Ranger, or give an .h5ad"
            )
        kinds = _text(features["feature_type"], path)
        if "probe_region" in features and len(set(ids)) < len(ids):
            raise InputError(
                f"{path} counts probes, several of them a gene; give the file "
                "filtered_feature_bc_matrix.h5 of the same run"
            )
    if {len(names), len(ids), len(kinds)} != {genes} or len(barcodes) != spots:
        raise InputError(
            f"{path} has {len(barcodes)} barcodes and {len(names)} features for a matrix of "
            f"{spots} x {genes}; it is damaged, copy it again"
        )
    matrix = checked_csr(*arrays, (spots, genes), path)
    refuse_probes(ids, path)
    return genes_only(matrix, barcodes, names, ids, kinds, path)


def refuse_probes(ids: list[str], path: Path) -> None:
    """Raise InputError where most ids are those of probes, ``ENSG...|gene|probe``."""
    if sum("|" in i for i in ids) > len(ids) / 2:
        raise InputError(
            f"{path} counts probes and not genes (ids like {ids[0]}); give the file "
            "filtered_feature_bc_matrix.h5 of the same run"
        )


def read_h5ad(path: Path, layer: str | None):
    """Matrix, barcodes, names, ids, dropped features and a note of an AnnData file."""
    with open_hdf5(path, "AnnData file") as file:
        if isinstance(file["var"], h5py.Dataset):  # written before AnnData 0.7
            return _read_old(path, layer)
        place, note = _place(file, layer, path)
        var = file["raw/var"] if place.startswith("raw") and "raw/var" in file else file["var"]
        barcodes, names = row_names(file["obs"], path), row_names(var, path)
        columns, there = {}, {key.casefold(): key for key in var}
        for key in (*ID_COLUMNS, *SYMBOL_COLUMNS, *KIND_COLUMNS):
            if key in there:
                columns[key] = [str(value) for value in read_elem(var[there[key]])]
                if len(columns[key]) != len(names):
                    raise InputError(
                        f"{path}: the column {key} has {len(columns[key])} entries for "
                        f"{len(names)} genes; the file is damaged, copy it again"
                    )
        matrix = read_matrix(file[place], (len(barcodes), len(names)), path)
        if layer is None and not _is_raw(matrix):
            holders = [name for name in _layers(file) if _layer_is_raw(file, name, path)]
            if holders:
                raise InputError(
                    f"{path}: X holds values that are no raw counts; raw counts are in "
                    f"{', '.join(holders)}, give --layer {holders[0]}"
                )
    names, ids = _named(names, columns, path)
    kinds = next((columns[key] for key in KIND_COLUMNS if key in columns), [GENES] * len(names))
    found = genes_only(matrix, barcodes, names, ids, kinds, path)
    return *found, note


def _read_old(path: Path, layer: str | None):
    """AnnData's own reader understands its old versions."""
    table = anndata.read_h5ad(path)
    matrix = table.X
    if layer is not None:
        matrix = table.raw.X if layer == RAW else table.layers[layer]
    columns = {
        key.casefold(): [v.decode() if isinstance(v, bytes) else str(v) for v in table.var[key]]
        for key in table.var
    }
    names, ids = _named([str(n) for n in table.var_names], columns, path)
    kinds = next((columns[key] for key in KIND_COLUMNS if key in columns), [GENES] * len(names))
    barcodes = [str(b) for b in table.obs_names]
    return *genes_only(sp.csr_matrix(matrix), barcodes, names, ids, kinds, path), ""


def _layers(file: h5py.File) -> list[str]:
    found = list(file["layers"]) if "layers" in file else []
    return found + [RAW] * ("raw/X" in file)


def _place(file: h5py.File, layer: str | None, path: Path) -> tuple[str, str]:
    """Where in the file the counts lie, and what to say of the choice."""
    layers = _layers(file)
    if layer is not None:
        if layer not in layers:
            raise InputError(
                f"{path} has no layer {layer!r}; there are {', '.join(layers) or 'none'}"
            )
        return ("raw/X" if layer == RAW else f"layers/{layer}"), f"counts of layer {layer}"
    if "X" in file:
        return "X", ""
    if "counts" in layers:
        return "layers/counts", "counts of layer counts, X is absent"
    raise InputError(
        f"{path} has no X; it has the layers {', '.join(layers) or 'none'}, give --layer NAME"
    )


def _named(names: list[str], columns: dict, path: Path) -> tuple[list[str], list[str] | None]:
    """Names and ids of genes: symbols in place of ids and of row numbers where there are some."""
    ids = next((columns[key] for key in ID_COLUMNS if key in columns), None)
    symbols = next((columns[key] for key in SYMBOL_COLUMNS if key in columns), None)
    blank = ("", "nan", "None", "NA", "<NA>")
    if ids is not None:
        ids = ["" if i in blank else i for i in ids]
    if names and all(re.fullmatch(r"[VX]?\d+", name) for name in names):  # V1, X1: R's way
        better = symbols or ids
        if better is None:
            raise InputError(
                f"{path} calls its genes {names[0]}, {names[1 % len(names)]}, ...: these are row "
                f"numbers; put names into var_names, or a column {' or '.join(SYMBOL_COLUMNS)}"
            )
        names = better
        if any(name in blank for name in names):
            raise InputError(f"{path} has genes without a name; var_names are row numbers there")
    as_ids = [bool(re.match(r"ENS[A-Z]*G\d{6,}", name)) for name in names]
    if sum(as_ids) > len(names) / 2:
        known = ids or [""] * len(names)
        rows = zip(names, as_ids, known, symbols or [""] * len(names), strict=True)
        named = [(s if i and s not in blank else n, n if i else k) for n, i, k, s in rows]
        names, ids = [n for n, _ in named], [i for _, i in named]
    return names, ids


def genes_only(matrix, barcodes, names, ids, kinds, path: Path):
    """Leave out features of other kinds, such as antibodies; counts of each kind."""
    plain = [kind.strip().casefold() for kind in kinds]
    is_gene = np.array([kind in ("gene expression", "gene") for kind in plain], dtype=bool)
    if not is_gene.any():
        is_gene = np.array([kind not in OTHERS for kind in plain], dtype=bool)
    if not is_gene.any():
        raise InputError(
            f"{path} holds no feature of the type {GENES!r} (found: "
            f"{', '.join(sorted(set(kinds)))[:200]}); give a matrix of genes"
        )
    dropped = {}
    for kind, keep in zip(kinds, is_gene, strict=True):
        if not keep:
            dropped[kind] = dropped.get(kind, 0) + 1
    if not dropped:
        return matrix, barcodes, names, ids, dropped

    def kept(values):
        return None if values is None else [v for v, k in zip(values, is_gene, strict=True) if k]

    return matrix[:, is_gene], barcodes, kept(names), kept(ids), dropped


def _array(node: h5py.Dataset, path: Path) -> np.ndarray:
    """A one-dimensional array, once it is known to fit into memory."""
    if node.ndim != 1 or node.dtype.kind not in "iuf":
        raise InputError(f"{path}: {node.name} is no list of numbers; the file is damaged")
    check_memory(node.size * max(node.dtype.itemsize, 8), path)
    return node[:]


def check_memory(size: int, path: Path) -> None:
    """Refuse what would not fit into half of this machine's memory, before it is allocated."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > whole / 2:
        raise InputError(
            f"{path} asks for {size / 1e9:,.0f} GB of memory and this machine has "
            f"{whole / 1e9:,.0f} GB; it is damaged, or too large to be read at once"
        )


def _text(node: h5py.Dataset, path: Path) -> list[str]:
    check_memory(node.size * 64, path)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in node[:].tolist()]


def row_names(group: h5py.Group, path: Path) -> list[str]:
    """The row names of an AnnData table, without its other columns."""
    node = group[group.attrs.get("_index", "_index")]
    check_memory(node.size * 64, path)
    return [v.decode() if isinstance(v, bytes) else str(v) for v in read_elem(node)]


def read_matrix(
    node: h5py.Group | h5py.Dataset, shape: tuple[int, int], path: Path
) -> sp.csr_matrix:
    """X or a layer as CSR; a dense one goes in by blocks of rows."""
    if isinstance(node, h5py.Dataset):
        if node.shape != shape or node.dtype.kind not in "iufb":
            raise InputError(
                f"{path}: {node.name} is {node.shape} of {node.dtype} where {shape} numbers were "
                "expected; the file is damaged"
            )
        parts = [sp.csr_matrix(node[i : i + _ROWS]) for i in range(0, shape[0], _ROWS)]
        return sp.csr_matrix(sp.vstack(parts, format="csr")) if parts else sp.csr_matrix(shape)
    kind = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    arrays = [_array(node[key], path) for key in ("data", "indices", "indptr")]
    if kind.startswith("csc"):
        return checked_csr(*arrays, shape[::-1], path).T.tocsr()
    return checked_csr(*arrays, shape, path)


def checked_csr(data, indices, indptr, shape: tuple[int, int], path: Path) -> sp.csr_matrix:
    """A CSR matrix whose every index is known to be in range, ascending and single in its row.

    Raises:
        InputError: an index out of range, a column twice in a row, arrays that do not fit.
    """
    indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    if len(indptr) != shape[0] + 1 or indptr[0] != 0 or indptr[-1] != len(data):
        raise InputError(
            f"{path}: the row offsets of the matrix do not fit its {shape[0]} rows and "
            f"{len(data)} entries; the file is damaged, copy it again"
        )
    if len(indices) != len(data) or (np.diff(indptr) < 0).any():
        raise InputError(f"{path}: the matrix is damaged (row offsets fall); copy it again")
    bad = (indices < 0) | (indices >= shape[1])
    if bad.any():
        raise InputError(
            f"{path}: entry {int(np.argmax(bad))} of the matrix is in column "
            f"{indices[np.argmax(bad)]} of {shape[1]}; the file is damaged, copy it again"
        )
    matrix = sp.csr_matrix((data, indices, indptr), shape=shape)
    matrix.sort_indices()
    twice = np.diff(matrix.indices) == 0
    ends = matrix.indptr[1:-1]
    twice[ends[(ends > 0) & (ends < len(data))] - 1] = False  # the same column in two rows
    if twice.any():
        entry = int(np.argmax(twice))
        row = int(np.searchsorted(matrix.indptr, entry, side="right") - 1)
        raise InputError(
            f"{path}: row {row} of the matrix holds column {matrix.indices[entry]} twice; the file "
            "is damaged, or its entries were not summed"
        )
    return matrix


def _is_raw(matrix: sp.csr_matrix) -> bool:
    data = matrix.data
    return bool(np.isfinite(data).all() and (data >= 0).all() and (data == np.round(data)).all())


def _layer_is_raw(file: h5py.File, name: str, path: Path) -> bool:
    """Whether a layer holds raw counts; one that cannot be read does not."""
    place = "raw/X" if name == RAW else f"layers/{name}"
    var = file["raw/var" if name == RAW else "var"]
    shape = (len(row_names(file["obs"], path)), len(row_names(var, path)))
    try:
        return _is_raw(read_matrix(file[place], shape, path))
    except InputError:
        return False
