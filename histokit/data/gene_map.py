"""Symbols to Ensembl ids by a given table, and what becomes of symbols that share one id.

HistoPrism's and STPath's authors name genes by such a table (``symbol2ensembl.json``).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histokit.core.errors import InputError
from histokit.core.files import atomic_path, read_json
from histokit.core.tables import read_table
from histokit.data.genes import without_version

COLUMNS = ("symbol", "gene_id")
GENE_MAP = "gene_map.csv"  # in the folder of a run that was trained by one


@dataclasses.dataclass(frozen=True)
class GeneMap:
    """Ensembl ids of symbols.

    Attributes:
        ids: Ensembl id without version, by symbol.
        merge: what becomes of genes of one slide that share an id: ``sum`` adds their counts;
            ``first`` keeps the first of them; ``log-sum`` makes log(1 + count) the sum of theirs,
            as HistoPrism's authors do, who add after taking logarithms.
    """

    ids: Mapping[str, str]
    merge: str = "sum"

    def apply(self, var: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """Genes of a slide under their ids.

        Args:
            var: index gene; columns gene_id, symbol, measured. An id that a slide names itself
                stays.

        Returns:
            The same table with ids filled in and one row an id, and (genes,) int: the row in it
            of each gene, -1 for one that is left out.
        """
        own = var["gene_id"].astype(object)
        table = var.assign(gene_id=own.where(own != "", self._by_symbol(var["symbol"])))
        # what a slide did not measure has no part in what is measured under the same id
        order = np.argsort(~table["measured"].to_numpy(), kind="stable")
        ids = table["gene_id"].to_numpy()
        codes = pd.factorize(ids)[0]
        codes[ids == ""] = len(ids) + np.flatnonzero(ids == "")  # each a gene of its own
        _, leader, member = np.unique(codes[order], return_index=True, return_inverse=True)
        first = np.empty(len(ids), int)
        first[order] = order[leader][member]
        kept = np.unique(first)
        place = np.searchsorted(kept, first)
        second = first != np.arange(len(first))
        dropped = second & ((self.merge == "first") | ~table["measured"].to_numpy())
        return table.iloc[kept], np.where(dropped, -1, place)

    def _by_symbol(self, symbols: pd.Series) -> np.ndarray:
        """(genes,) the id of each symbol, blank for one that the map lacks."""
        places = self._symbols.get_indexer(symbols)
        return np.where(places >= 0, self._values[places], "")

    @cached_property
    def _symbols(self) -> pd.Index:
        return pd.Index(list(self.ids), dtype=object)

    @cached_property
    def _values(self) -> np.ndarray:
        return np.array(list(self.ids.values()), dtype=object)

    def merged(self, counts: sp.csr_matrix, place: np.ndarray, width: int) -> sp.csr_matrix:
        """Counts (N, genes) under the rows of ``apply``: (N, width) CSR."""
        kept = place >= 0
        shared = np.bincount(place[kept], minlength=width) > 1
        if self.merge != "log-sum" or not shared.any():
            return _gather(counts, place, width)
        values = counts.astype(np.float64)
        values.data = np.log1p(values.data)
        logs = _gather(values, np.where(kept & shared[place], place, -1), width)
        logs.data = np.expm1(logs.data)
        if not (counts.data % 1).any():  # whole numbers give whole numbers
            logs.data = np.round(logs.data)
        alone = _gather(counts, np.where(kept & ~shared[place], place, -1), width)
        result = sp.csr_matrix(alone + logs.astype(counts.dtype))
        result.sort_indices()
        return result

    def write(self, path: Path) -> None:
        """As a table symbol,gene_id."""
        table = pd.DataFrame(self.ids.items(), columns=COLUMNS)
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)


def read_gene_map(path: str | Path, merge: str = "sum") -> GeneMap:
    """A JSON object of symbols to ids, or a table with the columns symbol and gene_id.

    Raises:
        InputError: another kind of file, a value that is no Ensembl id, a symbol of two ids.
    """
    path = Path(path)
    if path.suffix == ".json":
        pairs = list(read_json(path).items())
    else:
        table = read_table(path, COLUMNS, "map of symbols to Ensembl ids")
        pairs = list(table[list(COLUMNS)].itertuples(index=False, name=None))
    ids: dict[str, str] = {}
    for symbol, given in pairs:
        gene_id = without_version(given) if isinstance(given, str) else ""
        if not re.fullmatch(r"ENS[A-Z]*G\d{6,}(_PAR_Y)?", gene_id):
            raise InputError(
                f"{path} maps {symbol[:40]!r} to {str(given)[:40]!r}; an Ensembl gene id, such as "
                "ENSG00000141510, was expected"
            )
        if ids.setdefault(symbol, gene_id) != gene_id:
            raise InputError(
                f"{path} maps {symbol[:40]!r} to {ids[symbol]} and to {gene_id}; keep one of them"
            )
    if not ids:
        raise InputError(f"{path} maps no symbol; expected lines of symbol,gene_id")
    return GeneMap(ids, merge)


def _gather(counts: sp.csr_matrix, place: np.ndarray, width: int) -> sp.csr_matrix:
    """Columns added up where ``place`` says; -1 goes nowhere."""
    found = np.flatnonzero(place >= 0)
    ones = np.ones(len(found), counts.dtype)
    result = counts @ sp.csr_matrix((ones, (found, place[found])), shape=(len(place), width))
    result = sp.csr_matrix(result)
    result.sort_indices()
    return result
