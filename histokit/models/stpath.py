"""STPath, a spatial transformer over a whole slide, and its training on masked genes.

Rebuilt from the published architecture; parameters carry the names of the authors' checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Batch, Model, Standardizer
from histokit.ops.gemm import Linear

TECHNOLOGIES = ("<pad>", "Spatial Transcriptomics", "Visium", "Xenium", "Visium HD")
ORGANS = (
    "<pad>", "<mask>", "<unk>", "Spinal cord", "Brain", "Breast", "Bowel", "Skin", "Heart",
    "Kidney", "Prostate", "Lung", "Liver", "Uterus", "Bone", "Muscle", "Eye", "Pancreas", "Mouth",
    "Ovary", "Glioma", "Glioblastoma", "Stomach", "Colon", "Others",
)  # fmt: skip
NUM_GENES = 38_984  # the 38,982 genes of the panel behind a padding and a mask token
MASK_TOKEN = 1
ATTENTIONS = ("fused", "as_published")
SIGNS = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


def rescale_coords(coords: torch.Tensor) -> torch.Tensor:
    """Each axis of (N, 2) coordinates to [0, 100] by itself, as the authors do.

    The aspect ratio of the slide is lost, and distances are in no unit. An axis without extent
    becomes zero.
    """
    low, high = coords.min(0).values, coords.max(0).values
    extent = high - low
    return (coords - low) * torch.where(extent > 0, 100 / extent, 0)


def frame_bias(coords: torch.Tensor, edge_bias: nn.Module) -> torch.Tensor:
    """The published bias of the attention scores: (N, 2) coordinates to (h, N, N).

    Around each patch, the axes along which all others spread make four frames that differ by the
    signs of the axes. ``edge_bias`` maps a patch's two coordinates in a frame and its distance to
    a bias for each head; the four frames are averaged, and with that the coordinates cancel.
    """
    relative = coords - coords[:, None]  # (N, N, 2): row n looks from patch n
    distance = relative.square().sum(-1).sqrt()
    centered = relative - relative.mean(1, keepdim=True)
    axes = torch.linalg.eigh(centered.mT @ centered).eigenvectors  # (N, 2, 2)
    frames = axes[:, None] * axes.new_tensor(SIGNS)[None, :, None, :]  # (N, 4, 2, 2)
    local = torch.einsum("nmc,nfck->nfmk", centered, frames)
    distance = distance[:, None, :, None].expand(*local.shape[:3], 1)
    bias = edge_bias(torch.cat([local, distance], dim=-1))  # (N, 4, N, h)
    return bias.mean(1).permute(2, 0, 1)


class Attention(nn.Module):
    """Attention of patches to each other that knows their distances; ``attend`` is its op."""

    attend = staticmethod(ops.distance_attention)

    def __init__(self, width: int, num_heads: int, attention: str, dropout: float, rate: float):
        super().__init__()
        self.num_heads, self.attention, self.rate = num_heads, attention, rate
        self.layernorm_qkv = nn.Sequential(nn.LayerNorm(width), Linear(width, 3 * width))
        self.W_output = nn.Sequential(Linear(width, width), nn.Dropout(dropout))
        self.edge_bias = nn.Sequential(Linear(3, num_heads, bias=False))

    def forward(self, h: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        """(N, width) and (N, 2) to (N, width)."""
        qkv = self.layernorm_qkv(h).view(len(h), 3, self.num_heads, -1)
        q, k, v = qkv.permute(1, 2, 0, 3)  # (h, N, d)
        if self.attention == "fused":
            out = self.attend(q, k, v, coords, self.edge_bias[0].weight[:, 2])
        else:
            score = (q * q.shape[2] ** -0.5) @ k.mT + frame_bias(coords, self.edge_bias)
            out = F.dropout(score.softmax(-1), self.rate, self.training) @ v
        return self.W_output(out.transpose(0, 1).flatten(1))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.norm(self.dropout(F.gelu(self.fc1(h))))))


class STPathLayer(nn.Module):
    """``h + attention(h)``, then ``h + MLP(h)``, the MLP without a norm of its own before it.

    (N, width) patches of one slide and their (N, 2) coordinates to (N, width).
    """

    def __init__(
        self,
        width: int = 512,
        num_heads: int = 4,
        mlp_dim: int = 1024,
        attention: str = "fused",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if attention not in ATTENTIONS:
            raise InputError(f"attention must be one of {ATTENTIONS}, got {attention!r}")
        if width % num_heads:
            raise InputError(f"{num_heads} heads do not divide the width {width}")
        if attention == "fused" and attention_dropout > 0:
            raise InputError("fused attention has no dropout; choose attention='as_published'")
        self.attn = Attention(width, num_heads, attention, dropout, attention_dropout)
        self.mlp = _Mlp(width, mlp_dim, dropout)

    def forward(self, h: torch.Tensor, coords: torch.Tensor) -> torch.Tensor:
        """(N, width) and (N, 2) to (N, width)."""
        h = h + self.attn(h, coords)
        return h + self.mlp(h)


class STPath(nn.Module):
    """Image features, a slide's technology and organ, and known expression to all expression.

    Args:
        input_dim: D of the patch features (1,536: GigaPath).
        num_genes: G with the two tokens in front.
        num_organs: rows of the organ embedding.
        width, num_layers, num_heads, mlp_dim: sizes of the transformer.
        attention: ``fused`` (:func:`histokit.ops.distance_attention`) or ``as_published`` (four
            frames for every pair of patches); equal up to rounding.
        dropout: rate behind the attention's output and inside the MLP.
        attention_dropout: rate on the attention weights; as published only.

    Raises:
        InputError: an unknown attention, heads that do not divide the width, or dropout that the
            fused attention does not have.
    """

    def __init__(
        self,
        input_dim: int = 1536,
        num_genes: int = NUM_GENES,
        num_organs: int = len(ORGANS),
        width: int = 512,
        num_layers: int = 4,
        num_heads: int = 4,
        mlp_dim: int = 1024,
        attention: str = "fused",
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.input_dim, self.standardizer = input_dim, Standardizer("none")
        self.input_encoder = nn.Module()
        self.input_encoder.image_embed = Linear(input_dim, width)
        self.input_encoder.gene_embed = Linear(num_genes, width, bias=False)
        self.input_encoder.tech_embed = nn.Embedding(len(TECHNOLOGIES), width)
        self.input_encoder.organ_embed = nn.Embedding(num_organs, width)
        self.model = nn.Module()
        self.model.blks = nn.ModuleList(
            STPathLayer(width, num_heads, mlp_dim, attention, dropout, attention_dropout)
            for _ in range(num_layers)
        )
        self.gene_exp_head = nn.Sequential(nn.LayerNorm(width), Linear(width, num_genes))

    @property
    def head(self) -> nn.Linear:
        """The linear layer over genes and the two tokens in front of them."""
        return self.gene_exp_head[1]

    def masked_expression(self, num_patches: int) -> torch.Tensor:
        """(N, G) of patches whose expression is unknown: one in the column of the mask token."""
        weight = self.input_encoder.gene_embed.weight
        tokens = weight.new_zeros(num_patches, weight.shape[1])
        tokens[:, MASK_TOKEN] = 1
        return tokens

    def forward(
        self,
        features: torch.Tensor,
        coords: torch.Tensor,
        technology: int,
        organ: int,
        expression: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the expression of one slide.

        Args:
            features: (N, D) of its patches.
            coords: (N, 2) patch centers as ``rescale_coords`` leaves them.
            technology: index into ``TECHNOLOGIES``.
            organ: index of the organ.
            expression: (N, G) log1p expression behind the two tokens, or rows of
                ``masked_expression``. None masks all patches, which then share one column of the
                gene embedding: the product with (N, G) is left out.

        Returns:
            (N, G) log1p expression, the two tokens in front.
        """
        return self.gene_exp_head(self.encode(features, coords, technology, organ, expression))

    def encode(
        self,
        features: torch.Tensor,
        coords: torch.Tensor,
        technology: int,
        organ: int | torch.Tensor,
        expression: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``forward`` without the head: (N, width)."""
        encoder = self.input_encoder
        slide = encoder.tech_embed.weight[technology] + encoder.organ_embed.weight[organ]
        if expression is None:
            h = encoder.image_embed(features) + (slide + encoder.gene_embed.weight[:, MASK_TOKEN])
        else:
            weight = encoder.gene_embed.weight
            known = (
                expression @ weight.T if expression.is_sparse_csr else F.linear(expression, weight)
            )
            h = encoder.image_embed(features) + known + slide
        for block in self.model.blks:
            h = block(h, coords)
        return h

    @classmethod
    def from_official(cls, path: str | Path, attention: str = "fused") -> STPath:
        """Load the authors' state dict, read without unpickling code; in evaluation mode.

        Every size is read from the tensors; dropout plays no part.

        Raises:
            InputError: no such file, or tensors that are not those of the published architecture.
        """
        state = read_state_dict(path)
        try:
            sizes = _sizes(state)
        except (KeyError, ValueError) as error:
            with torch.device("meta"):
                published = cls(attention=attention)
            raise InputError(
                f"{path} is not a checkpoint of STPath: {misfit(published, state)}"
            ) from error
        model = cls(**sizes, attention=attention)
        load_weights(model, state, Path(path))
        return model.eval()


def _sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
    """Arguments of ``STPath`` from its tensors; KeyError or ValueError for those of another."""
    width, input_dim = state["input_encoder.image_embed.weight"].shape
    _, num_genes = state["input_encoder.gene_embed.weight"].shape
    num_organs, _ = state["input_encoder.organ_embed.weight"].shape
    mlp_dim, _ = state["model.blks.0.mlp.fc1.weight"].shape
    num_heads, _ = state["model.blks.0.attn.edge_bias.0.weight"].shape
    layers = {key.split(".")[2] for key in state if key.startswith("model.blks.")}
    return {
        "input_dim": input_dim,
        "num_genes": num_genes,
        "num_organs": num_organs,
        "width": width,
        "num_layers": len(layers),
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
    }


class STPathModel(Model):
    """STPath on a panel of its own, trained by its masked-gene scheme.

    A patch's input is its image and, in training, the expression of its measured genes unless the
    patch is masked. Predictions mask all patches: no gene is needed. In place of the organ stands
    the slide's cancer code, and no technology is told. Scheme and figures: STPath's pretraining.

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
    """

    uses_coords = True
    mask_share = (10.0, 1.0)  # parameters of the Beta distribution of the share of masked patches
    partly = 0.1  # of the masked patches, those of which only half of the genes are hidden
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
    ):
        super().__init__()
        self.input_dim, self.cancers, self.max_spots = input_dim, list(cancers), max_spots
        self.network = STPath(
            input_dim, num_genes + 2, len(cancers) + 1, hidden_dim, num_layers,
            mlp_dim=feedforward_dim, dropout=dropout,
        )  # fmt: skip
        self.network.gene_exp_head[1] = Linear(hidden_dim, num_genes)
        chosen = torch.ones(num_genes, dtype=torch.bool)
        if hvgs:
            chosen = torch.zeros(num_genes, dtype=torch.bool).index_fill(
                0, torch.tensor(hvgs), True
            )
        self.register_buffer("variable", chosen, persistent=False)

    @property
    def head(self) -> nn.Linear:
        """The linear layer over genes."""
        return self.network.gene_exp_head[1]

    def hidden(self, batch):
        """(N, D) to (N, hidden_dim); no expression is known."""
        return torch.cat([self._encode(*slide) for slide in _slides(batch)])

    def _encode(self, features, coords, code: int, expression=None) -> torch.Tensor:
        hidden = self.network.encode(features, coords, 0, code, expression)
        return self.network.gene_exp_head[0](hidden)

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
            known = self._known(target.values, rows, masked)
            kind = batch.features.device.type
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                hidden = self._encode(features[rows], coords[rows], code, known)
            measured = target.measured
            if torch.rand(()) < self.restricted and (measured & self.variable).any():
                measured = measured & self.variable
            values = _rows(target.values, rows[masked])
            head = self.head
            losses.append(
                ops.linear_mse(hidden[masked].float(), head.weight, head.bias, values, measured)
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
        masked = torch.zeros(count, dtype=torch.bool)
        masked[torch.randperm(count)[: max(1, round(float(share) * count))]] = True
        return masked.to(device)

    def _known(self, values: torch.Tensor, rows: torch.Tensor, masked: torch.Tensor):
        """(n, G + 2) CSR input of the patches: expression, half of it, or the mask token."""
        matrix = _rows(values, rows)
        offsets, genes, data = matrix.crow_indices(), matrix.col_indices(), matrix.values()
        partly = masked & (torch.rand(len(rows), device=masked.device) < self.partly)
        whole = masked & ~partly
        owner = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), offsets.diff())
        hidden = whole[owner] | (partly[owner] & (torch.rand(len(data), device=data.device) < 0.5))
        owner, genes, data = owner[~hidden], genes[~hidden] + 2, data[~hidden]
        at = whole.nonzero().squeeze(1)
        owner, genes = torch.cat([at, owner]), torch.cat([torch.full_like(at, MASK_TOKEN), genes])
        data = torch.cat([data.new_ones(len(at)), data])
        size = (len(rows), values.shape[1] + 2)
        return torch.sparse_coo_tensor(torch.stack([owner, genes]), data, size).to_sparse_csr()


def _slides(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Features, rescaled coordinates and cancer code of each slide."""
    parts = (part.split(batch.sizes()) for part in (batch.features, batch.coords))
    for features, coords, code in zip(*parts, batch.cancers.tolist(), strict=True):
        yield features, rescale_coords(coords), code


def _rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of a CSR matrix, as CSR."""
    offsets = values.crow_indices()
    lengths = offsets.diff()[rows]
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(offsets[:-1][rows] - ends + lengths, lengths)
    entries = torch.arange(len(shift), device=shift.device) + shift
    return torch.sparse_csr_tensor(
        torch.cat([ends.new_zeros(1), ends]), values.col_indices()[entries],
        values.values()[entries], size=(len(rows), values.shape[1]), check_invariants=False,
    )  # fmt: skip
