"""BLEEP on frozen patch features: patches and expression embedded alike (Xie et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Batch, Target
from histokit.models.retrieval import Retrieval
from histokit.ops.gemm import Linear

WIDTH = 256
HEADS = ("image_projection.", "spot_projection.")
VALIDATION_SEED = 0


class ProjectionHead(nn.Module):
    """``LN(p + dropout(W gelu(p)))``, p a linear map of the input; (N, D) to (N, 256)."""

    def __init__(self, input_dim: int, dropout: float):
        super().__init__()
        self.projection = Linear(input_dim, WIDTH)
        self.fc = Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(WIDTH)

    def refine(self, projected: torch.Tensor) -> torch.Tensor:
        """What follows the first layer: (N, 256) to (N, 256)."""
        return self.layer_norm(projected + self.dropout(self.fc(F.gelu(projected))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D) to (N, 256)."""
        return self.refine(self.projection(x))


def soft_contrast(
    image: torch.Tensor, spot: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """BLEEP's contrastive loss of B patches and their spots, (B, E) each.

    ``logits = S I^T / t`` are to agree with ``T = softmax((I I^T + S S^T) / 2 / t)`` by rows, with
    cross-entropy along rows and along columns. The columns of T do not sum to one, as published,
    so the second is no proper cross-entropy and the loss changes when I and S trade places.
    Gradients flow through T too. The authors' code multiplies by t in T in some versions and
    divides in others, which is the same at t = 1, as published.
    """
    logits = spot @ image.T / temperature
    target = ((image @ image.T + spot @ spot.T) / 2 / temperature).softmax(dim=1)
    by_spot = (target * logits.log_softmax(dim=1)).sum(dim=1)
    by_image = (target * logits.log_softmax(dim=0)).sum(dim=0)
    return -(by_spot + by_image).mean() / 2


class BLEEP(Retrieval):
    """Embeds patches and spots so that those of one place are alike; predicts by retrieval.

    One head embeds the features of a patch, another the expression of a spot, both trained by
    ``soft_contrast`` on ``bleep_batch`` patches of one slide at a time (128 of any slide as
    published). A prediction is the mean expression of the K training spots whose embeddings have
    the largest cosine to the patch's. The published model trains its image encoder too, and
    corrects the expression of test slides along with that of the bank (Harmony); neither is done
    here, so figures of its paper say nothing of this model. ``knn`` with the same K is its control.

    As of every ``Retrieval``, the weights file holds the training expression: to share it is to
    share those data. A gene that a slide did not measure enters the spot head as the training mean
    that ``start_at`` gave it, as zero without.

    Args:
        input_dim: D, dimension of the patch features (2,048 as published).
        num_genes: G, outputs (3,467 as published).
        dropout: rate in both heads.
        retrieval_k: as of ``Retrieval``.
        retrieval_weights: as of ``Retrieval``.
        bleep_temperature: divides similarities in the loss.
        bleep_batch: patches of a slide that are contrasted at a time; the loss of a slide is the
            mean over parts of about this size, drawn anew in each step.
        bleep_normalize: contrast embeddings of length one; not so as published.
        bank: as of ``Retrieval``.
    """

    loss_name = "contrastive loss"
    contrast = staticmethod(soft_contrast)

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        dropout: float = 0.1,
        retrieval_k: int = 50,
        retrieval_weights: str = "mean",
        bleep_temperature: float = 1.0,
        bleep_batch: int = 128,
        bleep_normalize: bool = False,
        bank: Mapping | None = None,
    ):
        super().__init__(input_dim, num_genes, WIDTH, retrieval_k, retrieval_weights, bank)
        self.image_projection = ProjectionHead(input_dim, dropout)
        self.spot_projection = ProjectionHead(num_genes, dropout)
        self.temperature, self.size = bleep_temperature, bleep_batch
        self.normalize = bleep_normalize

    def query(self, features):
        """Patch features (N, D) to embeddings (N, 256)."""
        return self.image_projection(features)

    def keys(self, slide):
        """Embeddings (N, 256) of a training slide's spots."""
        return self.spots(Target(slide.target, slide.measured), slide.coords)

    def spots(self, target: Target, coords: torch.Tensor | None = None) -> torch.Tensor:
        """Expression (N, G), CSR, of one slide to embeddings (N, 256); places play no part."""
        layer = self.spot_projection.projection
        filled = torch.where(target.measured, 0, self.bank.mean)
        return self.spot_projection.refine(target.values @ layer.weight.T + layer(filled))

    def loss(
        self, batch: Batch, targets: Sequence[Target], autocast: torch.dtype | None = None
    ) -> torch.Tensor:
        """Mean over slides of the mean contrastive loss over the parts of a slide.

        Slides are taken apart at random, in evaluation mode always in the same way. The spot head,
        which takes sparse expression, stays float32 under ``autocast``.
        """
        with torch.autocast(batch.features.device.type, autocast, enabled=autocast is not None):
            images, sizes = self.query(batch.features).float(), batch.sizes()
        places = batch.coords.split(sizes) if self.uses_coords else [None] * len(sizes)
        slides = zip(images.split(sizes), targets, places, strict=True)
        return torch.stack(
            [self._slide_loss(image, self.spots(t, coords)) for image, t, coords in slides]
        ).mean()

    def _slide_loss(self, image: torch.Tensor, spot: torch.Tensor) -> torch.Tensor:
        if self.normalize:
            image, spot = F.normalize(image, dim=1), F.normalize(spot, dim=1)
        random = None if self.training else torch.Generator().manual_seed(VALIDATION_SEED)
        order = torch.randperm(len(image), generator=random).to(image.device)
        # parts of equal size: a patch that is left over alone would have nothing to differ from
        parts = order.tensor_split(-(-len(order) // self.size))
        losses = [self.contrast(image[rows], spot[rows], self.temperature) for rows in parts]
        return torch.stack(losses).mean()

    @classmethod
    def from_official(cls, path: str | Path) -> BLEEP:
        """Load the heads of an authors' checkpoint, read without unpickling code.

        Its image encoder is left out: features are to be its outputs. The bank is empty, so that
        ``remember`` has to be given the training slides before it predicts. In evaluation mode.

        Raises:
            InputError: no such file, or tensors that are not those of the published heads.
        """
        found = {k.replace("well_", "spot_"): v for k, v in read_state_dict(path).items()}
        state = {k: v for k, v in found.items() if not k.startswith("image_encoder.")}
        try:
            sizes = [state[f"{head}projection.weight"].shape[1] for head in HEADS]
        except (KeyError, IndexError) as error:
            found = misfit(cls(1, 1), _with_bank(cls(1, 1), state))
            raise InputError(f"{path} is not a checkpoint of BLEEP: {found}") from error
        model = cls(*sizes)
        load_weights(model, _with_bank(model, state), Path(path))
        return model.eval()


def _with_bank(model: BLEEP, state: Mapping) -> dict:
    """A state dict of the heads with the model's bank."""
    bank = {name: value for name, value in model.state_dict().items() if name.startswith("bank.")}
    return bank | dict(state)
