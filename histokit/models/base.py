"""What every model is: a patch encoder followed by a linear head over genes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import nn

from histokit import ops
from histokit.core.errors import InputError

NEVER = "never trained: "  # begins the code of an embedding that is as it was drawn


@dataclasses.dataclass
class Standardizer:
    """What is done to one slide's features (N, D) before a model sees them.

    ``none`` leaves them. ``train`` standardizes with the moments of the training patches.
    ``slide`` does with the slide's own, which takes out stain and scanner, but also how slides
    differ. A deviation is never taken below a tenth of its mean over features: one that is
    constant in training and alive on another slide would otherwise explode there. Features of
    several encoders are then scaled so that each encoder counts alike, whatever its dimension.

    Not part of the state dict, whose names are those of published checkpoints.
    """

    how: str
    mean: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    blocks: tuple[int, ...] = ()

    @classmethod
    def fit(cls, how: str, x: torch.Tensor, blocks: tuple[int, ...] = ()) -> Standardizer:
        """From the features of all training patches x (N, D); ``blocks`` are the encoders' D."""
        return cls.from_moments(how, x.mean(dim=0), x.std(dim=0, correction=0), blocks)

    @classmethod
    def from_moments(
        cls, how: str, mean: torch.Tensor, deviation: torch.Tensor, blocks: tuple[int, ...] = ()
    ) -> Standardizer:
        """From the mean and deviation (D,) of the features of all training patches."""
        known = (mean, _scale(deviation)) if how == "train" else (None, None)
        return cls(how, *known, tuple(blocks))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) to (N, D)."""
        if self.how == "none":
            return features
        device = features.device
        if self.how == "train":
            mean, scale = self.mean.to(device), self.scale.to(device)
        else:
            mean, scale = features.mean(dim=0), _scale(features.std(dim=0, correction=0))
        if len(self.blocks) > 1:
            share = [(scale.numel() / len(self.blocks) / size) ** 0.5 for size in self.blocks]
            share = torch.tensor(share).repeat_interleave(torch.tensor(self.blocks))
            scale = scale / share.to(device)
        return (features - mean) / scale


def _scale(deviation: torch.Tensor) -> torch.Tensor:
    floor = 0.1 * deviation.mean()
    return deviation.clamp(min=floor) if floor > 0 else torch.ones_like(deviation)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Patches of one slide, or of several packed one after another, and what is known of them.

    Attributes:
        features: (N, D) float.
        cancers: (S,) int64 codes of the slides; -1 is unknown.
        slide_index: (N,) int64, ascending: which slide a patch belongs to; None for one slide.
        coords: (N, 2) spot centers x, y in one unit a slide; None for models that do not use them.
    """

    features: torch.Tensor
    cancers: torch.Tensor
    slide_index: torch.Tensor | None = None
    coords: torch.Tensor | None = None

    def sizes(self) -> list[int]:
        """Patches of each slide."""
        if self.slide_index is None:
            return [len(self.features)]
        return torch.bincount(self.slide_index, minlength=len(self.cancers)).tolist()


@dataclasses.dataclass(frozen=True)
class Target:
    """What a slide's patches are taught: values (N, G), dense or CSR, and measured (G,) bool."""

    values: torch.Tensor
    measured: torch.Tensor

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Values of some patches (M,), by their positions: (M, G) of the same layout."""
        if self.values.layout == torch.strided:
            return self.values[rows]
        offsets = self.values.crow_indices()
        lengths = offsets.diff()[rows]
        ends = lengths.cumsum(0)
        shift = torch.repeat_interleave(offsets[:-1][rows] - ends + lengths, lengths)
        entries = torch.arange(len(shift), device=shift.device) + shift
        columns, values = self.values.col_indices()[entries], self.values.values()[entries]
        size = (len(rows), self.values.shape[1])
        offsets = torch.cat([ends.new_zeros(1), ends])
        return torch.sparse_csr_tensor(offsets, columns, values, size, check_invariants=False)


class Model(nn.Module):
    """Predicts as ``head(hidden(batch))``; evaluation may use the two halves apart.

    A subclass defines ``hidden``, holds an ``nn.Linear`` as ``head`` (or ``Direct``, where
    ``hidden`` is the expression itself), and sets ``input_dim``.
    ``cancers`` lists the oncotree codes a model is conditioned on, or is None where it is not;
    ``uses_coords`` says whether it needs to know where patches lie; ``loss_name`` is what ``loss``
    is called in curves.
    """

    cancers: list[str] | None = None
    uses_coords = False
    loss_name = "MSE over measured genes"

    def __init__(self):
        super().__init__()
        self.standardizer = Standardizer("none")

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Patches (N, D) to the head's input (N, d)."""
        raise NotImplementedError

    def forward(
        self,
        x: torch.Tensor,
        cancer: int | torch.Tensor = -1,
        slide_index: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict expression.

        Args:
            x: (N, D) float patch features of one slide, or of several slides one after another.
            cancer: integer code of the slide, or (S,) codes of the packed slides; -1 is unknown.
            slide_index: (N,) int64, ascending: which slide a patch belongs to, when packed.
            coords: (N, 2) spot centers, for models that use them.

        Returns:
            (N, G) expression on the scale of the training targets.
        """
        codes = torch.as_tensor(cancer, device=x.device).reshape(-1)
        return self.head(self.hidden(Batch(x, codes, slide_index, coords)))

    def loss(
        self, batch: Batch, targets: Sequence[Target], autocast: torch.dtype | None = None
    ) -> torch.Tensor:
        """Mean over slides of each slide's MSE over its measured genes.

        Args:
            batch: the slides.
            targets: the targets of each slide.
            autocast: type of the matrix products before the loss, which is float32 itself.
        """
        with torch.autocast(batch.features.device.type, autocast, enabled=autocast is not None):
            hidden = self.hidden(batch)
        return torch.stack(
            [
                ops.linear_mse(
                    part.float(), self.head.weight, self.head.bias, target.values, target.measured
                )
                for part, target in zip(hidden.split(batch.sizes()), targets, strict=True)
            ]
        ).mean()

    def start_at(self, mean: torch.Tensor) -> None:
        """Make the untrained model predict the training mean (G,) of each gene, to the bit."""
        nn.init.zeros_(self.head.weight)
        self.head.bias.data.copy_(mean)

    def after_step(self) -> None:
        """Called in a training after each step of the optimizer; most models do nothing."""

    def remember(self, slides: Iterable) -> dict:
        """Keep what predictions need of the training slides once the training is over.

        Args:
            slides: training slides with slide_id, features (N, D) as the model sees them, coords
                (N, 2), target (N, G) CSR float32 and measured (G,) bool, as a training reads them;
                read as they are asked for. Most models ask for none.

        Returns:
            Arguments of the class that, with those it was built with, rebuild the model.
        """
        return {}

    def place(self, features: torch.Tensor) -> torch.Tensor:
        """Features of the device and type of the model's weights."""
        weights = (w for w in chain(self.parameters(), self.buffers()) if w.is_floating_point())
        return features.to(next(weights, features))

    def cancer_code(self, cancer: str) -> int:
        """The integer code of an oncotree code, -1 of a slide that has none (blank).

        Raises:
            InputError: a code that was never trained on.
        """
        if self.cancers is None or not cancer:
            return -1
        if cancer not in self.cancers:
            raise InputError(
                f"the model does not know the cancer code {cancer!r}; it was trained on "
                f"{', '.join(self.known_cancers())}; correct the slide's code or train with such "
                "slides"
            )
        return self.cancers.index(cancer)

    def known_cancers(self) -> list[str]:
        """The oncotree codes that slides can be told; empty where the model is told none."""
        return [code for code in self.cancers or () if not code.startswith(NEVER)]

    def knows_cancer(self, cancer: str) -> bool:
        """Whether the model was trained on slides of this oncotree code, or is not told any."""
        return self.cancers is None or not cancer or cancer in self.cancers

    @torch.inference_mode()
    def embed(
        self,
        features: torch.Tensor,
        cancer: str,
        allow_unknown: bool = False,
        coords: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One slide to the head's input (N, d); arguments and errors of ``batch_of``."""
        return self.hidden(self.batch_of(features, cancer, allow_unknown, coords))

    def batch_of(
        self,
        features: torch.Tensor,
        cancer: str,
        allow_unknown: bool = False,
        coords: torch.Tensor | None = None,
    ) -> Batch:
        """One slide as ``hidden`` takes it, in evaluation mode.

        Args:
            features: (N, D), as extracted.
            cancer: oncotree code of the slide.
            coords: (N, 2) spot centers; models that do not use them ignore them.
            allow_unknown: condition a slide of a cancer never trained on on no cancer, the
                all-zero code that HistoPrism's authors give it, instead of refusing it.

        Raises:
            InputError: features of another dimension, an unknown cancer code, or no coordinates for
                a model that needs them.
        """
        if features.ndim != 2 or features.shape[1] != self.input_dim:
            raise InputError(
                f"the model takes features of {self.input_dim} dimensions and got "
                f"{tuple(features.shape)}; use the encoder it was trained with"
            )
        if self.uses_coords and coords is None:
            raise InputError("the model uses the place of each patch; give its coordinates too")
        self.eval()
        features = self.place(self.standardizer(features))
        known = not allow_unknown or self.knows_cancer(cancer)
        code = torch.tensor([self.cancer_code(cancer) if known else -1], device=features.device)
        coords = coords.to(features) if self.uses_coords else None
        return Batch(features, code, None, coords)

    @torch.inference_mode()
    def predict(
        self, features: torch.Tensor, cancer: str, coords: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One slide's features (N, D) and oncotree code to expression (N, G), float32.

        Raises:
            InputError: as ``embed``.
        """
        return self.head(self.embed(features, cancer, coords=coords)).float()
