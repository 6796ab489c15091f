"""The mean of several models' predictions, as one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from histokit.core.errors import InputError
from histokit.models.base import Batch, Model, Standardizer
from histokit.models.files import MOMENTS, describe
from histokit.models.outputs import Direct
from histokit.models.registry import MODELS


class Average(Model):
    """Predicts the mean of its members' predictions; ``hidden`` is the expression.

    Members predict the same genes on the same scale, and learnt the same cancers where they are
    told any. Each sees the features through its own standardizer; the model's own leaves them.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs of every member.
        members: each as model.json describes a model; see ``describe``.

    Raises:
        InputError: no member, or members that know different cancers.
    """

    def __init__(self, input_dim: int, num_genes: int, members: Sequence[Mapping]):
        super().__init__()
        if not members:
            raise InputError("an average needs at least one member, got none")
        self.input_dim = input_dim
        self.members = nn.ModuleList(_Member(about) for about in members)
        own = [member.model for member in self.members]
        known = [model.cancers for model in own if model.cancers is not None]
        if any(cancers != known[0] for cancers in known):
            raise InputError(
                "the members of an average know different cancers; train them on the same slides"
            )
        self.cancers = known[0] if known else None
        self.uses_coords = any(model.uses_coords for model in own)
        self.head = Direct(num_genes)

    @classmethod
    def of(cls, trained: Sequence[tuple[str, Model, Mapping]]) -> tuple[Average, dict]:
        """The average of trained models, and the arguments that rebuild it.

        Args:
            trained: name in the table of models, model, and the arguments that rebuild it.
        """
        about = [describe(model, name, arguments) for name, model, arguments in trained]
        first = trained[0][1]
        arguments = {"input_dim": first.input_dim, "num_genes": first.head.out_features}
        arguments["members"] = about
        average = cls(**arguments)
        for member, (_, model, _) in zip(average.members, trained, strict=True):
            member.take(model)
        return average.eval(), arguments

    def hidden(self, batch):
        """(N, D) to expression (N, G)."""
        total = self.members[0](batch)
        for member in self.members[1:]:
            total = total + member(batch)
        return total / len(self.members)


class _Member(nn.Module):
    """A model and its standardizer, whose moments are part of the state here."""

    def __init__(self, about: Mapping):
        super().__init__()
        self.model = MODELS[about["model"]].load_class()(**about["arguments"])
        self.how, self.blocks = about["standardize"], tuple(about["blocks"])
        for name in MOMENTS if self.how == "train" else ():
            self.register_buffer(name, torch.zeros(self.model.input_dim))

    def take(self, model: Model) -> None:
        """Take a trained model's weights and moments."""
        self.model.load_state_dict(model.state_dict())
        if self.how == "train":
            moments = (model.standardizer.mean, model.standardizer.scale)
            for name, values in zip(MOMENTS, moments, strict=True):
                getattr(self, name).copy_(values)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Features (N, D) as extracted to expression (N, G) float32."""
        moments = [getattr(self, name, None) for name in MOMENTS]
        standardizer = Standardizer(self.how, *moments, self.blocks)
        slides = batch.features.split(batch.sizes())
        features = torch.cat([standardizer(slide) for slide in slides])
        own = dataclasses.replace(batch, features=features)
        return self.model.head(self.model.hidden(own)).float()
