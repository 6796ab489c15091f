"""The genes that published models predict, from their authors' own lists."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histokit.core.errors import InputError
from histokit.core.files import read_json
from histokit.data.gene_keys import as_panel
from histokit.data.genes import read_gene_list

GENE_FILES = (
    "the authors' list: utils_data/symbol2ensembl.json of "
    "github.com/Graph-and-Geometric-Learning/STPath, or data/gene_panel/stpath_genes.yaml of "
    "github.com/susuhu/HistoPrism, which names no symbols"
)


def read_outputs(path: Path | None, count: int, checkpoint: Path) -> pd.DataFrame:
    """What the outputs of a published model are, from its authors' list of genes.

    A ``.json`` file maps symbols to Ensembl ids, several to one among them; the outputs are the
    sorted ids, each under the first of its symbols. Any other file lists the ids in this order.

    Args:
        path: the file.
        count: outputs of the model.
        checkpoint: its file.

    Returns:
        Index gene, columns gene_id, symbol, train_mean, train_sd.

    Raises:
        InputError: no file, one of another number of genes, or genes in another order.
    """
    if path is None:
        raise InputError(f"nothing in {checkpoint} names its {count:,} outputs; give {GENE_FILES}")
    table = _mapped(path) if path.suffix == ".json" else as_panel(read_gene_list(path))
    if len(table) != count:
        raise InputError(
            f"{path} names {len(table):,} genes and {checkpoint} predicts {count:,}; give "
            f"{GENE_FILES}"
        )
    if not (table["gene_id"] != "").all() or not table["gene_id"].is_monotonic_increasing:
        raise InputError(
            f"{path} does not list Ensembl ids in sorted order, which is that of the outputs of "
            f"{checkpoint}; give {GENE_FILES}"
        )
    nothing = float("nan")
    return table.set_index("gene").assign(train_mean=nothing, train_sd=nothing)


def _mapped(path: Path) -> pd.DataFrame:
    """gene, gene_id, symbol of the ids in a JSON object of symbols to ids, sorted."""
    symbols: dict[str, str] = {}
    listed = read_json(path)
    # an id that stands for itself is no symbol
    named = as_panel(list(listed))["symbol"]
    for (key, gene_id), symbol in zip(listed.items(), named, strict=True):
        if not isinstance(gene_id, str):
            raise InputError(
                f"{path} is no map of symbols to Ensembl ids: {key[:40]!r} is mapped to "
                f"{str(gene_id)[:40]!r}; give {GENE_FILES}"
            )
        symbols[gene_id] = symbols.get(gene_id) or symbol
    ids = sorted(symbols)
    names = [symbols[gene_id] for gene_id in ids]
    genes = [symbols[gene_id] or gene_id for gene_id in ids]
    return pd.DataFrame({"gene": genes, "gene_id": ids, "symbol": names}, dtype=str)
