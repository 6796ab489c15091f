"""Gene signatures: is the score of a named list of genes predicted, not only each gene?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import file_id
from histokit.data.genes import read_gene_list

SHIPPED = {path.stem: path for path in Path(__file__).parent.glob("*.txt")}


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named gene list; each entry holds a gene's current name and then its former ones."""

    name: str
    genes: tuple[tuple[str, ...], ...]


def read_signature(source: str) -> Signature:
    """A signature from a text file, one gene a line, or a shipped one by name (``pam50``).

    Former names of a gene follow it after a bar: ``NDC80|KNTC2``.

    Raises:
        InputError: neither a file nor a shipped name, no gene, or a name listed twice.
    """
    path = Path(source)
    if not path.is_file():
        if source.lower() not in SHIPPED:
            raise InputError(
                f"the signature {source} is neither a file nor one of "
                f"{', '.join(sorted(SHIPPED))}; give a file with one gene a line"
            )
        path = SHIPPED[source.lower()]
    genes = tuple(
        tuple(name.strip() for name in line.split("|") if name.strip())
        for line in read_gene_list(path)
    )
    names = pd.Index([name for entry in genes for name in entry])
    if names.has_duplicates:
        twice = names[names.duplicated()][0]
        raise InputError(f"the signature {path} names {twice} twice; list each gene once")
    return Signature(file_id(path.stem), genes)


def find_genes(signature: Signature, genes: pd.DataFrame) -> pd.Series:
    """Where a panel has the genes of a signature.

    Args:
        signature: names are tried from the current to the former.
        genes: gene, gene_id, symbol, a row a model output.

    Returns:
        Row of ``genes`` by current name; genes that the panel lacks are left out.

    Raises:
        InputError: the panel has none of them.
    """
    known: dict[str, int] = {}
    for column in ("gene", "symbol", "gene_id"):
        for row, name in enumerate(genes[column]):
            if name:
                known.setdefault(name, row)
    found = {
        entry[0]: next(known[name] for name in entry if name in known)
        for entry in signature.genes
        if any(name in known for name in entry)
    }
    if not found:
        raise InputError(
            f"none of the {len(signature.genes)} genes of the signature {signature.name} (such as "
            f"{signature.genes[0][0]}) is in the panel, whose genes look like "
            f"{genes['gene'].iloc[0]}; give the same kind of name"
        )
    return pd.Series(found, dtype=int)


def varying(values: np.ndarray) -> np.ndarray:
    """Which columns of (N, K) expression vary beyond rounding: (K,) bool; a NaN column does not."""
    with np.errstate(invalid="ignore"):
        return values.std(axis=0) > np.finfo(np.float32).eps * np.abs(values).max(axis=0, initial=0)


def signature_score(values: np.ndarray) -> np.ndarray:
    """Mean over genes of their z-scores over the spots of a slide: (N, K) to (N,), float64."""
    values = np.asarray(values, dtype=np.float64)
    return ((values - values.mean(axis=0)) / values.std(axis=0)).mean(axis=1)


def score_signature(prediction: np.ndarray, target: np.ndarray) -> dict:
    """Correlate the predicted with the measured score of a signature over the spots of a slide.

    Args:
        prediction: (N, K) predicted expression of the signature's genes.
        target: (N, K) measured expression; NaN columns are genes the slide did not measure.

    Returns:
        ``pcc`` and ``genes``, how many vary in both and make up both scores; NaN where none does.
    """
    prediction, target = (np.asarray(x, dtype=np.float64) for x in (prediction, target))
    both = varying(prediction) & varying(target)
    if not both.any():
        return {"pcc": float("nan"), "genes": 0}
    scores = [signature_score(values[:, both]) for values in (prediction, target)]
    if not all(score.std() > 1e-12 for score in scores):  # z-scores that cancel in every spot
        return {"pcc": float("nan"), "genes": int(both.sum())}
    return {"pcc": float(np.corrcoef(*scores)[0, 1]), "genes": int(both.sum())}


def random_genes(places: np.ndarray, variance: np.ndarray, num_lists: int) -> list[np.ndarray]:
    """Lists of other genes that vary as much as those of a signature: its null.

    Args:
        places: (K,) int, genes of the signature.
        variance: (G,) of the measured expression on a slide, NaN where not measured.
        num_lists: how many; the draw is seeded.

    Returns:
        Each (K',) int: for every measured gene of the signature one of the genes next to it in
        the order of variance that are not in the signature, none twice in a list.
    """
    order = np.argsort(variance, kind="stable")[: np.count_nonzero(~np.isnan(variance))]
    others = order[~np.isin(order, places)]
    wanted = np.searchsorted(variance[others], variance[places[~np.isnan(variance[places])]])
    rng, lists = np.random.default_rng(0), []
    near = max(50, 2 * len(places))
    for _ in range(num_lists):
        taken: set[int] = set()
        for at in wanted:
            pool = [g for g in others[max(0, at - near) : at + near] if g not in taken]
            if pool:
                taken.add(int(rng.choice(pool)))
        lists.append(np.array(sorted(taken), dtype=int))
    return lists
