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
from histokit.models.stpath import Attention, STPath, STPathLayer, rescale_coords
from histokit.profile import rivals
from histokit.profile.booster import booster, booster_training
from histokit.profile.measure import Case, Form, Setting, seconds_of, size_of

FEATURES = 1024  # of HistoPrism, from UNI
WIDTH, LAYERS = 256, 2  # of its encoder
CANCER, TECHNOLOGY, ORGAN = 7, 2, 3
DENSITY = 0.08  # of the expression of a slide
PATHWAYS = (137, 75)  # of GPC: 50 Hallmark and 87 GO sets, and genes of each


# ---- HistoPrism --------------------------------------------------------------------------------


class StockForm(nn.Module):
    """HistoPrism's forward pass with torch alone, over the parameters of ours.

    As its authors write it: ``nn.MultiheadAttention`` with the cancer's token as key and value,
    ``nn.TransformerEncoder``, and the head over all genes. ``careful``: without the queries and
    keys of an attention to one token.
    """

    def __init__(self, model: HistoPrism, careful: bool = False):
        super().__init__()
        self.model, self.careful = model, careful

    def hidden(self, x: torch.Tensor, cancer: int) -> torch.Tensor:
        """(N, D) to (N, width), what the last layer takes."""
        model = self.model
        onehot = F.one_hot(torch.tensor([cancer], device=x.device), len(model.cancers)).to(x.dtype)
        attention, norm = model.conditioner.attention, model.conditioner.norm
        with ops.use("reference"):
            context = model.onco_embedder(onehot)
            if self.careful:
                h = rivals.folded_attention(x, context, attention, norm, attention.num_heads)
            else:
                attended, _ = attention(x[:, None], context[:, None], context[:, None])
                h = norm(x + attended[:, 0])
            h = model.transformer(model.input_proj(h)[None])[0]
            return model.gene_regression_head[:-1](h)

    def forward(self, x: torch.Tensor, cancer: int) -> torch.Tensor:
        """(N, D) to (N, G)."""
        with ops.use("reference"):
            return self.model.gene_regression_head[-1](self.hidden(x, cancer))


def _histoprism(at: Setting, dropout: float = 0.1) -> tuple[HistoPrism, torch.Tensor]:
    model = at.place(HistoPrism(FEATURES, at.genes, OFFICIAL_CANCERS, dropout=dropout))
    return model, at.tensor(at.patches, FEATURES)


def histoprism(at: Setting, form: Form) -> Case:
    """The forward pass to all predictions of a slide."""
    model, x = _histoprism(at)
    stock = StockForm(model, form != "published").eval()
    element = x.element_size()
    return Case(
        lambda: (model if form == "here" else stock)(x, CANCER),
        lambda: (model(x, CANCER), stock(x, CANCER)),
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


def coherence(at: Setting, form: Form) -> Case:
    """GPC of one slide: mean correlation of each pathway's genes.

    The stock forms correlate the genes of pathways alone; the closed form gives all genes.
    """
    model, x = _histoprism(at)
    stock = StockForm(model, form != "published").eval()
    target = _slide_expression(at)
    rng = np.random.default_rng(1)
    count = min(PATHWAYS[1], at.genes)
    members = torch.tensor(
        np.stack([rng.choice(at.genes, count, False) for _ in range(PATHWAYS[0])]),
        device=at.device,
    )

    def closed(sparse: torch.Tensor) -> torch.Tensor:
        r, _ = ops.linear_pearson(
            model.hidden(_batch(x)), model.head.weight, model.head.bias, sparse
        )
        return r[members].nanmean(1)

    genes, places = members.unique(return_inverse=True)

    def by_blocks(dense: torch.Tensor) -> torch.Tensor:
        head, hidden = model.head, stock.hidden(x, CANCER)
        weight, bias = head.weight[genes], head.bias[genes]
        r = rivals.head_pearson_by_blocks(hidden, weight, bias, dense[:, genes])
        return r[places].nanmean(1)

    def by_gene(dense: torch.Tensor) -> torch.Tensor:
        predicted = stock(x, CANCER).float().cpu().numpy()
        truth = dense.float().cpu().numpy()
        r = [pearsonr(predicted[:, g], truth[:, g])[0] for g in genes.tolist()]
        return torch.tensor(np.array(r), dtype=at.dtype, device=at.device)[places].nanmean(1)

    other = by_gene if form == "published" else by_blocks
    call, given = (closed, target) if form == "here" else (other, target.to_dense())
    parts = (target.values(), target.col_indices(), target.crow_indices())
    traffic = size_of(model, x, *(parts if form == "here" else [given]))
    if form == "published":
        traffic += 2 * at.patches * at.genes * x.element_size()
    return Case(lambda: call(given), lambda: (closed(target), other(target.to_dense())), traffic)


def training(at: Setting, form: Form) -> Case:
    """One step: forward, loss, backward, clipping, AdamW; the check is without dropout.

    AdamW is torch's default in the published form and fused in the others.
    """
    model, x = _histoprism(at)
    target = _slide_expression(at)
    dense = None if form == "here" else target.to_dense()
    fused = form != "published"
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=fused)

    def gradients(own: HistoPrism, form: Form, dense: torch.Tensor | None) -> torch.Tensor:
        """The loss; gradients of all parameters are added to ``.grad``."""
        head = own.head
        if form == "here":
            loss = ops.linear_mse(own.hidden(_batch(x)), head.weight, head.bias, target)
        elif form == "published":
            loss = F.mse_loss(StockForm(own).train()(x, CANCER), dense)
        else:
            hidden = StockForm(own, careful=True).train().hidden(x, CANCER)
            parameters = hidden.detach(), head.weight.detach(), head.bias.detach()
            loss, for_hidden, head.weight.grad, head.bias.grad = rivals.head_loss_by_blocks(
                *parameters, dense
            )
            hidden.backward(for_hidden)
            return loss
        loss.backward()
        return loss

    def step() -> torch.Tensor:
        model.train()
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = gradients(model, form, dense)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        plain = _histoprism(dataclasses.replace(at, patches=1), dropout=0.0)[0]
        plain.load_state_dict(model.state_dict())
        found = []
        for each in ("here", "published" if form == "here" else form):
            own = copy.deepcopy(plain).train()
            with torch.enable_grad():
                value = gradients(own, each, target.to_dense())
            # The cross-attention's queries and keys have no influence: None here, zero there.
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own.parameters()]
            found.append(torch.cat([value.detach().view(1), *(g.flatten() for g in grads)]))
        return found[0], found[1]

    state = 7 * size_of(model)  # weights and two moments read and written, the gradient read
    return Case(step, check, state + size_of(x))


# ---- STPath ------------------------------------------------------------------------------------


def _attend_by_blocks(model: nn.Module) -> nn.Module:
    """The model with attention by stock torch, a block of queries at a time."""
    for attention in (m for m in model.modules() if isinstance(m, Attention)):
        attention.attend = rivals.distances_by_blocks
    return model


def _stpath(at: Setting, form: Form, weights: dict | None = None) -> STPath:
    attention = "as_published" if form == "published" else "fused"
    model = at.place(STPath(num_genes=at.genes + 2, attention=attention))
    if weights is not None:
        model.load_state_dict(weights)
    return _attend_by_blocks(model) if form == "careful" else model


def stpath(at: Setting, form: Form) -> Case:
    """The forward pass; as published, the masked expression is a product of its own."""
    model = _stpath(at, form)
    weights = model.state_dict()
    x = at.tensor(at.patches, model.input_encoder.image_embed.in_features)
    coords = rescale_coords(torch.rand(at.patches, 2, device=at.device)).to(at.dtype)
    masked = model.masked_expression(at.patches) if form == "published" else None

    def stock(model: STPath, *masked: torch.Tensor) -> torch.Tensor:
        with ops.use("reference"):
            return model(x, coords, TECHNOLOGY, ORGAN, *masked)

    def here(model: STPath) -> torch.Tensor:
        return model(x, coords, TECHNOLOGY, ORGAN)

    def check() -> tuple[torch.Tensor, torch.Tensor]:
        if form == "careful":
            return here(_stpath(at, "here", weights)), stock(model)
        other = _stpath(at, "published", weights)
        return here(_stpath(at, "here", weights)), stock(other, other.masked_expression(at.patches))

    traffic = size_of(model, x) + at.patches * (at.genes + 2) * x.element_size()
    if form == "here":
        return Case(lambda: here(model), check, traffic)
    if form == "careful":
        return Case(lambda: stock(model), check, traffic)
    return Case(lambda: stock(model, masked), check, traffic + size_of(masked))


def stpath_layer(at: Setting, form: Form) -> Case:
    """One of STPath's four layers."""
    layers = {
        "published": at.place(STPathLayer(attention="as_published")),
        "careful": _attend_by_blocks(at.place(STPathLayer())),
        "here": at.place(STPathLayer()),
    }
    for layer in layers.values():
        layer.load_state_dict(layers["here"].state_dict())
    h = at.tensor(at.patches, layers["here"].attn.W_output[0].in_features)
    coords = rescale_coords(torch.rand(at.patches, 2, device=at.device)).to(at.dtype)

    def call(form: Form) -> torch.Tensor:
        with ops.use("auto" if form == "here" else "reference"):
            return layers[form](h, coords)

    other = "published" if form == "here" else form
    return Case(
        lambda: call(form),
        lambda: (call("here"), call(other)),
        size_of(layers["here"], h, h),
    )


def attention_rate(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of the attention that HistoPrism uses on this device."""
    q, k, v = torch.randn(3, 8, 4096, WIDTH // 8, device=device).to(dtype)
    call = lambda: HistoPrism._attend(q, k, v, 0.0)  # noqa: E731
    call()
    return 4 * 4096**2 * WIDTH / statistics.median(seconds_of(call, 5, device)) / 1e9


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table by its name.

    ``against`` and ``careful`` name the rows that its ratios refer to: as published, and as a
    careful engineer writes it. ``curve`` is False where the figure leaves it out, for it shows
    forward passes.
    """

    group: str
    build: Callable[[Setting], Case]
    against: str | None = None
    careful: str | None = None
    curve: bool = True


def _forms(group: str, build: Callable[[Setting, Form], Case], *names: str, curve=True) -> dict:
    """The rows of one call: as published, careful and here."""
    published, careful, here = names
    return {
        published: Row(group, lambda at: build(at, "published"), curve=curve),
        careful: Row(group, lambda at: build(at, "careful"), published, curve=False),
        here: Row(group, lambda at: build(at, "here"), published, careful, curve),
    }


ROWS = {
    **_forms(
        "histoprism",
        histoprism,
        "HistoPrism, authors' form",
        "HistoPrism, careful",
        "HistoPrism here",
    ),
    **_forms("stpath", stpath, "STPath as published", "STPath, careful", "STPath fused"),
    **_forms(
        "stpath-layer",
        stpath_layer,
        "STPath layer as published",
        "STPath layer, careful",
        "STPath layer fused",
    ),
    **_forms("bpbooster", booster, "BP-Booster plain", "BP-Booster, careful", "BP-Booster fused"),
    **_forms(
        "bpbooster",
        booster_training,
        "BP-Booster step plain",
        "BP-Booster step, careful",
        "BP-Booster step fused",
        curve=False,
    ),
    **_forms("gpc", coherence, "GPC, scipy by gene", "GPC, careful", "GPC, closed form"),
    **_forms(
        "train",
        training,
        "training step, authors' form",
        "training step, careful",
        "training step here",
        curve=False,
    ),
}
