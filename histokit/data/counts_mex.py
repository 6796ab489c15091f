"""Counts from a 10x folder of three text files (MEX): barcodes, features and a matrix."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import scipy.io

from histokit.core.errors import InputError
from histokit.core.files import reading
from histokit.core.tables import text_lines
from histokit.data.counts_hdf5 import GENES, check_memory, genes_only, refuse_probes

_PARTS = {
    "barcodes": ("barcodes.tsv.gz", "barcodes.tsv"),
    "features": ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv"),
    "matrix": ("matrix.mtx.gz", "matrix.mtx"),
}
# Several genomes: GRCh38_ENSG00000141510 and mm10___ENSMUSG00000059552, padded to one length.
_PREFIXED = re.compile(r"(\w[\w.+-]*?)_+(ENS[A-Z]*G\d{6,}.*)")


def is_mex(folder: Path) -> bool:
    """Whether a folder holds a matrix with its barcodes and features, plain or gzipped.

    Their names may have a prefix, as those of published data sets.
    """
    return len(mex_files(folder)) == len(_PARTS)


def mex_files(folder: Path) -> tuple[Path, ...]:
    """The files of barcodes, features and matrix, as far as they are there.

    Raises:
        InputError: two of one kind with different prefixes.
    """
    found = [_part(folder, names) for names in _PARTS.values()]
    return tuple(path for path in found if path is not None)


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    if plain := next(filter(Path.is_file, map(folder.joinpath, names)), None):
        return plain
    endings = tuple(f"_{name}" for name in names)
    found = sorted(p for p in folder.glob("[!.]*") if p.name.endswith(endings) and p.is_file())
    if len(found) > 1:
        raise InputError(
            f"{found[0]} and {found[1]} are both there, and one matrix is wanted; move the other "
            "to a folder of its own"
        )
    return next(iter(found), None)


def read_mex(folder: Path):
    """Matrix, barcodes, names, ids and dropped features of a MEX folder.

    Raises:
        InputError: a damaged file, files that do not belong together, or no genes.
    """
    of_barcodes, of_features, of_matrix = mex_files(folder)
    barcodes = [row[0] for row in _rows(of_barcodes, 1)]
    plain = of_features.name.startswith("genes")
    features = _rows(of_features, 2 if plain else 3)
    matrix = _matrix(of_matrix)
    if matrix.shape != (len(features), len(barcodes)):
        raise InputError(
            f"{of_matrix} is {matrix.shape[0]} x {matrix.shape[1]}, where {folder} has "
            f"{len(features)} features and {len(barcodes)} barcodes; copy the three files again"
        )
    ids, names = [row[0] for row in features], [row[1] for row in features]
    refuse_probes(ids, folder)
    kinds = [GENES if plain else row[2] for row in features]
    return genes_only(matrix.T.tocsr(), barcodes, names, ids, kinds, folder)


def _rows(path: Path, fields: int) -> list[list[str]]:
    """Tab-separated lines without a header, of at least ``fields`` fields."""
    with text_lines(path, "list of a 10x matrix") as lines:
        rows = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    short = next((i for i, row in enumerate(rows, 1) if len(row) < fields), None)
    if short is not None:
        raise InputError(
            f"row {short} of {path} has {len(rows[short - 1])} fields, expected {fields}: id, "
            "name and feature type, with tabs between"
        )
    return rows


def _matrix(path: Path):
    """The matrix (features, barcodes) in CSC form, every entry single."""
    with reading(path, "Matrix Market file"):
        rows, columns, entries, form, field, symmetry = scipy.io.mminfo(path)
        if (form, symmetry) != ("coordinate", "general") or field in ("complex", "pattern"):
            raise InputError(
                f"{path} is a Matrix Market file ({form}, {field}, {symmetry}); counts are "
                "coordinate, integer or real, general"
            )
        check_memory(24 * entries + 8 * (rows + columns), path)
        found = scipy.io.mmread(path)
    matrix = found.tocsc()
    if matrix.nnz != found.nnz:
        raise InputError(
            f"{path} holds an entry of the matrix twice; the file is damaged, or its entries were "
            "not summed"
        )
    return matrix


def without_genomes(ids: list[str]) -> tuple[list[str], str]:
    """Ensembl ids without the genome before them, and a note of how many genomes there are."""
    found = [_PREFIXED.fullmatch(name) for name in ids]
    genomes = [match[1] for match in found if match]
    if not genomes:
        return ids, ""
    names, sizes = np.unique(genomes, return_counts=True)
    listed = [f"{name} ({size:,} genes)" for name, size in zip(names, sizes, strict=True)]
    if len(genomes) < len(ids):
        listed.append(f"others ({len(ids) - len(genomes):,})")
    plain = [match[2] if match else name for match, name in zip(found, ids, strict=True)]
    return plain, f"genomes, named before each gene ({len(listed)}): {', '.join(listed)}"
