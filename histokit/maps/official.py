"""Checkpoints that other groups published, as predictors of new slides.

What their files and vocabularies mean is told by the authors' repositories, susuhu/HistoPrism and
Graph-and-Geometric-Learning/STPath.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from histokit.core.errors import InputError
from histokit.core.files import read_json
from histokit.data.cohort import Slide
from histokit.data.gene_keys import as_panel
from histokit.data.genes import read_gene_list
from histokit.data.technologies import technology_kind
from histokit.evaluate.runs import Fold
from histokit.evaluate.topics.pathways import Collection
from histokit.evaluate.topics.signatures import Signature
from histokit.extract.encoders import file_sha256
from histokit.maps.ensemble import EnsembleMap
from histokit.maps.slide import Oracle
from histokit.maps.trust import Trust
from histokit.models.histoprism import OFFICIAL_CANCERS, HistoPrism
from histokit.models.outputs import Outputs
from histokit.models.stpath import ORGANS, TECHNOLOGIES, STPath, rescale_coords

# HistoPrism's training reads the column of HEST's own codes, in which the names that fill gaps and
# LUSC never occur: their embeddings are as they were drawn. "Unknown" was two slides of the cervix.
UNTRAINED = "Diseased_Unspecified Treated_Unspecified Cancer_Unspecified Healthy LUSC".split()
HISTOPRISM_CODES = {
    code: code for code in OFFICIAL_CANCERS if code not in (*UNTRAINED, "Unknown")
} | {"SCCRCC": "CCRCC", "LUAD": "LUNG"}  # what HEST's table calls the same slides

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

GENE_FILES = (
    "the authors' list: utils_data/symbol2ensembl.json of "
    "github.com/Graph-and-Geometric-Learning/STPath, or data/gene_panel/stpath_genes.yaml of "
    "github.com/susuhu/HistoPrism, which names no symbols"
)


@dataclass(frozen=True)
class Published:
    """What extraction and prediction ask of a run.

    Attributes:
        folder: the checkpoint, a file.
        config: ``options`` (encoder, neighbors, target) and ``features``, as a run has them.
    """

    folder: Path
    config: dict


class Official:
    """One published model, used as an ``Ensemble`` of one fold.

    Args:
        path: the checkpoint.
        genes: the file that names its outputs.
        device: where it runs.

    Attributes:
        genes: index gene; gene_id, symbol, train_mean and train_sd, which are not known (NaN).
        target: what it was trained to predict, one of ``histokit.data.genes.TRANSFORMS``.
        features: what is known of the features that it takes, of ``FEATURE_IDENTITY``.
        about: provenance.
        models, folds: one each.
        run: what extraction asks of a run.
    """

    kind: str
    title: str
    encoder: str
    known: dict[str, str]  # the codes of slides to what the model calls them
    special = 0  # outputs before those of the genes
    notes: tuple[str, ...] = ()
    target = "log1p"  # of raw counts

    def __init__(self, path: Path, genes: Path | None, device: str = "cpu"):
        self.device = device
        self.model = self._load(path)
        self._outputs = Outputs.of(self.model.head)[self.special :]
        self.genes = read_outputs(genes, len(self._outputs), path)
        self.models, self.folds = [self.model], [Fold(path, self.title)]
        dimension = self.model.input_dim
        self.features = {"encoder": self.encoder, "patch_um": 112.0, "dimension": dimension}
        self.about = {
            "official": self.kind,
            "weights": path.name,
            "weights_sha256": file_sha256(path),
            "genes": genes.name,
        }
        options = {"encoder": self.encoder, "neighbors": "none", "target": self.target}
        self.run = Published(path, {"options": options, "features": self.features})

    def _load(self, path: Path) -> torch.nn.Module:
        raise NotImplementedError

    def _hidden(self, slide: Slide) -> torch.Tensor:
        """(N, d), the input of the layer over genes."""
        raise NotImplementedError

    def knows_cancer(self, cancer: str) -> bool:
        """Whether the model was trained on slides of this oncotree code."""
        return cancer in self.known

    def cancers(self) -> list[str]:
        """The oncotree codes that the model can be told."""
        return sorted(self.known)

    def said(self, slide: Slide) -> list[str]:
        """Sentences on what the model is not told of a slide."""
        if self.knows_cancer(slide.cancer):
            return []
        return [
            f"{self.title} was not trained on the cancer code {slide.cancer} (it knows "
            f"{', '.join(self.cancers())}), and is told none."
        ]

    @torch.inference_mode()
    def on(self, slide: Slide) -> EnsembleMap:
        """The prediction of one slide.

        Raises:
            InputError: features of another dimension, or values that are not finite.
        """
        dimension, given = self.model.input_dim, slide.features.shape[1]
        if given != dimension:
            raise InputError(
                f"{self.title} takes features of {dimension} dimensions, those of {self.encoder}, "
                f"and slide {slide.slide_id} has {given}; extract it with --encoder {self.encoder}"
            )
        self.model.to(self.device)
        hidden = self._hidden(slide).cpu()
        self.model.cpu()
        if not hidden.isfinite().all():
            raise InputError(
                f"{self.run.folder} predicts values that are not finite on slide "
                f"{slide.slide_id}; copy the checkpoint again"
            )
        return EnsembleMap([hidden], [self._outputs])

    def oracle(
        self, collections: Sequence[Collection] = (), signatures: Sequence[Signature] = ()
    ) -> Oracle:
        """The model with all that can be said beside its predictions."""
        nothing = pd.DataFrame(
            index=self.genes.index, columns=["pcc", "pcc_low", "pcc_high", "rank"]
        )
        said = [
            f"{self.title} comes without held-out figures by gene, so no gene is marked as "
            "trusted. It was trained on public slides, those of HEST-1k among them; on one of "
            "these its prediction says nothing about new slides.",
            *self.notes,
        ]
        return Oracle(
            self,
            Trust(nothing.astype(float).assign(trusted=False), said),
            unchecked="Nothing says whether the slide is like the training slides: their features "
            "do not come with the weights.",
            collections=collections,
            signatures=signatures,
            about=self.about,
        )


class OfficialHistoPrism(Official):
    """HistoPrism's checkpoint: features of UNI, 29 cancer codes, log1p of raw counts."""

    kind, title, encoder, known = "histoprism", "HistoPrism", "uni", HISTOPRISM_CODES
    notes = (
        "HistoPrism was taught 0 for genes that a training slide did not measure, so the values "
        "of genes that few slides measure are too low.",
    )

    def _load(self, path: Path) -> HistoPrism:
        return HistoPrism.from_official(path)

    def _hidden(self, slide: Slide) -> torch.Tensor:
        return self.model.embed(
            slide.features, self.known.get(slide.cancer, ""), allow_unknown=True
        )


class OfficialSTPath(Official):
    """STPath's weights on images alone: features of GigaPath, every gene masked.

    The slide's cancer code gives the organ; an unknown one, and an unknown technology, are the
    padding that the authors' pipeline takes for them.
    """

    kind, title, encoder, known = "stpath", "STPath", "gigapath", ORGAN_OF
    special = 2  # padding and mask

    def _load(self, path: Path) -> STPath:
        model = STPath.from_official(path)
        count = len(model.input_encoder.organ_embed.weight)
        if count != len(ORGANS):
            raise InputError(
                f"{path} knows {count} organs and STPath's published vocabulary has "
                f"{len(ORGANS)}; give the published weights (stfm.pth)"
            )
        return model

    def said(self, slide: Slide) -> list[str]:
        """Sentences on what the model is not told of a slide."""
        said = super().said(slide)
        if not _technology(slide):
            said.append(
                f"{self.title} does not know the technology {slide.technology!r} of the slide, "
                "and is told none."
            )
        return said

    def _hidden(self, slide: Slide) -> torch.Tensor:
        features = slide.features.to(self.device)
        places = rescale_coords(torch.from_numpy(slide.centers)).to(features)
        organ = ORGANS.index(self.known.get(slide.cancer, "<pad>"))
        hidden = self.model.encode(features, places, _technology(slide), organ)
        return self.model.gene_exp_head[0](hidden)


def _technology(slide: Slide) -> int:
    """The row of STPath's technology embedding; 0, the padding, for any other."""
    names = [name.casefold() for name in TECHNOLOGIES]
    kind = technology_kind(slide.technology)
    return names.index(kind) if kind else 0


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


KINDS = {model.kind: model for model in (OfficialHistoPrism, OfficialSTPath)}


def open_official(kind: str, path: Path, genes: Path | None, device: str = "cpu") -> Official:
    """A published checkpoint as a predictor.

    Args:
        kind: ``histoprism`` or ``stpath``.
        path: the checkpoint, read without running code of its own.
        genes: the authors' list of genes, as ``read_outputs`` takes it.
        device: where it runs.

    Raises:
        InputError: an unknown kind, a checkpoint of another model, or a list that does not fit.
    """
    if kind not in KINDS:
        raise InputError(f"there is no published model {kind!r}; choose from {', '.join(KINDS)}")
    return KINDS[kind](path, genes, device)
