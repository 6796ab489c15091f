"""Lists of genes that replace the choice of the most variable ones: one, or one for each cancer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from histokit.core.errors import InputError
from histokit.data.genes import read_gene_list

FILE = "var_50genes.json"  # as HEST-Bench calls the list in a task's folder


@dataclasses.dataclass(frozen=True)
class GeneLists:
    """Names, Ensembl ids or symbols, by oncotree code; under ``""`` where all slides share one."""

    by_cancer: Mapping[str, list[str]]

    def of(self, cancer: str) -> list[str]:
        """The list for a slide of this oncotree code.

        Raises:
            InputError: there is none.
        """
        found = self.by_cancer.get(cancer, self.by_cancer.get(""))
        if found is None:
            raise InputError(
                f"there is no gene list for slides of the cancer {cancer or 'that is not known'}; "
                f"lists are there for {', '.join(self.by_cancer)}: add CODE/{FILE}, or leave such "
                "slides out of the test"
            )
        return found

    def __str__(self) -> str:
        sizes = sorted({len(genes) for genes in self.by_cancer.values()})
        genes = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        if "" in self.by_cancer:
            return f"a list of {genes} genes"
        return f"a list of {genes} genes for each of {len(self.by_cancer)} cancers"


def read_lists(path: str | Path) -> GeneLists:
    """A file of genes, or a folder with CODE/var_50genes.json for each oncotree code.

    Raises:
        InputError: as ``read_gene_list``; a folder without such a file.
    """
    path = Path(path)
    if not path.is_dir():
        return GeneLists({"": read_gene_list(path)})
    files = sorted(path.glob(f"[!.]*/{FILE}"))
    if not files:
        raise InputError(
            f"{path} holds no CODE/{FILE}; a folder for each cancer with its list was expected, as "
            "HEST-Bench has them, or a file with one gene a line"
        )
    return GeneLists({file.parent.name: read_gene_list(file) for file in files})
