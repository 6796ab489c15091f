"""What run_profile.py measures: models as published and as they are here, at their full size."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr
from torch import nn

from histokit import ops
from histokit.models.base import Batch
from histokit.models.histoprism import OFFICIAL_CANCERS, HistoPrism
from histokit.models.stpath import STPath, STPathLayer, rescale_coords
from histokit.profile.booster import booster, booster_training
from histokit.profile.measure import Case, Setting, seconds_of, size_of

FEATURES = 1024  # of HistoPrism, from UNI
WIDTH, LAYERS = 256, 2  # of its encoder
CANCER, TECHNOLOGY, ORGAN = 7, 2, 3
DENSITY = 0.08  # of the expression of a slide
PATHWAYS = (137, 75)  # of GPC: 50 Hallmark and 87 GO sets, and genes of each


# ---- HistoPrism --------------------------------------------------------------------------------


class AuthorsForm(nn.Module):
    """HistoPrism's forward pass in the modules of its authors, over the parameters of ours.

    ``nn.MultiheadAttention`` with the cancer's token as key and value, ``nn.TransformerEncoder``,
    and the head over all genes.
    """

    def __init__(self, model: HistoPrism):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, cancer: int) -> torch.Tensor:
        """(N, D) to (N, G)."""
        model = self.model
        onehot = F.one_hot(torch.tensor([cancer], device=x.device), len(model.cancers)).to(x.dtype)
        with ops.use("reference"):
            context = model.onco_embedder(onehot)[:, None]
            attended, _ = model.conditioner.attention(x[:, None], context, context)
            h = model.input_proj(model.conditioner.norm(x + attended[:, 0]))
            return model.gene_regression_head(model.transformer(h[None])[0])


def _histoprism(at: Setting, dropout: float = 0.1) -> tuple[HistoPrism, AuthorsForm, torch.Tensor]:
    model = at.place(HistoPrism(FEATURES, at.genes, OFFICIAL_CANCERS, dropout=dropout))
    return model, AuthorsForm(model).eval(), at.tensor(at.patches, FEATURES)


def histoprism(at: Setting, here: bool) -> Case:
    """The forward pass to all predictions of a slide."""
    model, authors, x = _histoprism(at)
    element = x.element_size()
    return Case(
        lambda: (model if here else authors)(x, CANCER),
        lambda: (model(x, CANCER), authors(x, CANCER)),
        size_of(model, x) + at.patches * at.genes * element,
    )


def _slide_expression(at: Setting) -> torch.Tensor:
    """(N, G) sparse CSR."""
    rng = np.random.default_rng(0)
    own = [
        np.flatnonzero(rng.random(at.genes, dtype=np.float32) < DENSITY) for _ in range(at.patches)
    ]
    offsets = torch.tensor(np.cumsum([0, *map(len, own)]))
    columns = torch.from_numpy(np.concatenate(own))
    values = torch.rand(len(columns)) * 3
    return torch.sparse_csr_tensor(
        offsets, columns, values, (at.patches, at.genes), check_invariants=False
    ).to(at.device, at.dtype)


def _batch(x: torch.Tensor) -> Batch:
    return Batch(x, torch.tensor([CANCER], device=x.device))


def coherence(at: Setting, here: bool) -> Case:
    """GPC of one slide: mean correlation of each pathway's genes."""
    model, authors, x = _histoprism(at)
    target = _slide_expression(at)
    rng = np.random.default_rng(1)
    count = min(PATHWAYS[1], at.genes)
    members = torch.tensor(
        np.stack([rng.choice(at.genes, count, False) for _ in range(PATHWAYS[0])]),
        device=at.device,
    )
    dense = None if here else target.to_dense()
    sparse = target if here else None

    def closed(sparse: torch.Tensor) -> torch.Tensor:
        r, _ = ops.linear_pearson(
            model.hidden(_batch(x)), model.head.weight, model.head.bias, sparse
        )
        return r[members].nanmean(1)

    def by_gene(dense: torch.Tensor) -> torch.Tensor:
        predicted = authors(x, CANCER).float().cpu().numpy()
        truth = dense.float().cpu().numpy()
        r = [pearsonr(predicted[:, g], truth[:, g])[0] for g in range(at.genes)]
        return torch.tensor(np.array(r), dtype=at.dtype, device=at.device)[members].nanmean(1)

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        full = target.to_dense()
        return closed(target), by_gene(full)

    traffic = size_of(model, x) + sum(
        size_of(t) for t in (target.values(), target.col_indices(), target.crow_indices())
    )
    if here:
        return Case(lambda: closed(sparse), check, traffic)
    traffic = size_of(model, x, dense) + 2 * at.patches * at.genes * x.element_size()
    return Case(lambda: by_gene(dense), check, traffic, slow=True)


def training(at: Setting, here: bool) -> Case:
    """One step: forward, loss, backward, clipping, AdamW; the check is without dropout.

    AdamW is fused here, as in run_train.py, and torch's default in the authors' form.
    """
    model, authors, x = _histoprism(at)
    target = _slide_expression(at)
    dense = None if here else target.to_dense()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=here)

    def loss_here(model: HistoPrism) -> torch.Tensor:
        head = model.head
        return ops.linear_mse(model.hidden(_batch(x)), head.weight, head.bias, target)

    def loss_of_authors(form: AuthorsForm, dense: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(form(x, CANCER), dense)

    def step() -> torch.Tensor:
        model.train()
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = loss_here(model) if here else loss_of_authors(authors.train(), dense)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        plain = _histoprism(dataclasses.replace(at, patches=1), dropout=0.0)[0]
        plain.load_state_dict(model.state_dict())
        found = []
        for loss in (
            lambda own: loss_here(own),
            lambda own: loss_of_authors(AuthorsForm(own), target.to_dense()),
        ):
            own = copy.deepcopy(plain).train()
            with torch.enable_grad():
                value = loss(own)
                value.backward()
            # The cross-attention's queries and keys have no influence: None here, zero there.
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.parameters()]
            found.append(torch.cat([value.detach().view(1), *(g.flatten() for g in grads)]))
        return found[0], found[1]

    state = 7 * size_of(model)  # weights and two moments read and written, the gradient read
    return Case(step, check, state + size_of(x))


# ---- STPath ------------------------------------------------------------------------------------


def stpath(at: Setting, fused: bool) -> Case:
    """The forward pass; as published, the masked expression is a product of its own."""
    model = at.place(STPath(num_genes=at.genes + 2, attention="as_published"))
    ours = at.place(STPath(num_genes=at.genes + 2))
    ours.load_state_dict(model.state_dict())
    model, ours = (model, ours) if not fused else (None, ours)
    weights = ours.state_dict()
    x = at.tensor(at.patches, ours.input_encoder.image_embed.in_features)
    coords = rescale_coords(torch.rand(at.patches, 2, device=at.device)).to(at.dtype)
    masked = None if fused else model.masked_expression(at.patches)

    def here() -> torch.Tensor:
        return ours(x, coords, TECHNOLOGY, ORGAN)

    def published(model: STPath, masked: torch.Tensor) -> torch.Tensor:
        with ops.use("reference"):
            return model(x, coords, TECHNOLOGY, ORGAN, masked)

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        other = at.place(STPath(num_genes=at.genes + 2, attention="as_published"))
        other.load_state_dict(weights)
        return here(), published(other, other.masked_expression(at.patches))

    traffic = size_of(ours, x) + at.patches * (at.genes + 2) * x.element_size()
    if fused:
        return Case(here, check, traffic)
    return Case(lambda: published(model, masked), check, traffic + size_of(masked))


def stpath_layer(at: Setting, fused: bool) -> Case:
    """One of STPath's four layers."""
    layers = [at.place(STPathLayer(attention=a)) for a in ("fused", "as_published")]
    layers[1].load_state_dict(layers[0].state_dict())
    h = at.tensor(at.patches, layers[0].attn.W_output[0].in_features)
    coords = rescale_coords(torch.rand(at.patches, 2, device=at.device)).to(at.dtype)

    def call(fused: bool) -> torch.Tensor:
        with ops.use("auto" if fused else "reference"):
            return layers[0 if fused else 1](h, coords)

    return Case(
        lambda: call(fused),
        lambda: (call(True), call(False)),
        size_of(layers[0], h, h),
    )


def attention_rate(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of the attention that HistoPrism uses on this device."""
    q, k, v = torch.randn(3, 8, 4096, WIDTH // 8, device=device).to(dtype)
    call = lambda: HistoPrism._attend(q, k, v, 0.0)  # noqa: E731
    call()
    return 4 * 4096**2 * WIDTH / statistics.median(seconds_of(call, 5, device)) / 1e9


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table by its name; ``against`` names the row that its ratios refer to.

    ``curve`` is False where the figure leaves it out, for it shows forward passes.
    """

    group: str
    build: Callable[[Setting], Case]
    against: str | None = None
    curve: bool = True


ROWS = {
    "HistoPrism, authors' form": Row("histoprism", lambda at: histoprism(at, False)),
    "HistoPrism here": Row(
        "histoprism", lambda at: histoprism(at, True), "HistoPrism, authors' form"
    ),
    "STPath as published": Row("stpath", lambda at: stpath(at, False)),
    "STPath fused": Row("stpath", lambda at: stpath(at, True), "STPath as published"),
    "STPath layer as published": Row("stpath-layer", lambda at: stpath_layer(at, False)),
    "STPath layer fused": Row(
        "stpath-layer", lambda at: stpath_layer(at, True), "STPath layer as published"
    ),
    "BP-Booster plain": Row("bpbooster", lambda at: booster(at, False)),
    "BP-Booster fused": Row("bpbooster", lambda at: booster(at, True), "BP-Booster plain"),
    "BP-Booster step plain": Row("bpbooster", lambda at: booster_training(at, False), curve=False),
    "BP-Booster step fused": Row(
        "bpbooster", lambda at: booster_training(at, True), "BP-Booster step plain", False
    ),
    "GPC, scipy by gene": Row("gpc", lambda at: coherence(at, False)),
    "GPC, closed form": Row("gpc", lambda at: coherence(at, True), "GPC, scipy by gene"),
    "training step, authors' form": Row("train", lambda at: training(at, False), curve=False),
    "training step here": Row(
        "train", lambda at: training(at, True), "training step, authors' form", False
    ),
}
