"""Checkpoints that other groups published, as models of this package.

What their files and vocabularies mean is told by the authors' repositories, susuhu/HistoPrism and
Graph-and-Geometric-Learning/STPath.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from histokit.core.errors import InputError
from histokit.models.base import NEVER, Model
from histokit.models.histoprism import OFFICIAL_CANCERS, HistoPrism
from histokit.models.stpath_model import STPathModel

# HistoPrism's training reads the column of HEST's own codes, in which the names that fill gaps and
# LUSC never occur: their embeddings are as they were drawn. "Unknown" was two slides of the cervix.
UNTRAINED = "Diseased_Unspecified Treated_Unspecified Cancer_Unspecified Healthy LUSC".split()
ALIASES = {"SCCRCC": "CCRCC", "LUAD": "LUNG"}  # what HEST's table calls the same slides
HISTOPRISM_CODES = {
    code: code for code in OFFICIAL_CANCERS if code not in (*UNTRAINED, "Unknown")
} | ALIASES

# The organ of HEST's slides of each code, in the words to which the authors align it: a bladder, a
# cervix, an ovary and lymphoid tissue are "Others", and what they do not name is the padding.
_CODES = {
    "Brain": "EPM GBM",
    "Breast": "IDC ILC",
    "Bowel": "COAD COADREAD READ",
    "Skin": "CSCC MEL SKCM",
    "Kidney": "CCRCC PRCC SCCRCC",
    "Prostate": "PRAD",
    "Lung": "LNET LUAD LUNG LUSC",
    "Liver": "HCC LIHB",
    "Pancreas": "PAAD",
    "Others": "ALL BLCA CESC HGSOC LYMPH_IDC SOC",
}
ORGAN_OF = {code: organ for organ, codes in _CODES.items() for code in codes.split()}


@dataclasses.dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        name: as in ``histokit.models.registry.MODELS``.
        title: as its authors write it.
        encoder: whose features it takes, of patches of 112 um.
        known: the codes of slides to what the model calls them.
        note: what to know of its values, in a sentence; may be empty.
    """

    name: str
    title: str
    encoder: str
    known: Mapping[str, str]
    note: str = ""


PUBLISHED = {
    one.name: one
    for one in (
        Published(
            "histoprism",
            "HistoPrism",
            "uni",
            HISTOPRISM_CODES,
            "HistoPrism was taught 0 for genes that a training slide did not measure, so the "
            "values of genes that few slides measure are too low.",
        ),
        Published("stpath", "STPath", "gigapath", ORGAN_OF),
    )
}
TARGET = "log1p"  # of raw counts, what both were trained to predict


def published(name: str) -> Published:
    """A published model by its name; raises InputError where there is none."""
    if name not in PUBLISHED:
        raise InputError(
            f"there is no published model {name!r}; choose from {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name]


def load_published(name: str, path: Path) -> tuple[Model, dict]:
    """A published checkpoint in evaluation mode, and the arguments that rebuild the model.

    HistoPrism's codes that were never trained carry names that no slide has, so that such slides
    are told no cancer.

    Raises:
        InputError: an unknown name, or a checkpoint of another model.
    """
    if published(name).name == "stpath":
        return STPathModel.from_official(path, ORGAN_OF)
    codes = [c if c in HISTOPRISM_CODES else f"{NEVER}{c}" for c in OFFICIAL_CANCERS]
    model = HistoPrism.from_official(path, codes)
    return model, {
        "input_dim": model.input_dim,
        "num_genes": model.head.out_features,
        "cancers": codes,
        "hidden_dim": model.input_proj.out_features,
        "num_layers": len(model.transformer.layers),
        "feedforward_dim": model.transformer.layers[0].linear1.out_features,
    }
