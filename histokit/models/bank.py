"""The training spots that retrieval models predict from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

from histokit.core.errors import InputError

BANK_ROWS = 8192  # spots of the bank that are compared with at a time
QUERIES = 256  # patches that are compared at a time
GRID = 1 << 30  # cosines that round to the same multiple of 1 / GRID are ties
LAST = (1 << 31) - 1
LEAST_COSINE = 0.01  # of a patch with the bank on average, below which its weights explode


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows of (N, E) at length one in float64; a row of zeros stays."""
    return F.normalize(x.double(), dim=-1)


def nearest_keys(query: torch.Tensor, keys: torch.Tensor, k: int) -> torch.Tensor:
    """The k rows of a bank with the largest cosine to each query.

    Cosines are float64 and rounded to 30 bits; of equal ones those that come first in the bank are
    taken. Memory is bounded by ``QUERIES`` times ``BANK_ROWS``, whatever the size of the bank.

    Args:
        query: (N, E) float.
        keys: (M, E) float, M less than 2^31.
        k: how many; a bank of fewer spots gives all it has.

    Returns:
        (N, min(k, M)) int64, nearest first.
    """
    query = unit_rows(query)
    found = query.new_empty((len(query), 0), dtype=torch.int64)
    for start in range(0, len(keys), BANK_ROWS):
        block = unit_rows(keys[start : start + BANK_ROWS])
        # one integer holds the cosine and, below it, how early the spot comes
        place = LAST - torch.arange(start, start + len(block), device=block.device)
        best = []
        for part, before in zip(query.split(QUERIES), found.split(QUERIES), strict=True):
            rank = (((part @ block.T) * GRID).round().long() << 31) | place
            rank = torch.cat([before, rank], dim=1)
            best.append(rank.topk(min(k, rank.shape[1])).values)
        found = torch.cat(best)
    return LAST - (found & LAST)


class Bank(nn.Module):
    """Training spots: what they are found by, and their measured expression.

    Args:
        width: E of the keys.
        num_genes: G.
        slides: ids of the slides whose spots it holds.
        spots: M, how many those are.
        values: stored entries of their expression.
    """

    def __init__(
        self,
        width: int,
        num_genes: int,
        slides: Iterable[str] = (),
        spots: int = 0,
        values: int = 0,
    ):
        super().__init__()
        self.slides, index = list(slides), _index_type(values)
        for name, buffer in {
            "keys": torch.zeros(spots, width),
            "offsets": torch.zeros(spots + 1, dtype=index),
            "genes": torch.zeros(values, dtype=index),
            "values": torch.zeros(values),
            "slide": torch.zeros(spots, dtype=torch.int32),
            "row": torch.zeros(spots, dtype=torch.int32),
            "measured": torch.zeros(len(self.slides), num_genes, dtype=torch.bool),
            "mean": torch.zeros(num_genes),
        }.items():
            self.register_buffer(name, buffer)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def arguments(self) -> dict:
        """What rebuilds an empty one of the same size; plain values."""
        return {"slides": self.slides, "spots": len(self), "values": len(self.values)}

    def fill(self, slides: Iterable[tuple]) -> None:
        """Hold the spots of these slides and no others; ``mean`` becomes their mean expression.

        Args:
            slides: of each its id, keys (N, E), targets (N, G) CSR float32 and measured (G,) bool.
        """
        ids, keys, targets, measured = zip(*slides, strict=True)
        sizes = torch.tensor([len(part) for part in keys])
        lengths = torch.cat([t.crow_indices().diff() for t in targets]).cpu()
        index = _index_type(int(lengths.sum()))
        genes = torch.cat([t.col_indices() for t in targets]).cpu()
        values = torch.cat([t.values() for t in targets]).cpu()
        known = torch.stack(measured).cpu()
        count = (sizes.double() @ known.double()).clamp(min=1)
        filled = {
            "keys": torch.cat(keys).float(),
            "offsets": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(index),
            "genes": genes.to(index),
            "values": values,
            "slide": torch.repeat_interleave(torch.arange(len(ids)), sizes).int(),
            "row": torch.cat([torch.arange(size) for size in sizes.tolist()]).int(),
            "measured": known,
            "mean": (torch.bincount(genes, values.double(), known.shape[1]) / count).float(),
        }
        self.slides, device = list(ids), self.mean.device
        for name, value in filled.items():
            setattr(self, name, value.to(device))

    def _expression(self) -> sp.csr_matrix:
        """(M, G), sharing the memory of buffers on the CPU."""
        parts = (t.cpu().numpy() for t in (self.values, self.genes, self.offsets))
        return sp.csr_matrix(tuple(parts), shape=(len(self), len(self.mean)))

    def average(self, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Weighted mean expression of spots, of each gene over those whose slide measured it.

        Args:
            index: (N, K) int64 places in the bank.
            weight: (N, K) float of 0 or more, with a positive sum.

        Returns:
            (N, G) float32; the mean of the bank where none of the K measured a gene.
        """
        expression, whole = self._expression(), bool(self.measured.all())
        out = torch.empty(len(index), len(self.mean))
        for rows in torch.arange(len(index)).split(QUERIES):
            at, w = index[rows.to(index.device)].cpu(), weight[rows.to(index.device)].cpu().float()
            # the same spots sum to the same bits, whichever is nearest
            at, order = at.sort(dim=1)
            w = w.gather(1, order)
            ends = np.arange(len(at) + 1) * at.shape[1]
            shape = (len(at), len(self))
            chosen = sp.csr_matrix((w.numpy().ravel(), at.numpy().ravel(), ends), shape=shape)
            total = torch.from_numpy((chosen @ expression).toarray())
            if not whole:
                by_slide = torch.zeros(len(at), len(self.slides))
                by_slide.scatter_add_(1, self.slide.cpu()[at].long(), w)
                share = by_slide @ self.measured.cpu().float()
                total = torch.where(share > 0, total / share, self.mean.cpu())
            total[w.isnan().any(dim=1)] = torch.nan  # also where no value is stored
            out[rows] = total
        return out.to(self.mean.device)

    def average_all(self, query: torch.Tensor) -> torch.Tensor:
        """Mean expression (N, G) of all spots, weighted by their cosine to each query (N, E).

        Loki's PredEx, sum_j s_j y_j / sum_j s_j. A cosine is a product, so both sums are taken over
        the bank before a query comes in: N x M weights are never formed.

        Raises:
            InputError: cosines of a query that are about zero, or less, on average.
        """
        query, expression = unit_rows(query).cpu(), self._expression()
        values = np.zeros((len(self.mean), query.shape[1]))
        keys = torch.zeros(len(self.slides), query.shape[1], dtype=torch.float64)
        for rows in torch.arange(len(self)).split(BANK_ROWS):
            block = unit_rows(self.keys[rows.to(self.keys.device)]).cpu()
            values += expression[int(rows[0]) : int(rows[-1]) + 1].T @ block.numpy()
            keys.index_add_(0, self.slide.cpu()[rows].long(), block)
        known = self.measured.cpu().double()
        count = torch.bincount(self.slide.cpu(), minlength=len(self.slides)).double() @ known
        share = (query @ keys.T) @ known
        if (share < LEAST_COSINE * count).any():
            raise InputError(
                "--retrieval-weights loki weighs every training spot by its cosine, and those of a "
                f"patch are below {LEAST_COSINE} on average here; train with --standardize none or "
                "with other weights"
            )
        found = (query @ torch.from_numpy(values).T) / share
        return torch.where(count > 0, found.float(), self.mean.cpu()).to(self.mean.device)


def _index_type(values: int) -> torch.dtype:
    return torch.int32 if values <= LAST else torch.int64
