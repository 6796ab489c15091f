"""mclSTExp on frozen patch features: BLEEP with a transformer over a slide's expression."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from histokit.core.errors import InputError
from histokit.models.base import Target
from histokit.models.bleep import BLEEP
from histokit.models.diffusion import sinusoid
from histokit.models.places import array_positions
from histokit.models.prenorm import Blocks, attend
from histokit.ops.gemm import Linear

HEADS, HEAD_WIDTH, DEPTH = 8, 64, 2
MOST_GENES = 4096  # of whose square the encoder has four times as many weights


class WideAttention(nn.Module):
    """All spots of a slide attend to each other; 8 heads of 64, whatever the width is."""

    def __init__(self, width: int):
        super().__init__()
        self.to_qkv = Linear(width, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.to_out = Linear(HEADS * HEAD_WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) of one slide to (N, width)."""
        q, k, v = self.to_qkv(x).view(len(x), 3, HEADS, HEAD_WIDTH).permute(1, 2, 0, 3)
        return self.to_out(attend(q, k, v).transpose(0, 1).flatten(1))


def pair_contrast(image: Tensor, spot: Tensor, temperature: float = 1.0) -> Tensor:
    """InfoNCE of B patches and their spots, (B, E) each: each is to find its own, both ways."""
    logits = spot @ image.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class MclSTExp(BLEEP):
    """mclSTExp's embeddings of patches and of spots among the spots of their slide.

    As ``BLEEP``, but a spot's expression first passes two transformer blocks over its slide, told
    its column and row, and patches and spots are contrasted by ``pair_contrast``. As published, a
    spot attends to those of its minibatch, so that its embedding depends on who is in it, and
    columns and rows are two learned tables of 65,536 vectors each. Here a spot attends to its slide
    and the two are sinusoids, which are added to the expression in the same way.

    The weights file holds the training expression, as of every ``Retrieval``.

    Args:
        input_dim: D, dimension of the patch features (1,024 as published).
        num_genes: G, outputs (785 as published), also the width of the transformer.
        dropout, retrieval_k, retrieval_weights, bleep_temperature, bleep_batch, bleep_normalize,
            bank: as of ``BLEEP``. Published: the 200 nearest spots, weights ``l1``.

    Raises:
        InputError: more than 4,096 genes.
    """

    uses_coords = True
    contrast = staticmethod(pair_contrast)

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        dropout: float = 0.1,
        retrieval_k: int = 200,
        retrieval_weights: str = "l1",
        bleep_temperature: float = 1.0,
        bleep_batch: int = 128,
        bleep_normalize: bool = False,
        bank: Mapping | None = None,
    ):
        if num_genes > MOST_GENES:
            raise InputError(
                f"mclstexp's transformer is as wide as the panel and takes up to {MOST_GENES:,} "
                f"genes, not {num_genes:,}; choose genes with --panel FILE"
            )
        super().__init__(
            input_dim, num_genes, dropout, retrieval_k, retrieval_weights,
            bleep_temperature, bleep_batch, bleep_normalize, bank,
        )  # fmt: skip
        attentions = (WideAttention(num_genes) for _ in range(DEPTH))
        self.spot_encoder = Blocks(num_genes, num_genes, 0.0, attentions)

    def spots(self, target: Target, coords: Tensor) -> Tensor:
        """Expression (N, G), CSR, and centers (N, 2) of one slide to embeddings (N, 256)."""
        y = torch.where(target.measured, target.values.to_dense(), self.bank.mean)
        places = array_positions(coords).to(y)
        width = y.shape[1]
        half = -(-width // 4) * 2  # even, and at least half of the genes: columns, then rows
        waves = sinusoid(places, half).flatten(1)[:, :width]
        return self.spot_projection(self.spot_encoder(y + waves))
