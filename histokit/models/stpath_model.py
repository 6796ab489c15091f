"""STPath as a model of a run: trained by its masked-gene scheme, or with its published weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from histokit import ops
from histokit.core.errors import InputError
from histokit.core.weights import load_weights
from histokit.models.base import Batch, Model
from histokit.models.stpath import MASK_TOKEN, ORGANS, TECHNOLOGIES, STPath, rescale_coords
from histokit.ops.gemm import Linear


class STPathModel(Model):
    """STPath on a panel of its own, trained by its masked-gene scheme.

    A patch's input is its image and, in training, the expression of its measured genes unless the
    patch is masked. Predictions mask all patches: no gene is needed; ``embed_told`` shows some.
    In place of the organ stands the slide's cancer code.

    Scheme and figures: STPath's pretraining (stpath/data/dataset.py of the authors). What differs:
    the highly variable genes are those of the training slides, theirs each slide's own; and no
    technology is told, theirs in a fifth of the cases.

    Args:
        input_dim: D, dimension of the patch features.
        num_genes: G, outputs.
        cancers: oncotree codes, in the order of the organ embedding; its last row is unknown.
        hidden_dim: width of the transformer.
        num_layers: its layers.
        feedforward_dim: width inside a layer.
        dropout: rate behind the attention's output and inside the MLP.
        hvgs: genes that most steps are restricted to, by their place among the outputs; empty for
            no restriction.
        max_spots: patches of a step at most; a larger slide is cropped to a patch and those
            nearest to it.
        technologies: whether the weights know technologies, as the published ones do.
    """

    uses_coords = True
    mask_share = (10.0, 1.0)  # parameters of the Beta distribution of the share of masked patches
    wholly = 0.9  # of the masked patches; of the others only half of the step's genes are hidden
    restricted = 0.8  # of the steps, those on the highly variable genes alone
    least_spots = 64

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        cancers: list[str],
        hidden_dim: int = 512,
        num_layers: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        hvgs: list[int] | None = None,
        max_spots: int = 1024,
        technologies: bool = False,
    ):
        super().__init__()
        self.input_dim, self.cancers, self.max_spots = input_dim, list(cancers), max_spots
        self.technologies = technologies
        self.network = STPath(
            input_dim, num_genes + 2, len(cancers) + 1, hidden_dim, num_layers,
            mlp_dim=feedforward_dim, dropout=dropout,
        )  # fmt: skip
        self.network.gene_exp_head[1] = Linear(hidden_dim, num_genes)
        # a cancer that no training slide has adds nothing, not what it was drawn as
        torch.nn.init.zeros_(self.network.input_encoder.organ_embed.weight[-1])
        chosen = torch.ones(num_genes, dtype=torch.bool)
        if hvgs:
            chosen = torch.zeros(num_genes, dtype=torch.bool).index_fill(
                0, torch.tensor(hvgs), True
            )
        self.register_buffer("variable", chosen, persistent=False)

    @property
    def head(self) -> torch.nn.Linear:
        """The linear layer over genes."""
        return self.network.gene_exp_head[1]

    def hidden(self, batch):
        """(N, D) to (N, hidden_dim); no expression and no technology is known."""
        return torch.cat([self._encode(*slide) for slide in _slides(batch)])

    def _encode(self, features, coords, code: int, expression=None, technology: int = 0):
        hidden = self.network.encode(features, coords, technology, code, expression)
        return self.network.gene_exp_head[0](hidden)

    @torch.inference_mode()
    def embed_told(
        self,
        features: torch.Tensor,
        cancer: str,
        technology: str = "",
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
        allow_unknown: bool = False,
        coords: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``embed``, with more told of the slide: (N, D) to (N, hidden_dim).

        Args:
            features: (N, D), as extracted.
            cancer: oncotree code of the slide.
            technology: as ``histokit.data.technologies.technology_kind`` names it; one that
                STPath lacks is told as none. Weights trained here know none.
            known: the slide's expression (N, G), CSR on the scale of the training, and (N,) bool,
                the patches whose expression the model sees; all others are masked.
            allow_unknown: as in ``embed``.
            coords: (N, 2) spot centers.

        Raises:
            InputError: as ``embed``.
        """
        batch = self.batch_of(features, cancer, allow_unknown, coords)
        ((x, places, code),) = _slides(batch)
        expression = None
        if known is not None:
            values, given = (part.to(x.device) for part in known)
            owner, _, _ = _entries(values)
            expression = _tokens(values, ~given, given[owner]).to(x.dtype)
        names = [name.casefold() for name in TECHNOLOGIES]
        row = names.index(technology) if self.technologies and technology in names else 0
        return self._encode(x, places, code, expression, row)

    def loss(self, batch, targets, autocast=None):
        """Mean over slides of the MSE over the measured genes of masked patches.

        In evaluation mode all patches are masked and count, as in ``Model.loss``.
        """
        if not self.training:
            return super().loss(batch, targets, autocast)
        losses = []
        for (features, coords, code), target in zip(_slides(batch), targets, strict=True):
            rows = self._crop(coords)
            masked = self._masked(len(rows), rows.device)
            genes = self._genes(target.measured)
            known = self._known(target.rows(rows), masked, genes)
            kind = batch.features.device.type
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                hidden = self._encode(features[rows], coords[rows], code, known)
            values = target.rows(rows[masked])
            head = self.head
            losses.append(
                ops.linear_mse(hidden[masked].float(), head.weight, head.bias, values, genes)
            )
        return torch.stack(losses).mean()

    def _crop(self, coords: torch.Tensor) -> torch.Tensor:
        """Rows of a random number of patches around a random one, in their order."""
        count = len(coords)
        most = min(count, self.max_spots)
        wanted = int(torch.randint(min(self.least_spots, most), most + 1, ()))
        if wanted == count:
            return torch.arange(count, device=coords.device)
        middle = coords[int(torch.randint(count, ()))]
        near = (coords - middle).square().sum(1).topk(wanted, largest=False).indices
        return near.sort().values

    def _masked(self, count: int, device) -> torch.Tensor:
        """(n,) bool, one at least: patches whose expression is to be told."""
        share = torch.distributions.Beta(*map(torch.tensor, self.mask_share)).sample()
        return _drawn(torch.arange(count), max(1, int(share * count)), count).to(device)

    def _genes(self, measured: torch.Tensor) -> torch.Tensor:
        """(G,) bool, the genes of a step: those measured, mostly of the highly variable alone."""
        restricted = torch.rand(()) < self.restricted and (measured & self.variable).any()
        return measured & self.variable if restricted else measured

    def _known(self, values: torch.Tensor, masked: torch.Tensor, genes: torch.Tensor):
        """(n, G + 2) CSR input of patches (n, G): expression, less of it, or the mask token.

        Of the masked patches nine tenths show the token alone, the others lack half of the step's
        ``genes`` (G,), the same ones on all of them.
        """
        rows, columns = masked.nonzero().squeeze(1).cpu(), genes.nonzero().squeeze(1).cpu()
        whole = _drawn(rows, int(self.wholly * len(rows)), len(masked)).to(masked.device)
        hidden = _drawn(columns, len(columns) // 2, len(genes)).to(genes.device)
        owner, column, _ = _entries(values)
        return _tokens(values, whole, ~whole[owner] & ~(masked[owner] & hidden[column]))

    @classmethod
    def from_official(cls, path: str | Path, organs: Mapping[str, str]) -> tuple[STPathModel, dict]:
        """The published weights, their outputs without the two tokens; in evaluation mode.

        Args:
            path: the authors' state dict, read without unpickling code.
            organs: oncotree codes to ``ORGANS``, as which the weights know them; of all other
                codes they are told the padding.

        Returns:
            The model, and the arguments that rebuild it.

        Raises:
            InputError: as ``STPath.from_official``, or weights of other organs.
        """
        state = STPath.from_official(path).state_dict()
        table = state["input_encoder.organ_embed.weight"]
        if len(table) != len(ORGANS):
            raise InputError(
                f"{path} knows {len(table)} organs and STPath's published vocabulary has "
                f"{len(ORGANS)}; give the published weights (stfm.pth)"
            )
        codes = sorted(organs)
        known = [ORGANS.index(organs[code]) for code in codes]
        state["input_encoder.organ_embed.weight"] = table[[*known, ORGANS.index("<pad>")]]
        for part in ("weight", "bias"):
            state[f"gene_exp_head.1.{part}"] = state[f"gene_exp_head.1.{part}"][2:]
        width, input_dim = state["input_encoder.image_embed.weight"].shape
        arguments = {
            "input_dim": input_dim,
            "num_genes": len(state["gene_exp_head.1.bias"]),
            "cancers": codes,
            "hidden_dim": width,
            "num_layers": len({key.split(".")[2] for key in state if key.startswith("model.")}),
            "feedforward_dim": len(state["model.blks.0.mlp.fc1.bias"]),
            "technologies": True,
        }
        model = cls(**arguments)
        load_weights(model.network, state, Path(path))
        return model.eval(), arguments


def _slides(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Features, rescaled coordinates and cancer code of each slide."""
    parts = (part.split(batch.sizes()) for part in (batch.features, batch.coords))
    for features, coords, code in zip(*parts, batch.cancers.tolist(), strict=True):
        yield features, rescale_coords(coords), code


def _drawn(among: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """(length,) bool, true at so many random places of ``among``."""
    chosen = torch.zeros(length, dtype=torch.bool)
    chosen[among[torch.randperm(len(among))[:count]]] = True
    return chosen


def _entries(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column and value of each entry of a CSR matrix."""
    rows = torch.arange(len(values), device=values.device)
    owner = torch.repeat_interleave(rows, values.crow_indices().diff())
    return owner, values.col_indices(), values.values()


def _tokens(values: torch.Tensor, whole: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """(n, G + 2) CSR input of patches: entries of (n, G) that are shown, and the mask token.

    Args:
        values: (n, G) CSR expression.
        whole: (n,) bool, the patches that have the token.
        shown: bool by entry of ``values``.
    """
    owner, column, data = (part[shown] for part in _entries(values))
    at = whole.nonzero().squeeze(1)
    owner = torch.cat([at, owner])
    column = torch.cat([torch.full_like(at, MASK_TOKEN), column + 2])
    data = torch.cat([data.new_ones(len(at)), data])
    size = (len(values), values.shape[1] + 2)
    entries = torch.stack([owner, column])
    return torch.sparse_coo_tensor(entries, data, size, check_invariants=False).to_sparse_csr()
