"""DeepSpot on frozen patch features: deep sets over a spot, its context and its neighbors.

Nonchev et al., medRxiv 2025.02.09.25321567. Parameters carry the names of the authors' checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Model
from histokit.models.places import nearest_spots
from histokit.ops.gemm import Linear, linear

NEIGHBORS = 8  # the ring around a spot of a square array; a hexagonal one has six
RADIUS = (
    1.5  # pitches: beyond a square array's diagonal (1.41), before a hexagon's next ring (1.73)
)


class DeepSpot(Model):
    """Bags of patches through one set of layers phi, then a mean over linear layers rho.

    Bags: the patch itself; with ``deepspot_scales`` above 1 its patches of other sizes, summed; and
    its neighbors on the array, of which each dimension takes the maximum. phi is the median over
    copies of ReLU(dropout(linear)), shared by all bags. Of an even number of copies the lower of
    the two middle values counts, as the authors have it.

    What differs from the authors: their context bag holds nine parts of the patch, here it holds
    patches of further sizes, or there is none; a neighbor that is not there plays no part (a zero
    in its place would enter the maximum as phi(0)); a neighbor's phi drops what it drops for the
    spot that it is; targets are neither standardized by gene nor predictions clipped at 0; a step
    is one slide and slides are not resampled.

    In evaluation the mean over rho is one linear layer, which ``head`` gives.

    Args:
        input_dim: D, dimension of the patch features, all sizes of patch together.
        num_genes: G, outputs (5,000 in the paper).
        hidden_dim: width of phi (512).
        dropout: rate in phi and before rho (0.3).
        deepspot_members: copies of phi, and of rho (10).
        deepspot_scales: sizes of patch in the features, those of ``--scales``, the spot's first.
        deepspot_output_dropout: rate behind rho (0.1); see ``loss``.

    Raises:
        InputError: features that do not divide into so many sizes of patch.
    """

    uses_coords = True

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        hidden_dim: int = 512,
        dropout: float = 0.3,
        deepspot_members: int = 10,
        deepspot_scales: int = 1,
        deepspot_output_dropout: float = 0.1,
    ):
        super().__init__()
        if input_dim % deepspot_scales:
            raise InputError(
                f"--deepspot-scales {deepspot_scales} does not divide the {input_dim} dimensions "
                "of the features; give the number of --scales that they were extracted with"
            )
        self.input_dim, self.scales = input_dim, deepspot_scales
        self.dropout, self.output_dropout = dropout, deepspot_output_dropout
        bags = 2 if deepspot_scales == 1 else 3
        self.phi_spot = nn.ModuleList(
            _Phi(input_dim // deepspot_scales, hidden_dim, dropout) for _ in range(deepspot_members)
        )
        self.rho = nn.ModuleList(
            _Rho(bags * hidden_dim, num_genes, dropout) for _ in range(deepspot_members)
        )

    @property
    def head(self) -> MeanLinear:
        """The linear layers over genes as one."""
        return MeanLinear([rho.model[2] for rho in self.rho])

    def hidden(self, batch):
        """(N, D) to (N, bags * hidden_dim), the bags side by side."""
        features = batch.features.view(len(batch.features), self.scales, -1)
        sizes = batch.sizes()
        spot = self._phi(features[:, 0])
        bags = [spot]
        if self.scales > 1:
            bags.append(sum(self._phi(features[:, i]) for i in range(1, self.scales)))
        slides = zip(spot.split(sizes), batch.coords.split(sizes), strict=True)
        bags.append(torch.cat([_strongest(*slide) for slide in slides]))
        return torch.cat(bags, dim=1)

    def _phi(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([phi.model(x) for phi in self.phi_spot]).median(dim=0).values

    def loss(self, batch, targets, autocast=None):
        """Mean over slides of each slide's MSE over its measured genes.

        In training each rho drops dimensions of its own, and outputs with rate r. The latter is not
        drawn but taken on average over all draws: for M copies y_m whose mean is compared with a
        target, E(MSE) = MSE + r / (1 - r) / M^2 * sum over m of the mean square of y_m.
        """
        if not self.training:
            return super().loss(batch, targets, autocast)
        with torch.autocast(batch.features.device.type, autocast, enabled=autocast is not None):
            hidden = self.hidden(batch)
        parts = zip(hidden.float().split(batch.sizes()), targets, strict=True)
        return torch.stack([self._slide_loss(part, target) for part, target in parts]).mean()

    def _slide_loss(self, hidden: torch.Tensor, target) -> torch.Tensor:
        copies, layers = len(self.rho), [rho.model[2] for rho in self.rho]
        dropped = [rho.model[:2](hidden) for rho in self.rho]
        weight = torch.cat([layer.weight for layer in layers], dim=1)
        bias = self.head.bias
        mse = ops.linear_mse(
            torch.cat(dropped, dim=1) / copies, weight, bias, target.values, target.measured
        )
        if not self.output_dropout:
            return mse
        nothing = _empty_csr(target.values)
        squares = [
            ops.linear_mse(x, layer.weight, layer.bias, nothing, target.measured)
            for x, layer in zip(dropped, layers, strict=True)
        ]
        odds = self.output_dropout / (1 - self.output_dropout)
        return mse + odds / copies**2 * torch.stack(squares).sum()

    def start_at(self, mean):
        """Every rho at zero weights and the training mean (G,) of each gene."""
        for rho in self.rho:
            nn.init.zeros_(rho.model[2].weight)
            rho.model[2].bias.data.copy_(mean)

    @classmethod
    def from_official(cls, path: str | Path, scales: int = 1) -> DeepSpot:
        """Load a state dict of the authors, read without unpickling code; in evaluation mode.

        Sizes are read from the tensors. It predicts genes standardized over its training spots.

        Args:
            path: the file.
            scales: sizes of patch side by side in the features that it will be given; above 1 for
                checkpoints of three bags. The authors' second bag is nine parts of the patch (10).

        Raises:
            InputError: no such file, or tensors that are not those of DeepSpot with these bags.
        """
        state = read_state_dict(path)
        try:
            hidden_dim, patch_dim = state["phi_spot.0.model.0.weight"].shape
            num_genes, _ = state["rho.0.model.2.weight"].shape
        except (KeyError, ValueError) as error:
            with torch.device("meta"):
                published = cls(1024 * scales, 5000, deepspot_scales=scales)
            raise InputError(
                f"{path} is not a checkpoint of DeepSpot: {misfit(published, state)}"
            ) from error
        members = len({key.split(".")[1] for key in state if key.startswith("rho.")})
        model = cls(
            patch_dim * scales, num_genes, hidden_dim,
            deepspot_members=members, deepspot_scales=scales,
        )  # fmt: skip
        load_weights(model, state, Path(path))
        return model.eval()


class _Phi(nn.Module):
    def __init__(self, input_dim: int, width: int, dropout: float):
        super().__init__()
        self.model = nn.Sequential(Linear(input_dim, width), nn.Dropout(dropout), nn.ReLU())


class _Rho(nn.Module):
    def __init__(self, input_dim: int, num_genes: int, dropout: float):
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(dropout), nn.ReLU(), Linear(input_dim, num_genes))


class MeanLinear(nn.Module):
    """The mean of linear layers, as one linear layer."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.out_features = layers[0].out_features

    @property
    def weight(self) -> torch.Tensor:
        """(G, d)."""
        return sum(layer.weight for layer in self.layers) / len(self.layers)

    @property
    def bias(self) -> torch.Tensor:
        """(G,); the mean of equal values is that value, to the bit."""
        total = sum(layer.bias.double() for layer in self.layers)
        return (total / len(self.layers)).to(self.layers[0].bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, d) to (N, G)."""
        return linear(hidden, self.weight, self.bias)


def _strongest(h: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
    """Maximum of h (N, d) >= 0 over each spot's neighbors on the array; 0 where it has none."""
    index, there = nearest_spots(coords, NEIGHBORS)
    result = torch.zeros_like(h)
    if not index.shape[1]:
        return result
    place = coords.double()
    distance = (place[index] - place[:, None]).norm(dim=2)
    near = there & (distance <= RADIUS * distance[:, 0].median())
    for neighbor, is_near in zip(index.T, near.T, strict=True):
        result = torch.maximum(result, h.index_select(0, neighbor) * is_near[:, None])
    return result


def _empty_csr(like: torch.Tensor) -> torch.Tensor:
    """A CSR matrix of zeros of the same size."""
    return torch.sparse_csr_tensor(
        torch.zeros_like(like.crow_indices()), like.col_indices()[:0], like.values()[:0],
        size=like.shape, check_invariants=False,
    )  # fmt: skip
