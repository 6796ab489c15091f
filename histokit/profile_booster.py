"""BP-Booster in run_profile.py: Eq. 3 of its paper as one writes it down, and fused."""

from __future__ import annotations

import contextlib

import torch

from histokit import ops
from histokit.models import bpbooster
from histokit.profiling import Case, Setting, size_of

FEATURES, LATENT, PROTOTYPES, HVGS = 1024, 256, 64, 200


class Plain:
    """Stands in for ``histokit.ops`` in the model: forms the (N, M, L2) tensor of all answers."""

    @staticmethod
    def prototype_attention(query, key, value, gate, *, num_heads):
        """(N, L2) by way of (N, M, h, L2 / h)."""
        split = (num_heads, query.shape[1] // num_heads)
        query, key, value = (t.unflatten(1, split) for t in (query, key, value))
        alpha = (torch.einsum("nhd,mhd->nmh", query, key) * split[1] ** -0.5).softmax(1)
        answers = alpha[..., None] * value
        return (gate[:, None, None] * answers).sum(1).flatten(1)


@contextlib.contextmanager
def _through(module):
    bpbooster.ops = module
    try:
        yield
    finally:
        bpbooster.ops = ops


def _model(at: Setting, genes: int) -> bpbooster.BPBooster:
    return at.place(bpbooster.BPBooster(FEATURES, genes, LATENT, PROTOTYPES, HVGS))


def booster(at: Setting, fused: bool) -> Case:
    """The forward pass to all predictions of a slide."""
    model, x = _model(at, at.genes), at.tensor(at.patches, FEATURES)

    def predict(fused: bool) -> torch.Tensor:
        with _through(ops if fused else Plain):
            return model(x, -1)

    return Case(
        lambda: predict(fused),
        lambda: (predict(True), predict(False)),
        size_of(model, x) + at.patches * at.genes * x.element_size(),
        uncounted=0 if fused else 2 * at.patches * PROTOTYPES * LATENT,
    )


def booster_training(at: Setting, fused: bool) -> Case:
    """One step on a batch of all patches: reconstruction and 200 genes, gradients, Adam."""
    model = _model(at, 1)
    x, y = at.tensor(at.patches, FEATURES), at.tensor(at.patches, HVGS)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, 1e-3, weight_decay=0, fused=True)

    def gradients(fused: bool) -> torch.Tensor:
        model.train()
        optimiser.zero_grad()
        with torch.enable_grad(), _through(ops if fused else Plain):
            loss = model.loss(x, y)
            loss.backward()
        return loss.detach()

    def step() -> torch.Tensor:
        loss = gradients(fused)
        optimiser.step()
        return loss

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for form in (True, False):
            loss = gradients(form).view(1)
            found.append(torch.cat([loss, *(p.grad.flatten() for p in learned)]))
        return found[0], found[1]

    return Case(
        step,
        check,
        7 * sum(p.nbytes for p in learned) + size_of(x, y),
        uncounted=0 if fused else 6 * at.patches * PROTOTYPES * LATENT,
    )
