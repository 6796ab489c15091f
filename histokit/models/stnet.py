"""ST-Net's head on frozen patch features (He et al., Nature Biomedical Engineering 2020)."""

from __future__ import annotations

import torch

from histokit.models.base import Model
from histokit.ops.gemm import Linear


class STNet(Model):
    """One linear layer on the features of each patch, which starts at the training mean.

    ST-Net trains a DenseNet121 whose last layer begins at zero weights, with the mean training
    expression of each gene as its bias. Here the features stay as they were extracted and only
    that layer is trained: a ridge regression whose penalty is early stopping, to be expected
    between ``mean`` and ``ridge``. Most of ST-Net's strength is in the features that it learns, so
    figures of its paper say nothing of this model.

    Args:
        input_dim: D, dimension of the patch features (1,024 of DenseNet121).
        num_genes: G, outputs (250 in the paper).
    """

    def __init__(self, input_dim: int, num_genes: int):
        super().__init__()
        self.input_dim = input_dim
        self.head = Linear(input_dim, num_genes)
        self.start_at(torch.zeros(num_genes))

    def hidden(self, batch):
        """Features (N, D) as they are."""
        return batch.features
