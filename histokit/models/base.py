"""What every model is: a patch encoder followed by a linear head over genes."""

from __future__ import annotations

import torch
from torch import nn

from histokit.errors import InputError


class Model(nn.Module):
    """Predicts as ``head(hidden(x, cancer))``; evaluation may use the two halves apart.

    A subclass defines ``hidden``, holds an ``nn.Linear`` as ``head``, and sets ``input_dim``.
    ``cancers`` lists the oncotree codes a model is conditioned on, or is None where it is not.
    """

    cancers: list[str] | None = None

    def hidden(
        self, x: torch.Tensor, cancer: int | torch.Tensor, slide_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Patch features (N, D) to the head's input (N, d)."""
        raise NotImplementedError

    def forward(
        self, x: torch.Tensor, cancer: int | torch.Tensor, slide_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict expression.

        Args:
            x: (N, D) float patch features of one slide, or of several slides one after another.
            cancer: integer code of the slide, or (S,) codes of the packed slides; -1 is unknown.
            slide_index: (N,) int64, ascending: which slide a patch belongs to, when packed.

        Returns:
            (N, G) expression on the scale of the training targets.
        """
        return self.head(self.hidden(x, cancer, slide_index))

    def cancer_code(self, cancer: str) -> int:
        """The integer code of an oncotree code; raises InputError for one never trained on."""
        if self.cancers is None:
            return -1
        if cancer not in self.cancers:
            raise InputError(
                f"the model does not know the cancer code {cancer!r}; it was trained on "
                f"{', '.join(self.cancers)}; correct the slide's code or train with such slides"
            )
        return self.cancers.index(cancer)

    @torch.inference_mode()
    def predict(self, features: torch.Tensor, cancer: str) -> torch.Tensor:
        """One slide's features (N, D) and oncotree code to expression (N, G), float32.

        Raises:
            InputError: features of another dimension, or an unknown cancer code.
        """
        if features.ndim != 2 or features.shape[1] != self.input_dim:
            raise InputError(
                f"the model takes features of {self.input_dim} dimensions and got "
                f"{tuple(features.shape)}; use the encoder it was trained with"
            )
        self.eval()
        return self(features.to(self.head.weight.dtype), self.cancer_code(cancer)).float()
