"""Text tables from anywhere: CSV and TSV, plain or gzipped, read as text and checked.

A table is accepted whole or refused in one sentence: UTF-8, one header, as many fields in every
line, no line longer than ``LINE_LIMIT``. Blank lines are skipped. Cells stay text, so ``NA`` is a
word and ``01`` is not 1.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import reading

LINE_LIMIT = 1 << 25  # characters; 60,000 genes of 20 characters fill a thirtieth of it
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons"}


@contextmanager
def text_lines(path: str | os.PathLike, what: str = "text file") -> Iterator[Iterator[str]]:
    """Yield the lines of a UTF-8 text file, plain or gzipped (told by its content).

    Memory is bounded: a line longer than ``LINE_LIMIT`` is refused before it is read whole.

    Raises:
        InputError: the file cannot be opened, is damaged, is not UTF-8, or has an endless line.
    """
    with reading(path, what), open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        binary = gzip.GzipFile(fileobj=raw) if zipped else raw
        with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
            yield _bounded(text, path)


def _bounded(text: io.TextIOWrapper, path) -> Iterator[str]:
    number = 0
    while line := text.readline(LINE_LIMIT):
        number += 1
        if len(line) == LINE_LIMIT and not line.endswith("\n"):
            raise InputError(
                f"line {number} of {path} is longer than {LINE_LIMIT:,} characters; this is not "
                "a text table"
            )
        yield line


def delimiter_of(header: str, columns: Sequence[str] = ()) -> str:
    """The delimiter that a header line uses: the one that shows all ``columns``, else most fields.

    Commas are preferred to tabs, tabs to semicolons.
    """

    def merit(delimiter: str) -> tuple[bool, int]:
        fields = [field.strip().strip('"') for field in header.rstrip("\r\n").split(delimiter)]
        return (bool(columns) and set(columns) <= set(fields), len(fields))

    return max(DELIMITERS, key=merit)


def read_table(
    path: str | os.PathLike, columns: Sequence[str] = (), what: str = "table"
) -> pd.DataFrame:
    """Read a CSV or TSV, plain or gzipped; every cell is text, without outer blanks.

    Args:
        path: the file.
        columns: that must be there; further ones are kept.
        what: the file in words, for error messages, such as ``metadata table``.

    Returns:
        One row a line, columns in their order.

    Raises:
        InputError: unreadable, empty, not UTF-8, a missing or repeated column, a line with more or
            fewer fields than the header; names the file and the line.
    """
    with text_lines(path, what) as lines:
        header = next((line for line in lines if line.strip()), None)
        if header is None:
            raise InputError(f"{path} is empty; a {what} with a header line was expected")
        delimiter = delimiter_of(header, columns)
        rows = csv.reader(_chained(header, lines), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(rows)]
        for column in columns:
            if column not in names:
                raise InputError(
                    f"{path} has no column {column!r}; this {what} needs {', '.join(columns)} "
                    f"(found: {', '.join(names)[:200]})"
                )
        repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if repeated is not None:
            raise InputError(f"{path} has the column {repeated!r} twice; column names are unique")
        found = []
        for row in rows:
            if not any(row):
                continue  # a line of delimiters alone says nothing
            if len(row) != len(names):
                raise InputError(
                    f"line {rows.line_num} of {path} has {len(row)} fields where the header has "
                    f"{len(names)}; the file may be cut short, or a field holds a "
                    f"{DELIMITERS[delimiter].removesuffix('s')} without quotes"
                )
            found.append([cell.strip() for cell in row])
    return pd.DataFrame(found, columns=names, dtype=str)


def _chained(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines
