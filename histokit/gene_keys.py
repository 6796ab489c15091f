"""Which genes of two slides are the same: decided once for a cohort, and said.

Where every gene of every slide has an Ensembl id, genes are joined by id (without version);
otherwise by symbol. A symbol that a slide has twice is then ambiguous and takes no part, and two
genes whose ids differ are never joined, whatever they are called.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

ID, SYMBOL = "gene_id", "symbol"


@dataclasses.dataclass(frozen=True)
class GeneKey:
    """How the genes of a cohort are joined.

    Attributes:
        column: ``gene_id`` or ``symbol``.
        names: the one name of each gene, by its key.
        matched: index key; columns gene, gene_id, symbol, slides (how many measured it), names
            (every name it has there).
        without_ids: slides of which some gene has no id; they are why symbols are used.
        ambiguous: symbols left out because a slide has them twice.
    """

    column: str
    names: Mapping[str, str]
    matched: pd.DataFrame
    without_ids: tuple[str, ...]
    ambiguous: tuple[str, ...]

    def __str__(self) -> str:
        slides = int(self.matched["slides"].max()) if len(self.matched) else 0
        common = int((self.matched["slides"] == slides).sum())
        renamed = int(self.matched["names"].str.contains(" | ", regex=False).sum())
        said = "Ensembl id" if self.column == ID else "symbol"
        text = f"genes are joined by {said}: {len(self.matched):,} genes, {common:,} on all slides"
        if self.column == SYMBOL and len(self.without_ids) < slides:
            text += f" ({self.without_ids[0]} has genes without an id, so ids are not used)"
        if renamed:
            text += f"; {renamed:,} are called differently on different slides"
        if self.ambiguous:
            text += f"; {len(self.ambiguous):,} symbols occur twice on a slide and are left out"
        return text


def gene_key(tables: Iterable[tuple[str, pd.DataFrame]]) -> GeneKey:
    """Decide how the genes of slides are joined.

    Args:
        tables: slide id and gene table (index gene, columns gene_id, symbol), one at a time.
    """
    without, by_id, by_symbol, twice = [], {}, {}, set()
    for slide_id, table in tables:
        if (table[ID] == "").any():
            without.append(slide_id)
        repeated = table[SYMBOL].duplicated(keep=False)
        twice |= set(table.loc[repeated, SYMBOL])
        for name, gene_id, symbol in table[[ID, SYMBOL]].itertuples():
            row = (name, gene_id, symbol)
            if not without:
                _add(by_id, gene_id, row)
            _add(by_symbol, symbol, row)
    column, found = (SYMBOL, by_symbol) if without else (ID, by_id)
    if column == SYMBOL:
        # of equal symbols that ids tell apart on one slide none says which the other slides mean
        found = {symbol: entry for symbol, entry in found.items() if symbol not in twice}
    matched = pd.DataFrame(
        [
            (key, rows[0][2] or rows[0][0], rows[0][1], rows[0][2], slides, " | ".join(names))
            for key, (rows, slides, names) in found.items()
        ],
        columns=["key", "gene", ID, SYMBOL, "slides", "names"],
    ).set_index("key")
    matched["gene"] = make_index_unique(pd.Index(matched["gene"], dtype=str)).to_numpy()
    ambiguous = tuple(sorted(twice)) if column == SYMBOL else ()
    names = dict(zip(matched.index, matched["gene"], strict=True))
    return GeneKey(column, names, matched, tuple(without), ambiguous)


def _add(found: dict, key: str, row: tuple[str, str, str]) -> None:
    """Note one slide's gene: its first row, how many slides have it, its names in order."""
    if key not in found:
        found[key] = ([row], 1, {row[0]: None})
        return
    rows, slides, names = found[key]
    names[row[0]] = None
    found[key] = (rows, slides + 1, names)


def as_panel(names: Sequence[str]) -> pd.DataFrame:
    """Names, symbols or Ensembl ids, as a panel: gene, gene_id, symbol."""
    ids = [name if re.fullmatch(r"ENS[A-Z]*G\d{6,}", name) else "" for name in names]
    symbols = ["" if gene_id else name for name, gene_id in zip(names, ids, strict=True)]
    return pd.DataFrame({"gene": list(names), ID: ids, SYMBOL: symbols}, dtype=str)


def positions(table: pd.DataFrame, genes: pd.DataFrame) -> np.ndarray:
    """Row of ``table`` for each gene of a panel, (G,) int, -1 where the slide does not have it.

    By id where all genes of both sides have one, else by name and then by symbol, but never two
    genes whose ids differ.

    Args:
        table: a slide's genes: index gene, columns gene_id, symbol.
        genes: the panel: columns gene, gene_id, symbol.
    """
    if (table[ID] != "").all() and (genes[ID] != "").all():
        return _lookup(table[ID], genes[ID])
    found = _lookup(pd.Series(table.index), genes["gene"])
    for column in (SYMBOL, ID):
        lost = found < 0
        if lost.any():
            found[lost] = _lookup(table[column], genes.loc[lost, column])
    theirs, ours = table[ID].to_numpy()[found], genes[ID].to_numpy()
    contradict = (found >= 0) & (theirs != "") & (ours != "") & (theirs != ours)
    return np.where(contradict, -1, found)


def _lookup(known: pd.Series, wanted: pd.Series) -> np.ndarray:
    """Where each wanted value stands; -1 for what is blank, unknown or there twice."""
    index = pd.Index(known)
    places = pd.Series(np.arange(len(index)), index=index)
    places = places[~index.duplicated(keep=False) & (index != "")]
    return places.reindex(pd.Index(wanted)).fillna(-1).to_numpy(dtype=int)
