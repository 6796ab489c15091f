"""STPath, a spatial transformer over a whole slide; trained in ``stpath_model.py``.

Rebuilt from the published architecture; parameters carry the names of the authors' checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.core.weights import load_weights, misfit, read_state_dict
from histokit.models.base import Standardizer
from histokit.ops.dispatch import full_precision
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
    with full_precision(coords):  # a lower one rounds places, and has no eigenvectors
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
            known = _product(expression, encoder.gene_embed.weight)
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


def _product(expression: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, G) dense or CSR by (width, G) to (N, width), in the type of the weights.

    torch has sparse products of float32 and float64 alone, which autocast would not leave them.
    """
    if not expression.is_sparse_csr:
        return F.linear(expression, weight)
    with full_precision(weight):
        return expression.to(weight.dtype) @ weight.T


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
