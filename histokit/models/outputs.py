"""From a model's hidden layer to expression, for the genes that are asked for."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from histokit.ops.gemm import linear


class Direct(nn.Module):
    """The head of a model whose ``hidden`` (N, G) is the expression itself: it changes nothing."""

    def __init__(self, num_genes: int):
        super().__init__()
        self.out_features = num_genes

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, G) as it is."""
        return hidden


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The genes of a model, or some of them, computed where they are asked for.

    Attributes:
        weight: (G, d) of a linear head; None for ``Direct``.
        bias: (G,) of a linear head; None for ``Direct``.
        columns: (G,) int64, which of the hidden columns they are, -1 for a gene that is zero in
            every spot; None for a linear head.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    columns: torch.Tensor | None = None

    @classmethod
    def of(cls, head: nn.Module) -> Outputs:
        """All genes of a head."""
        if isinstance(head, Direct):
            return cls(None, None, torch.arange(head.out_features))
        return cls(head.weight.detach(), head.bias.detach())

    def silencing(self, learned: torch.Tensor) -> Outputs:
        """The same genes, of which those not in ``learned``, (G,) bool, are zero in every spot."""
        if learned.all():
            return self
        if self.columns is not None:
            return Outputs(None, None, self.columns.where(learned, -1))
        weight = self.weight.masked_fill(~learned[:, None], 0)
        return Outputs(weight, self.bias.masked_fill(~learned, 0))

    def __getitem__(self, genes) -> Outputs:
        """Some of the genes, by an index, a slice or positions."""
        if self.columns is not None:
            return Outputs(None, None, self.columns[genes])
        return Outputs(self.weight[genes], self.bias[genes])

    def __len__(self) -> int:
        return len(self.bias if self.columns is None else self.columns)

    def is_finite(self) -> bool:
        """Whether no weight is infinite or NaN."""
        return self.columns is not None or bool(
            self.weight.isfinite().all() and self.bias.isfinite().all()
        )

    @torch.inference_mode()
    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) to (N, G), or to (N,) of a single gene."""
        if self.columns is not None:
            return hidden[:, self.columns].where(self.columns >= 0, 0)
        if self.bias.ndim == 0:
            return hidden @ self.weight + self.bias
        return linear(hidden.to(self.weight), self.weight, self.bias)
