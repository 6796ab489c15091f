"""HistoPrism: patches conditioned on cancer type, then on each other (arXiv 2601.21560).

The parameters carry the names of the authors' checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.core.weights import load_weights, read_state_dict
from histokit.models.base import Model
from histokit.models.places import sinusoids, spread_groups
from histokit.ops import dispatch
from histokit.ops.gemm import Linear, linear

# The authors' order of oncotree codes, the same in both published splits.
OFFICIAL_CANCERS = (
    "PAAD CESC ACYC GBM Diseased_Unspecified CSCC Treated_Unspecified IDC HGSOC READ SKCM LUNG EPM "
    "SOC LYMPH_IDC BLCA CCRCC Unknown LNET ILC Cancer_Unspecified Healthy ALL PRCC PRAD COADREAD "
    "COAD LUSC HCC"
).split()
_PARTS = "input_proj onco_embedder conditioner transformer gene_regression_head".split()


class HistoPrism(Model):
    """Cancer cross-attention, a transformer encoder over the slide, a two-layer head.

    Section 3.2 of the paper: Eq. 1-3 condition each patch on the slide's cancer embedding; a
    projection to ``hidden_dim``; post-norm encoder layers without positional encoding; the head
    of Eq. 4.

    Args:
        input_dim: D, dimension of the patch features (1,024 in the paper).
        num_genes: G, outputs.
        cancers: oncotree codes, in the order of the one-hot code.
        hidden_dim: width of the encoder and of the head.
        num_layers: encoder layers.
        num_heads: heads of an encoder layer.
        feedforward_dim: width inside an encoder layer.
        cross_heads: heads of the cancer cross-attention; they divide ``input_dim``.
        dropout: rate everywhere the authors have it.
        max_patches: patches that attend to each other at most; a larger slide is taken apart into
            as few groups as that allows, each spread over the whole slide (every k-th patch). The
            cost then grows with N instead of N^2; what a patch sees of its slide is a sample.
        conditioning: ``on``, or ``off`` without Eq. 1-3: patches are projected as they are, and
            the model is told no cancer (section 4.6, Table 3).
        positions: ``none``, or ``sinusoidal``: ``sinusoids`` of where patches lie, added after the
            projection. The paper calls its ablation "positional encoding" and does not give its
            form (section 4.6, Tables 3 and 4); this one is ours and has no parameters.

    Raises:
        InputError: heads that do not divide their dimension, or an option that does not exist.
    """

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        cancers: list[str],
        hidden_dim: int = 256,
        num_layers: int = 2,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        cross_heads: int = 4,
        dropout: float = 0.1,
        max_patches: int | None = None,
        conditioning: str = "on",
        positions: str = "none",
    ):
        super().__init__()
        for name, value, known in (
            ("conditioning", conditioning, ("on", "off")),
            ("positions", positions, ("none", "sinusoidal")),
        ):
            if value not in known:
                raise InputError(f"--{name} must be {' or '.join(known)}, got {value!r}")
        if positions == "sinusoidal" and hidden_dim % 4:
            raise InputError(
                f"sinusoidal positions take a hidden width of a multiple of 4, not {hidden_dim}; "
                "change --hidden-dim"
            )
        if max_patches is not None and max_patches < 1:
            raise InputError(f"--max-patches must be at least 1, got {max_patches}")
        divided = [(num_heads, hidden_dim, "encoder heads, hidden dimensions")]
        if conditioning == "on":
            divided.insert(0, (cross_heads, input_dim, "cross-attention heads, features"))
        for heads, width, what in divided:
            if width % heads:
                raise InputError(
                    f"{heads} {what.split(', ')[0]} do not divide {width} {what.split(', ')[1]}; "
                    "choose a divisor"
                )
        self.input_dim, self.uses_coords = input_dim, positions == "sinusoidal"
        self.cancers = list(cancers) if conditioning == "on" else None
        self.cross_heads, self.num_heads, self.dropout = cross_heads, num_heads, dropout
        self.max_patches = max_patches
        self._folds = None
        self.input_proj = Linear(input_dim, hidden_dim)
        if conditioning == "on":
            self.onco_embedder = nn.Linear(len(cancers), input_dim)
            self.conditioner = nn.Module()
            self.conditioner.attention = nn.MultiheadAttention(input_dim, cross_heads)
            self.conditioner.norm = nn.LayerNorm(input_dim)
        layer = nn.TransformerEncoderLayer(
            hidden_dim, num_heads, feedforward_dim, dropout, batch_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.gene_regression_head = nn.Sequential(
            Linear(hidden_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            Linear(hidden_dim, num_genes),
        )

    @property
    def head(self) -> nn.Linear:
        """The linear layer over genes."""
        return self.gene_regression_head[4]

    def hidden(self, batch):
        """(N, D) to (N, hidden_dim), the input of the linear layer over genes."""
        h = self.input_proj(batch.features if self.cancers is None else self._condition(batch))
        sizes, order = batch.sizes(), None
        if self.uses_coords:
            slides = batch.coords.split(sizes)
            h = h + torch.cat([sinusoids(slide, h.shape[1]) for slide in slides]).to(h)
        if self.max_patches and max(sizes, default=0) > self.max_patches:
            order, sizes = spread_groups(sizes, self.max_patches, h.device)
            h = h[order]
        for layer in self.transformer.layers:
            h = self._encode(layer, h, sizes)
        if order is not None:
            h = h[torch.argsort(order)]
        return self.gene_regression_head[:4](h)

    def _condition(self, batch):
        x, codes = batch.features, batch.cancers.to(batch.features.device)
        # An unknown code (-1) is all zeros, as the authors' one-hot is: the bias alone remains.
        onehot = (codes[:, None] == torch.arange(len(self.cancers), device=x.device)).to(x.dtype)
        attention, norm = self.conditioner.attention, self.conditioner.norm
        weights = (
            attention.in_proj_weight,
            attention.in_proj_bias,
            attention.out_proj.weight,
            attention.out_proj.bias,
            norm.weight,
            norm.bias,
        )
        if self._folds is not None and not torch.is_grad_enabled() and not self.training:
            return self._fold(onehot, batch.cancers, weights)(x, batch.slide_index)
        context = self.onco_embedder(onehot)[:, None]
        mask = None
        if self.training and self.dropout > 0:
            keep = x.new_full((len(x), self.cross_heads), 1 - self.dropout)
            mask = torch.bernoulli(keep) / (1 - self.dropout)
        return ops.cancer_cross_attention(
            x,
            context,
            *weights,
            num_heads=self.cross_heads,
            slide_index=batch.slide_index,
            dropout_mask=mask,
            eps=norm.eps,
        )

    def keep_folds(self) -> None:
        """Promise that weights stay as they are: each cancer's context is folded once.

        For an evaluation, where a fold reads two D x D matrices for every slide. A change of the
        weights is not noticed afterwards (the optimizers' fused steps leave no trace); this,
        called again, forgets what was folded.
        """
        self._folds = {}

    def _fold(self, onehot, codes, weights) -> ops.FoldedContext:
        lower = torch.is_autocast_enabled(onehot.device.type)
        key = (tuple(codes.tolist()), onehot.device, onehot.dtype, weights[0].dtype, lower)
        if key not in self._folds:
            context, eps = self.onco_embedder(onehot)[:, None], self.conditioner.norm.eps
            self._folds[key] = ops.fold_context(
                context, *weights, num_heads=self.cross_heads, eps=eps
            )
        return self._folds[key]

    def _encode(self, layer: nn.TransformerEncoderLayer, h, sizes: list[int]):
        """One post-norm layer; a patch attends to the patches of its own slide only."""
        attention, width = layer.self_attn, h.shape[1]
        qkv = linear(h, attention.in_proj_weight, attention.in_proj_bias)
        qkv = qkv.view(len(h), 3, self.num_heads, -1).permute(1, 2, 0, 3)
        rate = self.dropout if self.training else 0.0
        if len(sizes) == 1:  # splitting and joining are copies in the backward pass
            attended = self._attend(*qkv, rate)
        else:
            slides = zip(*(t.split(sizes, dim=1) for t in qkv), strict=True)
            attended = torch.cat([self._attend(*slide, rate) for slide in slides], dim=1)
        attended = attended.transpose(0, 1).reshape(len(h), width)
        out, first, second = attention.out_proj, layer.linear1, layer.linear2
        attended = linear(attended, out.weight, out.bias)
        h = layer.norm1(h + layer.dropout1(attended))
        inner = layer.dropout(F.relu(linear(h, first.weight, first.bias)))
        inner = linear(inner, second.weight, second.bias)
        return layer.norm2(h + layer.dropout2(inner))

    @staticmethod
    def _attend(q, k, v, rate: float):
        """(h, n, d) patches of one slide to each other, with dropout at this rate."""
        serves = dispatch.kernels_serve("distance_attention", q)
        if q.device.type == "cpu" and (serves or rate > 0):
            # torch's flash attention on the CPU is slower, and has no dropout; this one draws the
            # same mask with and without kernels.
            nowhere, flat = q.new_zeros(q.shape[1], 2), q.new_zeros(q.shape[0])
            return ops.distance_attention(q, k, v, nowhere, flat, dropout=rate)
        batch = (t[None] for t in (q, k, v))  # without it torch forms all n^2 scores on the CPU
        return F.scaled_dot_product_attention(*batch, dropout_p=rate)[0]

    @classmethod
    def from_official(cls, path: str | Path, cancers: list[str] | None = None) -> HistoPrism:
        """Load the authors' checkpoint; every size is read from its tensors.

        Accepts their training checkpoint (``model_state`` inside a dict) or a bare state dict,
        as a torch file (read without unpickling code) or safetensors; drops the graph
        convolution that their forward pass never uses. Heads are the paper's 4 and 8.

        Args:
            path: the file.
            cancers: codes in the order of training; the authors' 29 by default.

        Raises:
            InputError: no such file, not a checkpoint, or tensors that are not HistoPrism's.
        """
        state = {
            key: value
            for key, value in read_state_dict(path).items()
            if not key.startswith(("img_conv.", "img_norm."))
        }
        try:
            hidden_dim, input_dim = state["input_proj.weight"].shape
            num_genes, _ = state["gene_regression_head.4.weight"].shape
            _, num_cancers = state["onco_embedder.weight"].shape
            feedforward_dim, _ = state["transformer.layers.0.linear1.weight"].shape
        except KeyError as error:
            strange = [key for key in state if key.split(".")[0] not in _PARTS]
            raise InputError(
                f"{path} is not a HistoPrism checkpoint: it lacks {error.args[0]}"
                + f" and holds the unexpected {strange[0]}" * bool(strange)
            ) from error
        except ValueError as error:
            raise InputError(
                f"{path} is not a HistoPrism checkpoint: a weight of its layers is no matrix"
            ) from error
        cancers = list(cancers or OFFICIAL_CANCERS)
        if len(cancers) != num_cancers:
            raise InputError(
                f"{path} was trained on {num_cancers} cancer codes and {len(cancers)} were given; "
                "pass them in the order of training"
            )
        layers = {key.split(".")[2] for key in state if key.startswith("transformer.layers.")}
        model = cls(
            input_dim,
            num_genes,
            cancers,
            hidden_dim=hidden_dim,
            num_layers=len(layers),
            feedforward_dim=feedforward_dim,
        )
        load_weights(model, state, Path(path))
        return model.eval()
