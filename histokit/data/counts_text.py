"""Counts from text tables, one line at a time into CSR: never dense in memory."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.core.tables import delimiter_of, text_lines

# Columns that tables of spots have and that no gene is called.
ANNOTATIONS = frozenset(
    "barcode barcodes cell_id spot_id in_tissue selected row array_row array_col "
    "pxl_row_in_fullres pxl_col_in_fullres pixel_x pixel_y x y x_coord y_coord imagerow imagecol "
    "n_counts total_counts n_genes n_genes_by_counts ncount_rna nfeature_rna ncount_spatial "
    "nfeature_spatial percent.mt percent_mt pct_counts_mt log1p_total_counts "
    "log1p_n_genes_by_counts cluster clusters leiden louvain seurat_clusters orig.ident sample "
    "sample_id library_id patient cell_type annotation label region".split()
)


def read_text(path: Path) -> tuple[sp.csr_matrix, list[str], list[str], None]:
    """Counts, barcodes, gene names and no ids of a table with barcodes as rows.

    The delimiter is what the header uses most of comma, tab and semicolon. Blank lines say nothing.

    Raises:
        InputError: names file and line: ragged, not a number, columns that are no genes.
    """
    barcodes, columns, values, lengths, names = [], [], [], [0], None
    with text_lines(path, "table of counts") as text:
        first = next((line for line in text if line.strip()), None)
        if first is None:
            raise InputError(f"{path} is empty; a header of gene names was expected")
        delimiter = delimiter_of(first)
        (header,) = csv.reader([first], delimiter=delimiter)
        for fields in csv.reader(text, delimiter=delimiter):
            if not any(fields):
                continue
            if names is None:  # R's write.table leaves out the name of the barcode column
                names = header if len(header) == len(fields) - 1 else header[1:]
            number = len(barcodes) + 2
            if len(fields) != len(names) + 1:
                raise InputError(
                    f"line {number} of {path} has {len(fields)} columns where the header asks for "
                    f"{len(names) + 1}; the file may be cut short"
                )
            nonzero = [i for i, field in enumerate(fields[1:]) if field != "0"]
            barcodes.append(fields[0])
            columns.append(np.array(nonzero, dtype=np.int32))
            values.append(_numbers([fields[i + 1] for i in nonzero], number, path))
            lengths.append(len(nonzero))
    if names is None:
        raise InputError(f"{path} has a header and no rows; one row a barcode was expected")
    plain = [name.strip().lower() for name in names]
    foreign = [
        name
        for name, low in zip(names, plain, strict=True)
        if low in ANNOTATIONS or low.startswith(("pct_counts_", "unnamed: "))
    ]
    if all(re.fullmatch(r"[vx]?\d+", low) for low in plain):
        raise InputError(
            f"{path} calls its genes {names[0]}, ...: these are numbers of columns; the header "
            "must name genes"
        )
    if foreign:
        raise InputError(
            f"{path} has columns that are no genes ({', '.join(foreign[:5])}); counts need genes "
            "alone, put annotations of spots into the table of spots"
        )
    matrix = sp.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.cumsum(lengths)),
        shape=(len(barcodes), len(names)),
    )
    matrix.eliminate_zeros()
    return matrix, barcodes, names, None


def _numbers(fields: list[str], line: int, path: Path) -> np.ndarray:
    """Text to float64; an empty field is a missing value (NaN), which the check reports."""
    try:
        return np.array([field or "nan" for field in fields], dtype=np.float64)
    except ValueError as error:
        raise InputError(
            f"line {line} of {path} holds something that is no number ({str(error)[:80]}); counts "
            "must be numbers with a decimal point, with barcodes as rows"
        ) from error
