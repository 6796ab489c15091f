"""Predictions from the measured spots that a patch is most like; k nearest spots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from histokit.core.errors import InputError
from histokit.models.bank import BANK_ROWS, QUERIES, Bank, nearest_keys, unit_rows
from histokit.models.base import Model
from histokit.models.outputs import Direct

WEIGHTS = ("mean", "softmax", "l1", "loki")


class Retrieval(Model):
    """Predicts the mean expression of the training spots that a patch is most like.

    A subclass defines ``query``, and ``keys`` of a training slide. After the training ``remember``
    fills the bank; without one it predicts the training mean. ``hidden`` is the expression.

    The weights file of such a model holds the measured expression of every training spot: whoever
    is given the file is given those data.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs.
        width: E, dimension in which patches and spots are compared.
        retrieval_k: K, spots of the largest cosine that a prediction is the mean of.
        retrieval_weights: ``mean`` weighs the K spots alike. ``softmax`` by exp(-d^2), d the
            Euclidean distance, and ``l1`` by 1 / d^2, d the sum of absolute differences (where it
            is zero, those spots alike and no others); both of the embeddings as they are, not at
            unit length. ``loki`` weighs all spots of the bank by their cosine.
        bank: sizes of the bank, as ``Bank.arguments``; empty by default.

    Raises:
        InputError: weights of another name.
    """

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        width: int,
        retrieval_k: int = 50,
        retrieval_weights: str = "mean",
        bank: Mapping | None = None,
    ):
        super().__init__()
        if retrieval_weights not in WEIGHTS:
            raise InputError(
                f"retrieval_weights must be one of {', '.join(WEIGHTS)}, got {retrieval_weights!r}"
            )
        self.input_dim, self.k, self.weights = input_dim, retrieval_k, retrieval_weights
        self.bank = Bank(width, num_genes, **(bank or {}))
        self.head = Direct(num_genes)

    def query(self, features: torch.Tensor) -> torch.Tensor:
        """Patches (N, D) to what they are compared by, (N, E)."""
        raise NotImplementedError

    def keys(self, slide) -> torch.Tensor:
        """What the spots of a training slide are found by, (N, E)."""
        raise NotImplementedError

    def start_at(self, mean: torch.Tensor) -> None:
        """Predict this (G,) of every patch as long as the bank is empty."""
        self.bank.mean.copy_(mean)

    @torch.no_grad()
    def remember(self, slides: Iterable) -> dict:
        """Fill the bank with the spots of training slides; see ``Model.remember``."""
        self.eval()
        self.bank.fill((s.slide_id, self.keys(s), s.target, s.measured) for s in slides)
        return {"bank": self.bank.arguments}

    @torch.no_grad()
    def hidden(self, batch):
        """(N, D) to expression (N, G); each patch by itself."""
        query = self.query(batch.features).float()
        if not len(self.bank):
            return self.bank.mean.repeat(len(query), 1)
        if self.weights == "loki":
            return self.bank.average_all(query)
        return self.bank.average(*self._retrieve(query))

    @torch.inference_mode()
    def retrieve(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The training spots behind the prediction of each patch.

        Args:
            features: (N, D), as extracted.

        Returns:
            Places in the bank (N, min(K, M)) int64, nearest first, and their weights, float32,
            which sum to one; with ``loki`` they are shares of the whole bank's and sum to less.
            ``bank.slide`` and ``bank.row`` say which spot of which slide is in each place.
        """
        self.eval()
        return self._retrieve(self.query(self.place(self.standardizer(features))).float())

    def _retrieve(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = nearest_keys(query, self.bank.keys, self.k)
        pairs = zip(query.split(QUERIES), index.split(QUERIES), strict=True)
        weight = torch.cat([self._weigh(part, at) for part, at in pairs])
        # what is not finite is like no spot; the prediction must show it
        weight[~query.isfinite().all(dim=1)] = torch.nan
        return index, weight.float()

    def _weigh(self, query: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Weights (N, K) float64 of the retrieved spots."""
        if self.weights == "mean":
            return torch.full_like(index, 1 / index.shape[1], dtype=torch.float64)
        if self.weights == "loki":
            total = sum(unit_rows(rows).sum(0) for rows in self.bank.keys.split(BANK_ROWS))
            unit = unit_rows(query)
            near = torch.stack([(unit * unit_rows(self.bank.keys[at])).sum(1) for at in index.T], 1)
            return near / (unit @ total)[:, None]
        distance = torch.stack(
            [_distance(query, self.bank.keys[at], self.weights) for at in index.T], dim=1
        )
        if self.weights == "softmax":
            return (-distance).softmax(dim=1)
        least = distance.min(dim=1, keepdim=True).values
        weight = torch.where(least > 0, (least / distance).square(), (distance == 0).double())
        return weight / weight.sum(dim=1, keepdim=True)


def _distance(a: torch.Tensor, b: torch.Tensor, weights: str) -> torch.Tensor:
    """Squared Euclidean, or absolute, distance (N,) float64 of rows (N, E)."""
    difference = a.double() - b.double()
    return difference.square().sum(1) if weights == "softmax" else difference.abs().sum(1)


class NearestSpots(Retrieval):
    """The training spots with the largest cosine to the patch features themselves (kNN).

    Nothing is learned: the control of every retrieval model, whose training bought nothing where
    this predicts as well with the same K. Arguments as of ``Retrieval``.
    """

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        retrieval_k: int = 50,
        retrieval_weights: str = "mean",
        bank: Mapping | None = None,
    ):
        super().__init__(input_dim, num_genes, input_dim, retrieval_k, retrieval_weights, bank)

    def query(self, features):
        """Features (N, D) as they are."""
        return features

    def keys(self, slide):
        """Features (N, D) as they are."""
        return slide.features
