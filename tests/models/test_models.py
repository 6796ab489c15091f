import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from histokit import models
from histokit.core.errors import InputError
from histokit.models import HistoPrism
from histokit.models.base import Batch, Standardizer, Target
from histokit.models.histoprism import OFFICIAL_CANCERS
from histokit.models.registry import MODELS

SIZES = {"input_dim": 32, "num_genes": 11, "cancers": ["IDC", "PRAD", "SKCM"]}
SMALL = SIZES | {"hidden_dim": 16, "feedforward_dim": 24}


class AsPublished(nn.Module):
    """The paper's architecture from stock modules, in the dtype and mode of its parts."""

    def __init__(self, model: HistoPrism):
        super().__init__()
        self.model = copy.deepcopy(model)
        attention = self.model.conditioner.attention
        attention.batch_first, attention.dropout = True, 0.0

    def forward(self, x, code):
        m = self.model
        onehot = torch.zeros(len(m.cancers), dtype=x.dtype)
        if code >= 0:
            onehot[code] = 1
        context = m.onco_embedder(onehot).view(1, 1, -1)
        attended, _ = m.conditioner.attention(x[None], context, context)
        h = m.input_proj(m.conditioner.norm(x[None] + attended))
        return m.gene_regression_head(m.transformer(h))[0]


@pytest.mark.parametrize("code", [0, 2, -1])
def test_histoprism_is_the_paper_from_stock_modules(code):
    model = HistoPrism(**SMALL).double().eval()
    x = torch.randn(19, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x, code), AsPublished(model).eval()(x, code))


def test_gradients_are_those_of_stock_modules():
    model = HistoPrism(**SMALL, dropout=0.0).double().train()
    published = AsPublished(model).train()
    x = torch.randn(19, 32, dtype=torch.float64)
    (model(x, 1) ** 2).sum().backward()
    (published(x, 1) ** 2).sum().backward()
    theirs = dict(published.model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


def test_packed_slides_never_see_each_other():
    model = HistoPrism(**SMALL).double().eval()
    slides = [(torch.randn(n, 32, dtype=torch.float64), c) for n, c in ((5, 1), (9, 0), (1, 2))]
    packed = model(
        torch.cat([x for x, _ in slides]),
        torch.tensor([c for _, c in slides]),
        torch.repeat_interleave(torch.arange(3), torch.tensor([5, 9, 1])),
    )
    alone = torch.cat([model(x, c) for x, c in slides])
    torch.testing.assert_close(packed, alone)


def test_cancer_type_matters_and_neighbors_matter():
    model = HistoPrism(**SMALL).eval()
    x = torch.randn(6, 32)
    assert not torch.allclose(model(x, 0), model(x, 1))
    assert not torch.allclose(model(x, 0)[:3], model(x[:3], 0))


@pytest.mark.parametrize("sizes", [[11], [4, 9, 1]])
def test_large_slides_are_taken_apart_into_groups_spread_over_them(sizes):
    model, whole = (HistoPrism(**SMALL, max_patches=m).eval() for m in (4, None))
    whole.load_state_dict(model.state_dict())
    x, index = torch.randn(sum(sizes), 32), torch.repeat_interleave(torch.tensor(sizes))
    y = model(x, torch.zeros(len(sizes), dtype=torch.long), index)
    for rows in (torch.where(index == s)[0] for s in range(len(sizes))):
        step = -(-len(rows) // 4)
        for group in (rows[first::step] for first in range(step)):
            torch.testing.assert_close(y[group], whole(x[group], 0))
    with pytest.raises(InputError, match="--max-patches must be at least 1"):
        HistoPrism(**SMALL, max_patches=0)


def test_slides_within_the_bound_stay_whole():
    model, whole = (HistoPrism(**SMALL, max_patches=m).eval() for m in (6, None))
    whole.load_state_dict(model.state_dict())
    x = torch.randn(6, 32)
    assert torch.equal(model(x, 0), whole(x, 0))


def test_dropout_is_the_seeds():
    model = HistoPrism(**SMALL).train()
    x = torch.randn(6, 32)
    torch.manual_seed(3)
    first = model(x, 0)
    assert not torch.equal(first, model(x, 0))
    torch.manual_seed(3)
    assert torch.equal(first, model(x, 0))


def test_full_size_has_the_checkpoints_parameters():
    with torch.device("meta"):
        model = HistoPrism(1024, 38_982, OFFICIAL_CANCERS)
    unused = 1024 * 1024 + 3 * 1024 + 2 * 1024  # graph convolution and its norm, never used
    assert sum(p.numel() for p in model.parameters()) == 18_262_086 - unused
    assert len(model.state_dict()) == 46 - 6


def official_state(model):
    state = {f"module.{k}": v.clone() for k, v in model.state_dict().items()}
    for name in ("gconv.att_src", "gconv.att_dst", "gconv.bias", "gconv.lin.weight"):
        state[f"module.img_conv.{name}"] = torch.randn(3)
    return state | {"module.img_norm.weight": torch.ones(3), "module.img_norm.bias": torch.ones(3)}


@pytest.mark.parametrize("form", ["training checkpoint", "bare", "safetensors"])
def test_official_checkpoints_load(tmp_path, form):
    model = HistoPrism(**SMALL | {"cancers": OFFICIAL_CANCERS}).eval()
    state, path = official_state(model), tmp_path / "best_model.pt"
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif form == "bare":
        torch.save(state, path)
    else:
        torch.save({"epoch": 7, "model_state": state, "best_val_loss": 0.1}, path)
    loaded = HistoPrism.from_official(path)
    x = torch.randn(4, 32)
    torch.testing.assert_close(loaded.predict(x, "IDC"), model(x, OFFICIAL_CANCERS.index("IDC")))


class Payload:
    def __reduce__(self):
        return print, ("a pickle ran code",)


def test_bad_checkpoints(tmp_path, capsys):
    path = tmp_path / "model.pt"
    with pytest.raises(InputError, match="does not exist"):
        HistoPrism.from_official(path)
    torch.save({"model_state": {"x": Payload()}}, path)
    with pytest.raises(InputError, match="an object that is never unpickled"):
        HistoPrism.from_official(path)
    assert "ran code" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="damaged"):
        HistoPrism.from_official(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"lacks input_proj\.weight"):
        HistoPrism.from_official(path)
    torch.save(HistoPrism(**SMALL).state_dict(), path)
    with pytest.raises(InputError, match="3 cancer codes and 29 were given"):
        HistoPrism.from_official(path)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("histoprism", SMALL),
        ("mlp", {"input_dim": 32, "num_genes": 11}),
        ("ridge", {"input_dim": 32, "num_genes": 11, "num_components": 5}),
        ("mean", {"input_dim": 32, "num_genes": 11}),
        ("bpbooster", {"input_dim": 32, "num_genes": 11}),
    ],
)
def test_every_model_saves_and_predicts(tmp_path, name, arguments):
    model = MODELS[name].load_class()(**arguments)
    model.standardizer = Standardizer.fit("train", torch.randn(9, 32))
    for buffer in model.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    models.save(model, name, arguments, tmp_path)
    x = torch.randn(7, 32)
    loaded = models.load(tmp_path)
    torch.testing.assert_close(loaded.predict(x, "PRAD"), model.predict(x, "PRAD"))
    hidden = loaded.hidden(Batch(loaded.standardizer(x), torch.tensor([1])))
    torch.testing.assert_close(loaded.head(hidden), loaded.predict(x, "PRAD"))
    with pytest.raises(InputError, match="features of 32 dimensions"):
        loaded.predict(torch.randn(7, 31), "PRAD")


def test_unknown_cancer_is_named():
    with pytest.raises(InputError, match=r"does not know the cancer code 'COAD'.*IDC, PRAD, SKCM"):
        HistoPrism(**SMALL).predict(torch.randn(3, 32), "COAD")


def test_weights_of_another_panel_are_refused(tmp_path):
    models.save(HistoPrism(**SMALL), "histoprism", SMALL | {"num_genes": 12}, tmp_path)
    with pytest.raises(InputError, match=r"gene_regression_head\.4.*another panel"):
        models.load(tmp_path)


def test_heads_that_do_not_divide():
    with pytest.raises(InputError, match="4 cross-attention heads do not divide 30 features"):
        HistoPrism(**SMALL | {"input_dim": 30})


def test_standardization_by_training_and_by_slide():
    x = torch.randn(50, 8) * torch.tensor([5.0, 2.0] * 4) + 7
    x[:, 3] = 2.0
    y = torch.randn(20, 8) * 3
    train = Standardizer.fit("train", x)
    torch.testing.assert_close(train(x)[:, 0].std(correction=0), torch.tensor(1.0))
    assert train(y)[:, 3].abs().max() < 50  # constant in training, alive elsewhere
    slide = Standardizer.fit("slide", x)
    torch.testing.assert_close(slide(y), (y - y.mean(0)) / y.std(0, correction=0))
    assert torch.equal(Standardizer.fit("none", x)(y), y)
    constant = torch.ones(4, 8)
    assert torch.equal(Standardizer.fit("train", constant)(constant), torch.zeros(4, 8))


def test_rows_of_a_target_are_those_of_the_dense_one():
    dense = torch.rand(7, 5) * (torch.rand(7, 5) < 0.5)
    dense[3] = 0
    rows = torch.tensor([6, 3, 0, 0])
    for values in (dense, dense.to_sparse_csr()):
        found = Target(values, torch.ones(5, dtype=torch.bool)).rows(rows)
        assert found.layout == values.layout
        assert torch.equal(found.to_dense(), dense[rows])
    none = Target(dense.to_sparse_csr(), None).rows(rows[:0])
    assert none.shape == (0, 5)
