"""BP-Booster: prototypes that refine a foundation model's embedding for gene expression.

Equations are those of the paper "Biology-Guided Prototype Booster".
"""

from __future__ import annotations

import torch
from torch import nn

from histokit import ops
from histokit.core.errors import InputError
from histokit.models.base import Model
from histokit.ops.gemm import Linear, linear

ATTENTION = ("prototypes", "literal")
GATES = ("both", "prototype", "latent", "none")
LOSSES = ("both", "reconstruction", "regression")
OPEN = 2.0  # logit of a gate at the start
CLOSED = 0.01  # a gate below lets nothing through


class BPBooster(Model):
    """A projection, attention to M prototypes, gates, a decoder and a head; then a linear readout.

    ``hidden`` is the refined embedding (Eq. 4), ``Z = (attention W_o) * gate_dim``. ``decoder`` and
    ``hvg_head`` serve the two losses (Eq. 10, 11) alone. ``head`` is fitted on the refined
    embeddings in closed form when they are trained, and is what predicts.

    ``attention="prototypes"``: patches ask, prototypes answer. Queries are the projected
    patches, keys and values the prototypes, each with its own weight matrix, and the gate of a
    prototype multiplies its term of the sum:
    ``concat_i(sum_m softmax_m(q_ni k_mi / sqrt(d)) g_m v_mi) W_o``.

    ``attention="literal"``: Eq. 1 to 3 as printed, where prototypes ask and the patch itself
    answers. That is degenerate. Each patch is attended alone, so there is one key, and a softmax
    over one key is 1: every prototype gets the same answer, the projected patch. The ``alpha`` of
    Eq. 3 must then be a softmax over prototypes of the same scores, and
    ``Z' = concat_i(s_ni Proj(z_n)_i) W_o`` with ``s_ni = sum_m alpha_nmi g_m``: all M prototypes
    reach a patch through one number a head, between the least and the largest gate. Were the
    gates equal, that number would be the gate, and prototypes would not matter at all. A
    projection with a gain is what remains; it is kept to measure what the paper describes.

    Gates are sigmoids of parameters that start at 2, 0.88 open. Open, because a gate scales both
    what its prototype gives and the gradient that teaches it: half closed ones would slow all
    prototypes alike, before there is anything to choose between. Not wide open, because the
    slope of the sigmoid, 0.1 there, is what lets a gate move.

    No matrix of the attention has a bias (Eq. 1 and 2 show none): closed gates give exactly zero.

    Args:
        input_dim: L1, dimension of the patch features.
        num_genes: G, outputs of ``head``.
        latent_dim: L2.
        num_prototypes: M.
        num_hvgs: genes that ``hvg_head`` learns.
        attention: ``prototypes`` or ``literal``.
        gates: which gates exist: ``both``, ``prototype``, ``latent`` or ``none``.
        num_heads: h, divides L2; the paper does not give it.
        prototype_names: pathways that the prototypes began as; None where they are
            random.

    Raises:
        InputError: heads that do not divide the latent dimension, or no prototype.
    """

    def __init__(
        self,
        input_dim: int,
        num_genes: int,
        latent_dim: int = 256,
        num_prototypes: int = 64,
        num_hvgs: int = 200,
        attention: str = "prototypes",
        gates: str = "both",
        num_heads: int = 8,
        prototype_names: list[str] | None = None,
    ):
        super().__init__()
        if latent_dim < num_heads or latent_dim % num_heads:
            raise InputError(
                f"{num_heads} heads do not divide {latent_dim} latent dimensions; give a multiple "
                f"of {num_heads} with --latent-dim"
            )
        if num_prototypes < 1:
            raise InputError(f"--num-prototypes must be at least 1, got {num_prototypes}")
        self.input_dim, self.num_heads, self.attention = input_dim, num_heads, attention
        self.prototype_names = prototype_names
        self.projection = Linear(input_dim, latent_dim)
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, latent_dim))  # Eq. 5
        names = ("query", "key", "value", "output") if attention == "prototypes" else ("output",)
        for name in names:
            layer = Linear(latent_dim, latent_dim, bias=False)
            nn.init.xavier_uniform_(layer.weight)  # scores of about 1, where torch's own give 0.2
            self.add_module(name, layer)
        self.prototype_logit = self._gate(num_prototypes, gates in ("both", "prototype"))
        self.latent_logit = self._gate(latent_dim, gates in ("both", "latent"))
        self.decoder = Linear(latent_dim, input_dim)
        self.hvg_head = Linear(latent_dim, num_hvgs)
        self.head = Linear(latent_dim, num_genes)
        self.head.requires_grad_(False)

    @staticmethod
    def _gate(size: int, exists: bool) -> nn.Parameter | None:
        return nn.Parameter(torch.full((size,), OPEN)) if exists else None

    @property
    def prototype_gate(self) -> torch.Tensor:
        """(M,) in [0, 1]; ones without that gate."""
        if self.prototype_logit is None:
            return self.prototypes.new_ones(len(self.prototypes))
        return self.prototype_logit.sigmoid()

    @property
    def latent_gate(self) -> torch.Tensor:
        """(L2,) in [0, 1]; ones without that gate."""
        if self.latent_logit is None:
            return self.prototypes.new_ones(self.prototypes.shape[1])
        return self.latent_logit.sigmoid()

    def hidden(self, batch):
        """(N, L1) to the refined embedding (N, L2); patches do not see each other."""
        return self.refine(batch.features)

    def refine(self, x: torch.Tensor) -> torch.Tensor:
        """Patch features (N, L1) to refined embeddings (N, L2) (Eq. 4)."""
        projected, gate = self.projection(x), self.prototype_gate
        if self.attention == "prototypes":
            key, value = self.key(self.prototypes), self.value(self.prototypes)
            query = self.query(projected)
            mixed = ops.prototype_attention(query, key, value, gate, num_heads=self.num_heads)
        else:
            # With values of one, attention gives the sum of alpha g: once for each of a head's d.
            ones = torch.ones_like(self.prototypes)
            gain = ops.prototype_attention(
                projected, self.prototypes, ones, gate, num_heads=self.num_heads
            )
            mixed = gain * projected
        return linear(mixed, self._gated_output)

    @property
    def _gated_output(self) -> torch.Tensor:
        return self.latent_gate[:, None] * self.output.weight

    def patch_loss(
        self, x: torch.Tensor, y: torch.Tensor, losses: str = "both", scale: str = "mean"
    ) -> torch.Tensor:
        """Reconstruction plus regression (Eq. 12).

        Args:
            x: (N, L1) patch features.
            y: (N, num_hvgs) expression of the highly variable genes.
            losses: ``both``, or the one that is left.
            scale: ``mean``, each a mean of squares over all its entries, so that both weigh alike;
                or ``sum``, as Eq. 10 and 11 print them: the mean over patches of squared norms, by
                which reconstruction weighs L1 / num_hvgs times as much.
        """
        latent, parts = self.refine(x), []
        if losses in ("both", "reconstruction"):
            parts.append((self.decoder, x))
        if losses in ("both", "regression"):
            parts.append((self.hvg_head, y))
        return sum(
            ops.linear_mse(latent, layer.weight, layer.bias, target)
            * (target.shape[1] if scale == "sum" else 1)
            for layer, target in parts
        )

    @torch.no_grad()
    def check_open(self) -> None:
        """Raise InputError where all gates of a kind have closed: every embedding is then zero."""
        for what, gate in (("prototypes", self.prototype_gate), ("dimensions", self.latent_gate)):
            if gate.max() < CLOSED:
                raise InputError(
                    f"the gates of all {len(gate)} {what} have closed (the most open is at "
                    f"{gate.max():.2g}), so every patch has the same embedding, zero; lower --lr, "
                    "raise --num-prototypes or train with other --gates"
                )

    @torch.no_grad()
    def attention_weights(self, x: torch.Tensor) -> torch.Tensor:
        """How much patches x (N, L1), standardized already, attend to each prototype: (N, M).

        The mean over heads of the softmax, before the gates.
        """
        split = (self.num_heads, self.prototypes.shape[1] // self.num_heads)
        query, key = self.projection(x), self.prototypes
        if self.attention == "prototypes":
            query, key = self.query(query), self.key(key)
        query, key = (t.unflatten(1, split).transpose(0, 1) for t in (query, key))
        return (query @ key.transpose(1, 2) * split[1] ** -0.5).softmax(-1).mean(0)

    @torch.no_grad()
    def prototype_effects(self) -> torch.Tensor | None:
        """What each prototype does to each gene: (M, G), on the scale of the targets.

        The prediction for a patch that attends to this prototype alone, less that for one that
        attends to all alike. None for literal attention, where prototypes give no values.
        """
        if self.attention == "literal":
            return None
        answer = self.value(self.prototypes) * self.prototype_gate[:, None]
        return (answer - answer.mean(0)) @ self._gated_output.T @ self.head.weight.T
