"""Curate gene sets into the benchmark of Gene Pathway Coherence.

    python -m histokit.evaluate.curation --gene-sets c5.go.gmt \
        --universe runs/a/folds/C2/genes.csv --out go.gmt

Writes the sets that were kept and, beside them, a table of why each other set was not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path

import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import atomic_path, make_folder
from histokit.core.options import Checked, option, required, run
from histokit.data.gene_sets import (
    Match,
    is_hallmark,
    load_gene_sets,
    no_gene,
    read_universe,
    rename,
    write_gmt,
)

KEEP = ("larger", "smaller")


def curate(
    gene_sets: Mapping[str, Iterable[str]],
    universe: Iterable[str] | None = None,
    min_size: int = 50,
    max_size: int | None = 100,
    max_jaccard: float = 0.1,
    keep: str = "larger",
) -> dict[str, list[str]]:
    """Curate gene sets into a benchmark: intersect, filter by size, filter redundancy.

    A set stays when its Jaccard index with every set that stayed before it is at most
    ``max_jaccard``. With ``keep="larger"`` sets come from the largest to the smallest, ties in the
    order given: the benchmark that HistoPrism's authors released. With ``keep="smaller"`` they come
    from the smallest to the largest, ties in the order given: it is the paper's rule (section
    3.3), which removes the larger of a violating pair until none is left, taking first the pair
    whose smaller set is smallest. Either way each set that goes conflicts with one that stays.

    Args:
        gene_sets: name to genes.
        universe: genes that exist, in the same names; all by default.
        min_size: genes of a set within the universe, at least.
        max_size: the same, at most; None for no limit.
        max_jaccard: in [0, 1], read as the decimal it prints as and compared in integers, so that
            0.1 means one tenth; 1 keeps every set, in the order given.
        keep: ``larger`` or ``smaller``.

    Returns:
        The sets that stay, within the universe, in the order they were kept in.

    Raises:
        InputError: limits that no set can meet, or no gene of any set in the universe.
    """
    return curate_with_table(gene_sets, universe, min_size, max_size, max_jaccard, keep)[0]


def curate_with_table(
    gene_sets: Mapping[str, Iterable[str]],
    universe: Iterable[str] | None = None,
    min_size: int = 50,
    max_size: int | None = 100,
    max_jaccard: float = 0.1,
    keep: str = "larger",
) -> tuple[dict[str, list[str]], pd.DataFrame]:
    """As ``curate``, with a table of reasons.

    Returns:
        The sets that stay, and one row a set given: name, size, size_in_universe, kept, reason
        why not, conflict (the kept set most like it), jaccard (with that set).
    """
    threshold = _check_limits(min_size, max_size, max_jaccard, keep)
    sets = _within(gene_sets, universe)
    rows = {}
    for name, genes in sets.items():
        if not genes:
            reason = "no gene in the universe"
        elif len(genes) < min_size:
            reason = f"fewer than {min_size} genes"
        elif max_size is not None and len(genes) > max_size:
            reason = f"more than {max_size} genes"
        else:
            reason = ""
        size = len(set(gene_sets[name]))
        rows[name] = [name, size, len(genes), not reason, reason, "", float("nan")]
    kept, conflicts = [name for name in sets if not rows[name][4]], {}
    if threshold < 1:
        sign = -1 if keep == "larger" else 1
        order = sorted(kept, key=lambda name: sign * len(sets[name]))
        kept, conflicts = _drop_redundant(order, sets, threshold)
    for name, (other, jaccard) in conflicts.items():
        rows[name][3:] = [False, f"Jaccard index over {max_jaccard}", other, jaccard]
    columns = ["name", "size", "size_in_universe", "kept", "reason", "conflict", "jaccard"]
    return {name: sets[name] for name in kept}, pd.DataFrame(rows.values(), columns=columns)


def _check_limits(min_size, max_size, max_jaccard, keep) -> Fraction:
    if keep not in KEEP:
        raise InputError(f"keep must be larger or smaller, got {keep!r}")
    if min_size < 1 or (max_size is not None and max_size < min_size):
        raise InputError(
            f"the sizes of gene sets must be 1 <= minimum <= maximum, got {min_size} to {max_size}"
        )
    try:
        threshold = Fraction(str(max_jaccard))
    except ValueError:
        threshold = Fraction(-1)
    if not 0 <= threshold <= 1:
        raise InputError(f"max_jaccard must lie in [0, 1], got {max_jaccard}")
    return threshold


def _within(gene_sets, universe: Iterable[str] | None) -> dict[str, list[str]]:
    """Sets intersected with a universe, each gene once."""
    sets = {name: list(dict.fromkeys(genes)) for name, genes in gene_sets.items()}
    if universe is None:
        return sets
    universe = list(universe)
    known = frozenset(universe)
    named = list(dict.fromkeys(chain.from_iterable(sets.values())))
    if not any(gene in known for gene in named):
        raise InputError(no_gene(named, universe) if named else "the gene sets name no gene")
    return {name: [gene for gene in genes if gene in known] for name, genes in sets.items()}


def _drop_redundant(
    names: Sequence[str], sets: Mapping[str, Collection[str]], threshold: Fraction
) -> tuple[list[str], dict[str, tuple[str, float]]]:
    """Take sets in order unless too like one taken; which stay, and what each other runs into.

    An index from gene to the sets taken finds all overlaps of a set at once; few sets that stay
    share a gene, so this is fast where comparing pairs would be quadratic.
    """
    p, q = threshold.numerator, threshold.denominator
    owners: dict[str, list[int]] = {}
    kept, conflicts = [], {}
    for name in names:
        genes = sets[name]
        shared = Counter(chain.from_iterable(owners[g] for g in genes if g in owners))
        worst, other = 0.0, ""
        for index, count in shared.items():
            union = len(genes) + len(sets[kept[index]]) - count
            if count * q > p * union and count / union > worst:
                worst, other = count / union, kept[index]
        if other:
            conflicts[name] = (other, worst)
            continue
        for gene in genes:
            owners.setdefault(gene, []).append(len(kept))
        kept.append(name)
    return kept, conflicts


def curate_for_panel(
    gene_sets: Mapping[str, Iterable[str]], genes: pd.DataFrame, curated: bool = True, **limits
) -> tuple[dict[str, list[str]], pd.DataFrame, Match]:
    """Name the genes of sets as a panel does, and curate within it.

    Args:
        gene_sets: in symbols or Ensembl ids.
        genes: gene, gene_id, symbol, a row for each gene of the panel.
        curated: False, or sets that are all Hallmark, intersect them with the panel and no more.
        limits: as ``curate`` has them.

    Returns:
        As ``curate_with_table``, sizes before the panel, and how genes were found.
    """
    renamed, match = rename(gene_sets, genes)
    if not curated or is_hallmark(gene_sets):
        limits = {"min_size": 1, "max_size": None, "max_jaccard": 1}
    kept, table = curate_with_table(renamed, genes["gene"], **limits)
    table["size"] = [len(set(members)) for members in gene_sets.values()]
    return kept, table, match


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Options of a curation."""

    gene_sets: str = required("GMT file, plain or gzipped, or a library's name for gseapy")
    out: str = required("GMT file to write; the table of reasons goes beside it")
    universe: str | None = option(
        None, "genes that exist: a genes.csv of a run, or a file with one gene a line", shown="all"
    )
    min_size: int = option(50, "genes of a set within the universe, at least", least=1)
    max_size: int = option(100, "genes of a set within the universe, at most", least=1)
    max_jaccard: float = option(
        0.1, "Jaccard index of two sets that both stay, at most", least=0, most=1
    )
    keep: str = option(
        "larger",
        "of two sets too alike: larger, as HistoPrism's authors released, or smaller, their text",
        choices=KEEP,
    )


def main(cfg: Options) -> None:
    """Curate one file of gene sets."""
    gene_sets = load_gene_sets(cfg.gene_sets)
    if cfg.universe:
        genes = read_universe(cfg.universe)
    else:
        names = list(dict.fromkeys(chain.from_iterable(gene_sets.values())))
        genes = pd.DataFrame({"gene": names, "gene_id": "", "symbol": ""})
    limits = {key: getattr(cfg, key) for key in ("min_size", "max_size", "max_jaccard", "keep")}
    kept, table, match = curate_for_panel(gene_sets, genes, **limits)
    if cfg.universe:
        found = match.named - len(match.lost)
        print(
            f"{found:,} of {match.named:,} genes of the sets are in the universe, by its column "
            f"{match.column}"
        )
    if is_hallmark(gene_sets):
        print("Hallmark sets are intersected with the universe and not filtered")
    out = Path(cfg.out)
    make_folder(out.parent)
    reasons = out.with_name(f"{out.stem}_curation.csv")
    write_gmt(out, kept)
    with atomic_path(reasons) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    for reason, count in table.loc[~table["kept"], "reason"].value_counts().items():
        print(f"{count:6,} sets dropped: {reason}")
    print(f"{len(kept):6,} of {len(table):,} sets kept, see {out} and {reasons}")


if __name__ == "__main__":
    run(main, Options, __doc__)
