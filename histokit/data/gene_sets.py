"""Read gene sets, and name their genes as a panel does."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import atomic_path
from histokit.core.tables import read_table, text_lines
from histokit.data.genes import read_gene_list

_ENSEMBL_ID = re.compile(r"^ENS[A-Z]*\d{11}(\.\d+)?$")
_ENSEMBL = re.compile(r"^(ENS[A-Z]*\d{11})\.\d+$")


@dataclasses.dataclass(frozen=True)
class Match:
    """How the genes of sets were found in a panel.

    Attributes:
        column: the column of the gene table: ``gene``, ``symbol`` or ``gene_id``.
        named: distinct genes that the sets name.
        lost: those that the panel lacks, in the order of the sets.
    """

    column: str
    named: int
    lost: tuple[str, ...]


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Read gene sets from a GMT file, plain or gzipped: name, description, genes, by tabs.

    gseapy's own parser skips short lines, lets a later set replace one of the same name, and reads
    no gzip; otherwise this returns what it returns. Two sets of one name whose descriptions
    differ, as the identifiers of two GO terms do, are told apart by it: ``NAME (description)``.

    Returns:
        Set name to its genes, each once, in the order of the file.

    Raises:
        InputError: names file and line: no such file, a line without a gene, two sets of one
            name and description, no set at all.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the gene set file {path} does not exist")
    with text_lines(path, "GMT file") as text:
        lines = [(n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(text, 1)]
    entries: dict[tuple[str, str], tuple[int, list[str]]] = {}
    for n, fields in lines:
        if fields == [""]:
            continue
        genes = list(dict.fromkeys(gene.strip() for gene in fields[2:] if gene.strip()))
        if not fields[0].strip() or not genes:
            raise InputError(
                f"line {n} of {path} holds no gene set; expected a name, a description and at "
                "least one gene with tabs between them"
            )
        key = (fields[0].strip(), fields[1].strip())
        if key in entries:
            raise InputError(
                f"line {n} of {path} repeats the set {key[0]} of line {entries[key][0]}; rename "
                "or remove one of them"
            )
        entries[key] = (n, genes)
    if not entries:
        raise InputError(f"{path} holds no gene set; expected one a line in the GMT format")
    _check_descriptions(path, entries)
    uses = Counter(name for name, _ in entries)
    return {
        name if uses[name] == 1 else f"{name} ({description})": genes
        for (name, description), (_, genes) in entries.items()
    }


def _check_descriptions(path: Path, entries: Mapping) -> None:
    """Refuse a file without the column of descriptions, whose first genes would be taken for it."""
    genes = {gene for _, members in entries.values() for gene in members}
    taken = sum(
        # a transcription factor may describe the set of its targets
        (description in genes or bool(_ENSEMBL_ID.match(description))) and description not in name
        for name, description in entries
    )
    if taken > len(entries) / 2:
        raise InputError(
            f"{path} seems to lack the second column, the description: in {taken} of "
            f"{len(entries)} sets it is a gene of another; add a column (na will do)"
        )


def write_gmt(path: str | Path, gene_sets: Mapping[str, Iterable[str]]) -> None:
    """Write gene sets in the GMT format; the description is ``na``."""
    lines = ("\t".join([name, "na", *genes]) for name, genes in gene_sets.items())
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load_gene_sets(source: str) -> dict[str, list[str]]:
    """Gene sets of a GMT file, or of an Enrichr library by its name through gseapy.

    Args:
        source: a path, or a name such as ``MSigDB_Hallmark_2020``; only a name uses the network.

    Raises:
        InputError: as ``read_gmt``; no such library, or no network.
    """
    if Path(source).exists() or source.lower().endswith((".gmt", ".gz")) or "/" in source:
        return read_gmt(source)
    import gseapy

    try:
        library = gseapy.get_library(source, organism="Human", max_size=1_000_000)
    except Exception as error:  # gseapy raises bare Exception for an unreachable server
        raise InputError(
            f"{source} is neither a file nor a gene set library that gseapy could fetch "
            f"({type(error).__name__}); give a GMT file instead"
        ) from error
    return {name: list(dict.fromkeys(genes)) for name, genes in library.items()}


def is_hallmark(gene_sets: Iterable[str]) -> bool:
    """Whether all sets are MSigDB's Hallmark: they are intersected with a panel, never filtered."""
    return all(name.startswith("HALLMARK_") for name in gene_sets)


def _bare(name: str) -> str:
    """An Ensembl id without its version, any other name as it is."""
    found = _ENSEMBL.match(name)
    return found[1] if found else name


def rename(
    gene_sets: Mapping[str, Iterable[str]], genes: pd.DataFrame
) -> tuple[dict[str, list[str]], Match]:
    """Name the genes of sets as a panel does.

    Args:
        gene_sets: in symbols or Ensembl ids.
        genes: gene, gene_id, symbol, a row for each gene of the panel; the column that knows most
            genes of the sets is used. Of rows with one symbol the first is meant.

    Returns:
        The sets in the names of ``genes["gene"]``, without what the panel lacks, and how they
        were found.

    Raises:
        InputError: no gene of any set is in the panel.
    """
    named = list(dict.fromkeys(_bare(gene) for genes in gene_sets.values() for gene in genes))
    panels = {}
    for column in ("gene", "symbol", "gene_id"):
        names = [_bare(name) for name in genes[column]]
        panels[column] = dict(reversed(list(zip(names, genes["gene"], strict=True))))
        panels[column].pop("", None)
    column = max(panels, key=lambda column: sum(gene in panels[column] for gene in named))
    panel = panels[column]
    match = Match(column, len(named), tuple(gene for gene in named if gene not in panel))
    if len(match.lost) == match.named:
        raise InputError(no_gene(named, list(genes["gene"])))
    found = {
        name: list(dict.fromkeys(panel[_bare(g)] for g in members if _bare(g) in panel))
        for name, members in gene_sets.items()
    }
    return found, match


def no_gene(named: Sequence[str], panel: Sequence[str]) -> str:
    """What to say where a panel has no gene of any set."""
    text = (
        f"none of the {len(named):,} genes of the sets (such as {named[0]}) is in the panel of "
        f"{len(panel):,} genes"
    )
    text += f" (such as {panel[0]})" if len(panel) else ""
    kinds = ["Ensembl ids" if names[0].startswith("ENS") else "symbols"
             for names in (named, panel) if len(names)]  # fmt: skip
    if len(set(kinds)) == 2:
        return (
            f"{text}: the sets name {kinds[0]}, the panel {kinds[1]}; give sets in the same names, "
            "or a genes.csv whose columns gene_id and symbol translate them"
        )
    return f"{text}; give sets of the same species and kind of name"


def read_universe(path: str | Path) -> pd.DataFrame:
    """A panel as gene, gene_id, symbol, from a genes.csv of a run or a list of one gene a line."""
    path = Path(path)
    if path.suffix.lower() != ".csv" or not path.is_file():
        return pd.DataFrame({"gene": read_gene_list(path), "gene_id": "", "symbol": ""})
    table = read_table(path, ("gene",), "table of genes (gene, gene_id, symbol)")
    if table.empty:
        raise InputError(f"{path} lists no gene; expected the columns gene, gene_id, symbol")
    return table.reindex(columns=["gene", "gene_id", "symbol"], fill_value="")
