"""The baselines that every claim must beat."""

from __future__ import annotations

import torch
from torch import nn

from histokit.models.base import Model
from histokit.ops.gemm import Linear, linear


class Mean(Model):
    """Every patch gets the training mean of each gene: what an MSE means without an image."""

    def __init__(self, input_dim: int, num_genes: int):
        super().__init__()
        self.input_dim = input_dim
        self.head = Linear(1, num_genes)

    def hidden(self, batch):
        """(N, D) to zeros (N, 1)."""
        return batch.features.new_zeros(len(batch.features), 1)


class LinearMap(Model):
    """Standardize, project on principal components, regress: both ridge recipes when fitted."""

    def __init__(self, input_dim: int, num_components: int, num_genes: int):
        super().__init__()
        self.input_dim = input_dim
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))
        self.register_buffer("components", torch.zeros(num_components, input_dim))
        self.register_buffer("offset", torch.zeros(num_components))
        self.head = Linear(num_components, num_genes)

    def hidden(self, batch):
        """(N, D) to component scores (N, K)."""
        return linear((batch.features - self.mean) / self.scale, self.components, -self.offset)


class MLP(Model):
    """Three layers on each patch alone."""

    def __init__(self, input_dim: int, num_genes: int, hidden_dim: int = 256, dropout: float = 0.1):
        super().__init__()
        self.input_dim = input_dim
        self.body = nn.Sequential(
            Linear(input_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = Linear(hidden_dim, num_genes)

    def hidden(self, batch):
        """(N, D) to (N, hidden_dim)."""
        return self.body(batch.features)
