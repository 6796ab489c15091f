"""Checkpoints that other groups published, as predictors of new slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from histokit.core.errors import InputError
from histokit.core.weights import file_sha256
from histokit.data.cohort import Slide
from histokit.data.official_genes import read_outputs
from histokit.data.technologies import technology_kind
from histokit.evaluate.runs import Fold
from histokit.evaluate.topics.pathways import Collection
from histokit.evaluate.topics.signatures import Signature
from histokit.maps.ensemble import EnsembleMap
from histokit.maps.slide import Oracle
from histokit.maps.trust import Trust
from histokit.models.official import TARGET, load_published, published
from histokit.models.outputs import Outputs
from histokit.models.stpath import TECHNOLOGIES


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
    target = TARGET

    def __init__(self, path: Path, genes: Path | None, device: str = "cpu"):
        self.device, about = device, published(self.kind)
        self.title, self.encoder, self.known = about.title, about.encoder, about.known
        self.notes = (about.note,) if about.note else ()
        self.model, _ = load_published(self.kind, path)
        self._outputs = Outputs.of(self.model.head)
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

    def _hidden(self, slide: Slide) -> torch.Tensor:
        """(N, d), the input of the layer over genes."""
        raise NotImplementedError

    def knows_cancer(self, cancer: str) -> bool:
        """Whether the model was trained on slides of this oncotree code, or the slide has none."""
        return not cancer or cancer in self.known

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

    kind = "histoprism"

    def _hidden(self, slide: Slide) -> torch.Tensor:
        code = self.known.get(slide.cancer, "")
        return self.model.embed(slide.features, code, allow_unknown=True)


class OfficialSTPath(Official):
    """STPath's weights on images alone: features of GigaPath, every gene masked.

    The slide's cancer code gives the organ; an unknown one, and an unknown technology, are the
    padding that the authors' pipeline takes for them.
    """

    kind = "stpath"

    def said(self, slide: Slide) -> list[str]:
        """Sentences on what the model is not told of a slide."""
        said, kind = super().said(slide), technology_kind(slide.technology)
        if kind not in [name.casefold() for name in TECHNOLOGIES]:
            said.append(
                f"{self.title} does not know the technology {slide.technology!r} of the slide, "
                "and is told none."
            )
        return said

    def _hidden(self, slide: Slide) -> torch.Tensor:
        return self.model.embed_told(
            slide.features,
            slide.cancer,
            technology_kind(slide.technology),
            allow_unknown=True,
            coords=torch.from_numpy(slide.centers),
        )


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
    return KINDS[published(kind).name](path, genes, device)
