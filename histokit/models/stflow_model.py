"""STFlow as a model of a cohort: its prior, its flow and its training."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Batch, Target
from histokit.models.neighborhoods import Neighborhoods
from histokit.models.sampling import Generative, slides_of
from histokit.models.stflow import STFlow

NEIGHBORS = 8
FIRST = 0.01  # the earliest time that the network is asked for
ZINB = (0.1, 0.5)  # logits at a total count of 1, and share of extra zeros


def draw_prior(kind: str, shape: tuple[int, int], random: torch.Generator | None) -> torch.Tensor:
    """Expression before the flow, the same distribution for every spot and gene.

    Args:
        kind: ``zinb``: log1p of zero-inflated negative binomial counts, a Poisson whose rate is
            Gamma(1) with the mean exp(0.1), half of them set to zero (26 % are above zero);
            ``gaussian``: N(0, 1); ``zero``.
        shape: N, G.
        random: its generator, on the CPU; None for torch's own.

    Returns:
        (N, G) float32 on the CPU.

    Raises:
        InputError: another kind.
    """
    if kind == "zero":
        return torch.zeros(shape)
    if kind == "gaussian":
        return torch.randn(shape, generator=random)
    if kind != "zinb":
        raise InputError(f"--stflow-prior {kind}: stflow has zinb, gaussian and zero; name one")
    logits, zeros = ZINB
    rate = torch.empty(shape).exponential_(generator=random) * math.exp(logits)
    counts = torch.poisson(rate, generator=random)
    return torch.log1p(counts * (torch.rand(shape, generator=random) >= zeros))


class STFlowModel(Generative):
    """STFlow as a model of a cohort.

    Trained on the squared error of the expression that the network predicts at a uniform time of
    the flow. Evaluated by Euler steps from a draw of the prior, whose last prediction is the draw;
    a single step asks for the prior alone, and is trained on that alone: with the prior ``zero``
    it is a plain regression on the features of a spot and its neighbors.

    Neighbors are eight, as published, and on arrays all those as near as the eighth (twelve on a
    hexagonal one): the authors' k-d tree chooses among these by the order of the spots.

    Validation takes the times of the evaluation, and noise of ``sample_seed``: its loss is lower
    than the error of a prediction, since part of the truth is in its input.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs.
        hidden_dim: width of the network.
        num_layers: its blocks.
        dropout: its rate.
        stflow_prior: ``zinb``, ``gaussian`` or ``zero``; see ``draw_prior``.
        stflow_steps: network calls of a draw (4 as published).
        stflow_crops: crops of a slide that a step of the training takes the mean loss of (10 as
            published): the spots nearest to a random one, a uniform share of all; 0 takes the
            whole slide once.
        stflow_unit: of the neighbors' places: ``pixels`` as published, or ``pitch``, the median
            distance of a slide's spots to their nearest, which does not depend on the scanner.
        stflow_output_dropout: drop predicted genes too in training, as published.
        stflow_project_over: of panels with more genes the attention sees 50 learned sums.
        samples: draws whose mean is the prediction (1 as published).
        sample_seed: their seed.
    """

    uses_coords = True
    loss_name = "flow MSE over measured genes"

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        hidden_dim: int = 128,
        num_layers: int = 4,
        dropout: float = 0.2,
        stflow_prior: str = "zinb",
        stflow_steps: int = 4,
        stflow_crops: int = 10,
        stflow_unit: str = "pixels",
        stflow_output_dropout: bool = True,
        stflow_project_over: int = 256,
        samples: int = 1,
        sample_seed: int = 0,
    ):
        super().__init__(num_genes, samples, sample_seed)
        self.input_dim, self.prior, self.unit = input_dim, stflow_prior, stflow_unit
        self.steps, self.crops = stflow_steps, stflow_crops
        self.network = STFlow(
            input_dim, num_genes, hidden_dim, num_layers, dropout,
            stflow_output_dropout, stflow_project_over,
        )  # fmt: skip

    @property
    def network_calls(self) -> int:
        """Calls of the network behind the prediction of a spot."""
        return self.samples * self.steps

    @property
    def times(self) -> list[float]:
        """Times of the network's calls, and 1."""
        return torch.linspace(FIRST, 1, self.steps + 1, dtype=torch.float64).tolist()

    def draws(self, slide: Batch, random: torch.Generator) -> Iterator[torch.Tensor]:
        """Draws (N, G) of one slide without end; all their noise is of ``random``."""
        network = self._network(slide)
        while True:
            y = self._noise(slide, random)
            for now, after in zip(self.times[:-1], self.times[1:], strict=True):
                end = network(y, now)
                y = y + (after - now) / (1 - now) * (end - y)
            yield end

    def loss(
        self, batch: Batch, targets: Sequence[Target], autocast: torch.dtype | None = None
    ) -> torch.Tensor:
        """Mean over slides of the squared error over measured genes, crops and times alike.

        A gene that a slide did not measure stays in the network's input as the prior drew it.
        """
        losses = []
        with torch.autocast(batch.features.device.type, autocast, enabled=autocast is not None):
            for slide, target in zip(slides_of(batch), targets, strict=True):
                errors = self._training if self.training else self._validation
                losses += errors(slide, target.values.to_dense(), target.measured)
        return torch.stack(losses).mean()

    def _training(self, slide: Batch, whole, measured) -> Iterator[torch.Tensor]:
        for rows in self._crop_rows(slide.coords):
            crop = Batch(slide.features[rows], slide.cancers, None, slide.coords[rows])
            yield self._error(crop, whole[rows], measured, float(torch.rand(())), None)

    def _validation(self, slide: Batch, whole, measured) -> Iterator[torch.Tensor]:
        random = torch.Generator().manual_seed(self.sample_seed)
        for time in self.times[:-1]:
            yield self._error(slide, whole, measured, time, random)

    def _error(self, slide, whole, measured, time, random) -> torch.Tensor:
        """Squared error of the end of the flow as predicted at a time."""
        y = self._noise(slide, random)
        if self.steps == 1:
            time = FIRST
        else:
            y = torch.where(measured, y + time * (whole - y), y)
        end = self._network(slide)(y, time)
        return F.mse_loss(end[:, measured].float(), whole[:, measured])

    def _network(self, slide: Batch) -> Callable:
        """The network on a slide: expression (N, G) and its time to the end of the flow."""
        near = Neighborhoods.of(slide.coords, NEIGHBORS, self.unit).to(slide.features)
        edges = self.network.edges(near)
        return functools.partial(self.network, slide.features, near, edges)

    def _noise(self, slide: Batch, random: torch.Generator | None) -> torch.Tensor:
        shape = (len(slide.features), self.head.out_features)
        return draw_prior(self.prior, shape, random).to(slide.features)

    def _crop_rows(self, coords: torch.Tensor) -> Iterator[torch.Tensor]:
        """Rows of the crops of a step."""
        count = len(coords)
        if not self.crops:
            yield torch.arange(count, device=coords.device)
        for _ in range(self.crops):
            wanted = min(count, max(2, int(float(torch.rand(())) * count)))
            middle = coords[int(torch.randint(count, ()))]
            away = (coords - middle).square().sum(1)
            yield away.topk(wanted, largest=False).indices.sort().values

    def start_at(self, mean: torch.Tensor) -> None:
        """Make every block of the untrained network predict the training mean (G,)."""
        for block in self.network.backbone.blks:
            last = block.gene_updater.output[4]
            nn.init.zeros_(last.weight)
            last.bias.data.copy_(mean)

    @classmethod
    def from_official(cls, path: str | Path) -> STFlowModel:
        """Load a state dict of the authors' program, read without unpickling code.

        Every size is read from the tensors; everything else is as published. In evaluation mode.

        Raises:
            InputError: no such file, or tensors that are not those of the published architecture.
        """
        state = read_state_dict(path)
        try:
            width, input_dim = state["image_transform.weight"].shape
            num_genes, _ = state["backbone.blks.0.gene_updater.output.4.weight"].shape
            layers = {key.split(".")[2] for key in state if key.startswith("backbone.blks.")}
        except (KeyError, ValueError) as error:
            with torch.device("meta"):
                published = STFlow()
            raise InputError(
                f"{path} is not a checkpoint of STFlow: {misfit(published, state)}"
            ) from error
        sizes = {"hidden_dim": width, "num_layers": len(layers), "stflow_project_over": num_genes}
        model = cls(input_dim, num_genes, **sizes)
        load_weights(model.network, state, Path(path))
        return model.eval()
