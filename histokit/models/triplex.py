"""TRIPLEX on patch features: a spot, its neighborhood and its slide, fused.

Rebuilt from the published architecture (Chung et al., CVPR 2024, arXiv 2403.07592); parameters
carry the names of the authors' checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.core.weights import load_weights, read_state_dict
from histokit.models.base import Batch, Model, Target
from histokit.models.outputs import Direct
from histokit.models.triplex_parts import (
    CONFIGS,
    Array,
    ArrayWindows,
    FusionEncoder,
    GlobalEncoder,
    NearestWindows,
    NeighborEncoder,
    encoder_arguments,
)
from histokit.ops.gemm import Linear

SOFT = 0.3  # of a branch's loss, the share of its distance to the fusion instead of the target
ROWS = 512  # spots whose windows are worked on at a time
NEIGHBORS = ("array", "nearest")
ABLATIONS = ("none", "fusion-only", "no-neighbor", "no-global")


class TRIPLEX(Model):
    """Three views of each spot, and a fusion that asks the first two in the third's words.

    Target: the spot's own feature, one token. Neighbors: the features of the 5 x 5 array around it,
    those where no spot lies being left out of attention and means. Global: all spots of the slide.
    The published network trains a ResNet18 on the target, and reads neighbors from pixels around
    the spot; here all three come from the slide's features, so its figures are not comparable.

    Training: MSE of the fusion, and for each branch .7 of its MSE to the target and .3 of that to
    the fusion, from which both learn. A step is one slide, not 128 spots of any slides. In
    evaluation the loss is the fusion's MSE alone.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs.
        hidden_dim: e, width of all encoders.
        dropout: rate in place of the configuration's own three; None keeps them.
        triplex_config: which of ``CONFIGS``: depths, heads and widths of the encoders.
        triplex_project: a linear layer before the neighbor and global encoders too. The published
            network has one before the target only, and takes features of e dimensions.
        triplex_clamp: cut predictions at zero from below, as published. Where a head is negative it
            then learns nothing, and genes that it never leaves zero for are constant.
        triplex_neighbors: ``array``, or ``nearest``: the 24 nearest spots, and those as near as the
            last of them, for slides without one.
        triplex_ablation: ``none``; ``fusion-only``, trained without the branches' losses;
            ``no-neighbor``; or ``no-global``, where the spot's own token asks.
        triplex_spots: spots of a slide that a training step is taught at most, drawn anew each
            time; None for all. The global encoder sees the whole slide regardless.

    Raises:
        InputError: an unknown choice, heads that do not divide the width, or features of another
            dimension than the width where they are not projected.
    """

    uses_coords = True

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        hidden_dim: int = 512,
        dropout: float | None = None,
        triplex_config: str = "default",
        triplex_project: bool = True,
        triplex_clamp: bool = False,
        triplex_neighbors: str = "array",
        triplex_ablation: str = "none",
        triplex_spots: int | None = None,
    ):
        super().__init__()
        _check("config", triplex_config, tuple(CONFIGS))
        _check("neighbors", triplex_neighbors, NEIGHBORS)
        _check("ablation", triplex_ablation, ABLATIONS)
        if not triplex_project and input_dim != hidden_dim:
            raise InputError(
                f"--no-triplex-project needs features of --hidden-dim {hidden_dim} dimensions, got "
                f"{input_dim}; project them, or give --hidden-dim {input_dim}"
            )
        self.input_dim, self.nearest = input_dim, triplex_neighbors == "nearest"
        self.clamp, self.max_spots = triplex_clamp, triplex_spots
        has_neighbors = triplex_ablation != "no-neighbor"
        has_global = triplex_ablation != "no-global"
        fusion, whole, near = encoder_arguments(triplex_config, hidden_dim, dropout)

        def project() -> nn.Module:
            return Linear(input_dim, hidden_dim) if triplex_project else nn.Identity()

        self.target_linear = Linear(input_dim, hidden_dim)
        self.neighbor_linear = project() if has_neighbors else None
        self.neighbor_encoder = NeighborEncoder(*near) if has_neighbors else None
        self.global_linear = project() if has_global else None
        self.global_encoder = GlobalEncoder(*whole) if has_global else None
        self.fusion_encoder = FusionEncoder(*fusion)
        self.fc = Linear(hidden_dim, num_genes)
        taught = () if triplex_ablation == "fusion-only" else ("target", "neighbor", "global")
        for view in taught:
            if getattr(self, f"{view}_linear") is not None:
                setattr(self, f"fc_{view}", Linear(hidden_dim, num_genes))

    @property
    def head(self) -> nn.Module:
        """The linear layer of the fusion, or ``Direct`` where predictions are clamped."""
        return Direct(self.fc.out_features) if self.clamp else self.fc

    def branch_heads(self) -> dict[str, nn.Linear]:
        """The linear layers that are trained beside the fusion's, by their view."""
        names = {view: f"fc_{view}" for view in ("target", "neighbor", "global")}
        return {view: getattr(self, name) for view, name in names.items() if hasattr(self, name)}

    def start_at(self, mean):
        """As ``Model.start_at``, of all four heads: a branch elsewhere would pull the fusion."""
        for head in (self.fc, *self.branch_heads().values()):
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(mean)

    def hidden(self, batch):
        """(N, D) to (N, hidden_dim), or to (N, G) where predictions are clamped."""
        fused = torch.cat([self._views(*slide)["fusion"] for slide in _slides(batch)])
        return self.fc(fused).clamp(min=0) if self.clamp else fused

    def loss(self, batch, targets, autocast=None):
        """Mean over slides of the losses over measured genes; in evaluation the fusion's alone."""
        losses = []
        for (features, coords), target in zip(_slides(batch), targets, strict=True):
            rows = self._drawn(features)
            with torch.autocast(features.device.type, autocast, enabled=autocast is not None):
                views = self._views(features, coords, rows)
            views = {name: view.float() for name, view in views.items()}
            values = target.values if rows is None else target.rows(rows)
            losses.append(self._slide_loss(views, Target(values, target.measured)))
        return torch.stack(losses).mean()

    def _drawn(self, features: Tensor) -> Tensor | None:
        """The rows that a training step is taught, ascending; None for all."""
        if not self.training or self.max_spots is None or len(features) <= self.max_spots:
            return None
        drawn = torch.randperm(len(features))[: self.max_spots]
        return drawn.sort().values.to(features.device)

    def _views(self, features: Tensor, coords: Tensor, rows: Tensor | None = None) -> dict:
        """What each head is given, (n, hidden_dim), of one slide's spots or some of them."""
        array = Array(coords)
        views = {"target": self.target_linear(features)}
        if self.global_encoder is not None:
            views["global"] = self.global_encoder(self.global_linear(features), array)
        if rows is not None:
            views = {name: view[rows] for name, view in views.items()}
        query = views.get("global", views["target"])
        if self.neighbor_encoder is None:
            return views | {"fusion": self._fuse(query, views["target"])}
        near = self.neighbor_linear(features)
        windows = NearestWindows(coords) if self.nearest else ArrayWindows(array)
        begun = self.neighbor_encoder.begin(near if self.nearest else array.means(near))
        rows = torch.arange(len(features), device=features.device) if rows is None else rows
        means, fused = [], []
        for part, own, asks in zip(
            rows.split(ROWS), views["target"].split(ROWS), query.split(ROWS), strict=True
        ):
            some = windows.of(part)
            tokens = self.neighbor_encoder(begun, some)
            there = some.mask[..., None]
            means.append(tokens.where(there, 0).sum(1) / there.sum(1))
            fused.append(self._fuse(asks, own, (tokens, some.mask)))
        return views | {"neighbor": torch.cat(means), "fusion": torch.cat(fused)}

    def _fuse(self, query: Tensor, own: Tensor, *others: tuple[Tensor, Tensor]) -> Tensor:
        target = own[:, None], own.new_ones(len(own), 1, dtype=torch.bool)
        return self.fusion_encoder(query, [target, *others])

    def _slide_loss(self, views: dict[str, Tensor], target: Target) -> Tensor:
        error = _clamped_mse if self.clamp else _linear_mse
        fusion = views["fusion"], self.fc
        loss = error(*fusion, target)
        if self.training:
            for name, head in self.branch_heads().items():
                branch = views[name], head
                loss = loss + (1 - SOFT) * error(*branch, target)
                loss = loss + SOFT * error(*branch, target, fusion)
        return loss

    @classmethod
    def from_official(
        cls, path: str | Path, triplex_config: str = "default", triplex_clamp: bool = True
    ) -> TRIPLEX:
        """Load the authors' checkpoint without its ResNet18; in evaluation mode.

        Features have to be those that the checkpoint was trained on: pooled maps of that network
        as the target, which are taken for neighbors and slide too.

        Args:
            path: Lightning checkpoint or state dict, read without unpickling code.
            triplex_config: the configuration it was trained by, for tensors do not tell heads.
            triplex_clamp: cut predictions at zero as the authors do.

        Raises:
            InputError: no such file, or tensors that do not fit the configuration.
        """
        state = from_official_names(read_state_dict(path), CONFIGS[triplex_config].heads[1])
        if not {"fc.weight", "target_linear.weight"} <= state.keys():
            raise InputError(f"{path} is not a checkpoint of TRIPLEX: it lacks fc or target_linear")
        num_genes, width = state["fc.weight"].shape
        model = cls(
            state["target_linear.weight"].shape[1], num_genes, width,
            triplex_config=triplex_config, triplex_project=False, triplex_clamp=triplex_clamp,
        )  # fmt: skip
        load_weights(model, state, Path(path))
        return model.eval()


def from_official_names(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """A published state dict as ours: no prefix, no ResNet18, rows of queries, keys and values.

    The published global attention lies (head, dimension, q k v) in ``to_qkv``, the other (q k v,
    head, dimension), which is ours throughout.

    Args:
        state: published names to tensors.
        heads: of the global attention.
    """
    found = {}
    for key, value in state.items():
        name = key.removeprefix("model.")
        if name.startswith("target_encoder."):
            continue
        if name.startswith("global_encoder.") and name.endswith("to_qkv.weight"):
            by_head = value.view(heads, -1, 3, value.shape[1])
            value = by_head.permute(2, 0, 1, 3).reshape(value.shape)
        found[name] = value
    return found


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"--triplex-{option} must be one of {', '.join(known)}, got {value!r}")


def _slides(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and coordinates of each slide."""
    return zip(*(part.split(batch.sizes()) for part in (batch.features, batch.coords)), strict=True)


def _linear_mse(hidden: Tensor, head: nn.Linear, target: Target, other=None) -> Tensor:
    """MSE of a head over measured genes, to the target or another hidden layer and its head."""
    if other is None:
        weight, bias, values = head.weight, head.bias, target.values
    else:  # the difference of two linear layers is one, which should be zero
        theirs, their_head = other
        hidden = torch.cat([hidden, -theirs], 1)
        weight = torch.cat([head.weight, their_head.weight], 1)
        bias = head.bias - their_head.bias
        values = _zeros(len(hidden), len(bias), hidden)
    return ops.linear_mse(hidden, weight, bias, values, target.measured)


def _zeros(rows: int, genes: int, like: Tensor) -> ops.Csr:
    nothing = torch.zeros(rows + 1, dtype=torch.int64, device=like.device)
    return ops.Csr(nothing, nothing[:0], like.new_empty(0), genes)


def _clamped_mse(hidden: Tensor, head: nn.Linear, target: Target, other=None) -> Tensor:
    """As ``_linear_mse``, both sides cut at zero."""
    if other is None:
        values = (
            target.values if target.values.layout == torch.strided else target.values.to_dense()
        )
    else:
        values = other[1](other[0]).clamp(min=0)
    difference = head(hidden).clamp(min=0) - values
    return difference[:, target.measured].square().mean()
