"""BP-Booster in run_profile.py: as one writes its equations down, and fused."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from histokit import ops
from histokit.models.bpbooster import BPBooster
from histokit.profile import rivals
from histokit.profile.measure import Case, Form, Setting, size_of

FEATURES, LATENT, PROTOTYPES, HVGS = 1024, 256, 64, 200


class Stock:
    """The equations with torch alone, over the parameters of a model.

    As one writes them down, which needs (N, M, L2) numbers; ``careful``: by torch's attention.
    """

    def __init__(self, model: BPBooster, careful: bool = False):
        self.model, self.careful = model, careful

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L1) to (N, L2), by way of all answers of all prototypes (Eq. 3)."""
        model = self.model
        prototypes, projected = model.prototypes, model.projection(x)
        layers = (model.query, projected), (model.key, prototypes), (model.value, prototypes)
        if self.careful:
            rows = [layer(rows) for layer, rows in layers]
            mixed = rivals.prototypes_by_sdpa(*rows, model.prototype_gate, model.num_heads)
            return model.output(mixed) * model.latent_gate
        query, key, value = (
            layer(rows).unflatten(1, (model.num_heads, -1)) for layer, rows in layers
        )
        alpha = (torch.einsum("nhd,mhd->nmh", query, key) * query.shape[2] ** -0.5).softmax(1)
        answers = alpha[..., None] * value
        mixed = (model.prototype_gate[:, None, None] * answers).sum(1).flatten(1)
        return model.output(mixed) * model.latent_gate

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L1) to (N, G)."""
        with ops.use("reference"):
            return self.model.head(self.latent(x))

    def patch_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Eq. 12."""
        with ops.use("reference"):
            latent = self.latent(x)
            expression, features = self.model.hvg_head(latent), self.model.decoder(latent)
        return F.mse_loss(features, x) + F.mse_loss(expression, y)


def _model(at: Setting, genes: int) -> BPBooster:
    return at.place(BPBooster(FEATURES, genes, LATENT, PROTOTYPES, HVGS))


def booster(at: Setting, form: Form) -> Case:
    """The forward pass to all predictions of a slide."""
    model, x = _model(at, at.genes), at.tensor(at.patches, FEATURES)
    stock = Stock(model, form != "published")
    return Case(
        lambda: model(x, -1) if form == "here" else stock.predict(x),
        lambda: (model(x, -1), stock.predict(x)),
        size_of(model, x) + at.patches * at.genes * x.element_size(),
        uncounted=2 * at.patches * PROTOTYPES * LATENT if form == "published" else 0,
    )


def booster_training(at: Setting, form: Form) -> Case:
    """One step on a batch of all patches: reconstruction and 200 genes, gradients, Adam."""
    model = _model(at, 1)
    x, y = at.tensor(at.patches, FEATURES), at.tensor(at.patches, HVGS)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-3, weight_decay=0, fused=True)
    stock = Stock(model, form != "published")

    def gradients(here: bool) -> torch.Tensor:
        model.train()
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = (model if here else stock).patch_loss(x, y)
            loss.backward()
        return loss.detach()

    def step() -> torch.Tensor:
        loss = gradients(form == "here")
        optimizer.step()
        return loss

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for here in (True, False):
            loss = gradients(here).view(1)
            found.append(torch.cat([loss, *(p.grad.flatten() for p in learned)]))
        return found[0], found[1]

    return Case(
        step,
        check,
        7 * sum(p.nbytes for p in learned) + size_of(x, y),
        uncounted=6 * at.patches * PROTOTYPES * LATENT if form == "published" else 0,
    )
