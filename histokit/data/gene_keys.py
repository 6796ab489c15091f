"""Which genes of two slides are the same: decided once for a cohort, and said.

Where every slide names Ensembl ids for most of its genes, genes are joined by id (without version);
otherwise by symbol. A gene without an id is then placed by its symbol, if only one gene has that. A
symbol that a slide has twice is ambiguous where symbols join and takes no part, and two genes whose
ids differ are never joined, whatever they are called.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from histokit.core.errors import InputError

ID, SYMBOL = "gene_id", "symbol"


@dataclasses.dataclass(frozen=True)
class GeneKey:
    """How the genes of a cohort are joined.

    Attributes:
        column: ``gene_id`` or ``symbol``.
        names: the one name of each gene, by its key.
        matched: index key; columns gene, gene_id, symbol, slides (how many measured it), names
            (every name it has there).
        without_ids: slides that name ids for half of their genes at most; they are why symbols
            are used.
        ambiguous: symbols left out because a slide has them twice.
    """

    column: str
    names: Mapping[str, str]
    matched: pd.DataFrame
    without_ids: tuple[str, ...]
    ambiguous: tuple[str, ...]

    def of(self, table: pd.DataFrame) -> pd.Index:
        """The key of each gene of a slide's table, blank for one that takes no part."""
        if self.column == SYMBOL:
            return pd.Index([s if s in self.names else "" for s in table[SYMBOL]])
        placed = self.matched.reset_index().drop_duplicates(SYMBOL, keep=False)
        by_symbol = dict(zip(placed[SYMBOL], placed["key"], strict=True))
        return pd.Index(
            [i or by_symbol.get(s, "") for i, s in zip(table[ID], table[SYMBOL], strict=True)]
        )

    def __str__(self) -> str:
        slides = int(self.matched["slides"].max()) if len(self.matched) else 0
        common = int((self.matched["slides"] == slides).sum())
        renamed = int(self.matched["names"].str.contains(" | ", regex=False).sum())
        said = "Ensembl id" if self.column == ID else "symbol"
        text = f"genes are joined by {said}: {len(self.matched):,} genes, {common:,} on all slides"
        if self.column == SYMBOL and len(self.without_ids) < slides:
            text += f" ({self.without_ids[0]} names ids for half of its genes at most)"
        if renamed:
            text += f"; {renamed:,} are called differently on different slides"
        if self.ambiguous:
            text += f"; {len(self.ambiguous):,} symbols occur twice on a slide and are left out"
        return text


def gene_key(tables: Iterable[tuple[str, pd.DataFrame]]) -> GeneKey:
    """Decide how the genes of slides are joined.

    Args:
        tables: slide id and gene table (index gene, columns gene_id, symbol), one at a time.

    Raises:
        InputError: some slides name nothing but Ensembl ids and others nothing but symbols.
    """
    without, bare, rows, twice = [], [], {}, set()
    for slide_id, table in tables:
        named = table[ID] != ""
        if named.mean() <= 0.5:
            without.append(slide_id)
        if len(table) and table[SYMBOL].str.startswith("ENS").all():
            bare.append(slide_id)
        twice |= set(table.loc[table[SYMBOL].duplicated(keep=False), SYMBOL])
        for row in table[[ID, SYMBOL]].itertuples(name=None):
            rows[row] = rows.get(row, 0) + 1
    if without and bare:
        raise InputError(
            f"slide {bare[0]} names its genes by Ensembl ids alone and {without[0]} by symbols "
            "alone, so nothing says which are the same; give a map of symbols to ids with "
            "--gene-map, or add a column of symbols or ids to one of the two and extract it again"
        )
    column = SYMBOL if without else ID
    found: dict[str, list] = {}
    keys = key_values(
        pd.DataFrame(list(rows), columns=["gene", ID, SYMBOL], dtype=object), column, twice
    )
    for (row, slides), key in zip(rows.items(), keys, strict=True):
        if key:
            found.setdefault(key, []).append((row, slides))
    matched = pd.DataFrame(
        [
            (
                key,
                next((r[2] for r, _ in own if r[2]), own[0][0][0]),
                next((r[1] for r, _ in own if r[1]), ""),
                next((r[2] for r, _ in own if r[2]), ""),
                sum(slides for _, slides in own),
                " | ".join(dict.fromkeys(r[0] for r, _ in own)),
            )
            for key, own in found.items()
        ],
        columns=["key", "gene", ID, SYMBOL, "slides", "names"],
    ).set_index("key")
    matched["gene"] = make_index_unique(pd.Index(matched["gene"], dtype=str)).to_numpy()
    ambiguous = tuple(sorted(twice)) if column == SYMBOL else ()
    names = dict(zip(matched.index, matched["gene"], strict=True))
    return GeneKey(column, names, matched, tuple(without), ambiguous)


def key_values(table: pd.DataFrame, column: str, twice: Container[str] = ()) -> list[str]:
    """The key of each gene of a table, blank for one that takes no part.

    Args:
        table: columns gene_id, symbol, of one slide or of all genes of a cohort.
        column: what genes are joined by.
        twice: symbols that some slide has twice.
    """
    if column == SYMBOL:
        return ["" if s in twice else s for s in table[SYMBOL]]
    only: dict[str, set[str]] = {}
    for gene_id, symbol in zip(table[ID], table[SYMBOL], strict=True):
        if gene_id:
            only.setdefault(symbol, set()).add(gene_id)
    keys = []
    for gene_id, symbol in zip(table[ID], table[SYMBOL], strict=True):
        ids = only.get(symbol, ())
        placed = next(iter(ids)) if len(ids) == 1 else ("" if ids else symbol)
        keys.append(gene_id or placed)
    return keys


def as_panel(names: Sequence[str]) -> pd.DataFrame:
    """Names, symbols or Ensembl ids, as a panel: gene, gene_id, symbol."""
    ids = [name if re.fullmatch(r"ENS[A-Z]*G\d{6,}", name) else "" for name in names]
    symbols = ["" if gene_id else name for name, gene_id in zip(names, ids, strict=True)]
    return pd.DataFrame({"gene": list(names), ID: ids, SYMBOL: symbols}, dtype=str)


def positions(table: pd.DataFrame, genes: pd.DataFrame) -> np.ndarray:
    """Row of ``table`` for each gene of a panel, (G,) int, -1 where the slide does not have it.

    By id first, then by name and by symbol where one of the two has no id: never two genes whose
    ids differ, no row for two genes, and none by a symbol that either table has twice.

    Args:
        table: a slide's genes: index gene, columns gene_id, symbol.
        genes: the panel: columns gene, gene_id, symbol.
    """
    found = _lookup(table[ID], genes[ID])
    theirs = table[ID].to_numpy()
    once, wanted = ~_twice(table[SYMBOL]), ~_twice(genes[SYMBOL])
    for known, column in ((pd.Series(table.index), "gene"), (table[SYMBOL], SYMBOL)):
        lost = (found < 0) & wanted
        if lost.any():
            places = _lookup(known.where(once, ""), genes.loc[lost, column])
            both = (theirs[places] != "") & (genes.loc[lost, ID] != "").to_numpy()
            places[both | np.isin(places, found[found >= 0])] = -1
            found[lost] = places
    return found


def _twice(symbols: pd.Series) -> np.ndarray:
    """(genes,) bool, symbols that stand for several genes of a table."""
    return (symbols.duplicated(keep=False) & (symbols != "")).to_numpy()


def _lookup(known: pd.Series, wanted: pd.Series) -> np.ndarray:
    """Where each wanted value stands; -1 for what is blank, unknown or there twice."""
    index = pd.Index(known)
    places = pd.Series(np.arange(len(index)), index=index)
    places = places[~index.duplicated(keep=False) & (index != "")]
    return places.reindex(pd.Index(wanted)).fillna(-1).to_numpy(dtype=int)
