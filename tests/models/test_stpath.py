import pytest
import torch

from histokit.core.errors import InputError
from histokit.models.base import Batch, Target
from histokit.models.stpath import (
    MASK_TOKEN,
    STPath,
    STPathLayer,
    frame_bias,
    rescale_coords,
)
from histokit.models.stpath_model import STPathModel

SMALL = {"input_dim": 12, "num_genes": 30, "width": 32, "num_layers": 2, "mlp_dim": 48}


def pair(**sizes):
    """The same weights under both attentions, in evaluation mode."""
    torch.manual_seed(0)
    fused = STPath(attention="fused", **sizes).eval()
    published = STPath(attention="as_published", **sizes).eval()
    published.load_state_dict(fused.state_dict())
    return fused, published


def slide(n, dim=12):
    torch.manual_seed(1)
    return torch.randn(n, dim), rescale_coords(torch.rand(n, 2) * torch.tensor([9000, 4000]))


def test_parameters_are_those_of_the_published_model():
    with torch.device("meta"):
        state = STPath().state_dict()
    assert len(state) == 61
    assert sum(t.numel() for t in state.values()) == 49_177_208
    block = {
        "attn.layernorm_qkv.0.weight": (512,),
        "attn.layernorm_qkv.0.bias": (512,),
        "attn.layernorm_qkv.1.weight": (1536, 512),
        "attn.layernorm_qkv.1.bias": (1536,),
        "attn.W_output.0.weight": (512, 512),
        "attn.W_output.0.bias": (512,),
        "attn.edge_bias.0.weight": (4, 3),
        "mlp.fc1.weight": (1024, 512),
        "mlp.fc1.bias": (1024,),
        "mlp.norm.weight": (1024,),
        "mlp.norm.bias": (1024,),
        "mlp.fc2.weight": (512, 1024),
        "mlp.fc2.bias": (512,),
    }
    expected = {f"model.blks.{i}.{key}": shape for i in range(4) for key, shape in block.items()}
    expected |= {
        "input_encoder.image_embed.weight": (512, 1536),
        "input_encoder.image_embed.bias": (512,),
        "input_encoder.gene_embed.weight": (512, 38_984),
        "input_encoder.tech_embed.weight": (5, 512),
        "input_encoder.organ_embed.weight": (25, 512),
        "gene_exp_head.0.weight": (512,),
        "gene_exp_head.0.bias": (512,),
        "gene_exp_head.1.weight": (38_984, 512),
        "gene_exp_head.1.bias": (38_984,),
    }
    assert {key: tuple(t.shape) for key, t in state.items()} == expected


def test_layers_of_published_size_agree_to_1e_5():
    torch.manual_seed(0)
    fused, published = (STPathLayer(attention=a).eval() for a in ("fused", "as_published"))
    published.load_state_dict(fused.state_dict())
    h, coords = torch.randn(150, 512), slide(150)[1]
    with torch.no_grad():
        torch.testing.assert_close(fused(h, coords), published(h, coords), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 90])
def test_models_agree_to_1e_5(n):
    fused, published = pair(**SMALL)
    features, coords = slide(n)
    with torch.no_grad():
        ours = fused(features, coords, 2, 3)
        theirs = published(features, coords, 2, 3, published.masked_expression(n))
    assert ours.shape == (n, 30)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_agree():
    fused, published = (model.double() for model in pair(**SMALL))
    features, coords = (t.double() for t in slide(40))
    for model in (fused, published):
        model(features, coords, 1, 0).square().sum().backward()
    theirs = dict(published.named_parameters())
    for name, ours in fused.named_parameters():
        grad = torch.zeros_like(ours) if theirs[name].grad is None else theirs[name].grad
        torch.testing.assert_close(ours.grad, grad, rtol=1e-7, atol=1e-9, msg=name)


def test_the_frames_cancel_but_for_the_distance():
    layer = STPathLayer(32, 4, 48, attention="as_published")
    coords = slide(60)[1]
    bias = frame_bias(coords, layer.attn.edge_bias)
    distance = torch.linalg.vector_norm(coords[:, None] - coords, dim=2)
    expected = layer.attn.edge_bias[0].weight[:, 2, None, None] * distance
    torch.testing.assert_close(bias, expected, rtol=1e-5, atol=1e-5)


def test_known_expression_changes_the_prediction():
    model = pair(**SMALL)[0]
    features, coords = slide(8)
    known = model.masked_expression(8)
    assert torch.equal(known.nonzero(), torch.tensor([[n, MASK_TOKEN] for n in range(8)]))
    known[3] = 0
    known[3, 5:] = 1.5
    with torch.no_grad():
        assert not torch.allclose(
            model(features, coords, 0, 0, known), model(features, coords, 0, 0)
        )


def test_coordinates_are_rescaled_by_axis():
    coords = torch.tensor([[10.0, 7.0], [30.0, 7.0], [15.0, 7.0]])
    before = coords.clone()
    expected = torch.tensor([[0.0, 0.0], [100.0, 0.0], [25.0, 0.0]])
    torch.testing.assert_close(rescale_coords(coords), expected)
    assert torch.equal(coords, before)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attention": "flash"}, "attention must be one of"),
        ({"num_heads": 5}, "5 heads do not divide the width 32"),
        ({"attention_dropout": 0.1}, "fused attention has no dropout"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(InputError, match=text):
        STPath(**(SMALL | options))


def test_official_file(tmp_path):
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(InputError):
        STPath.from_official(tmp_path / "model.pt")


# ---- on a panel of its own ---------------------------------------------------------------------

OWN = {"input_dim": 12, "num_genes": 9, "cancers": ["IDC", "PRAD"], "hidden_dim": 32}
OWN |= {"num_layers": 2, "feedforward_dim": 48}


def packed(*sizes):
    torch.manual_seed(2)
    count = sum(sizes)
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    codes = torch.arange(len(sizes)) % 2
    batch = Batch(torch.randn(count, 12), codes, index, torch.rand(count, 2) * 900)
    values = torch.rand(count, 9) * (torch.rand(count, 9) < 0.6)
    targets = [Target(v.to_sparse_csr(), torch.ones(9, dtype=torch.bool))
               for v in values.split(sizes)]  # fmt: skip
    return batch, values, targets


def test_packed_slides_are_predicted_as_each_alone():
    model = STPathModel(**OWN).eval()
    batch, *_ = packed(20, 31)
    whole = model.hidden(batch)
    for rows, code in ((slice(0, 20), 0), (slice(20, 51), 1)):
        alone = Batch(batch.features[rows], torch.tensor([code]), None, batch.coords[rows])
        torch.testing.assert_close(whole[rows], model.hidden(alone))


def test_prediction_is_the_published_network_with_all_patches_masked():
    model = STPathModel(**OWN).eval()
    batch, *_ = packed(25)
    tokens = torch.zeros(25, 11)
    tokens[:, MASK_TOKEN] = 1
    coords = rescale_coords(batch.coords)
    expected = model.network(batch.features, coords, 0, 0, tokens)
    torch.testing.assert_close(model(batch.features, 0, None, batch.coords), expected)


def test_known_expression_is_scattered_behind_the_tokens_and_masks_hide_it():
    model = STPathModel(**OWN)
    _, values, (target,) = packed(200)
    masked = torch.arange(200) < 120
    genes = torch.ones(9, dtype=torch.bool).index_fill(0, torch.tensor([1, 4, 8]), False)
    known = model._known(target.values, masked, genes).to_dense()
    torch.testing.assert_close(known[120:, 2:], values[120:])
    assert (known[120:, :2] == 0).all()
    whole = known[:120, MASK_TOKEN] == 1
    assert (known[:120, 2:][whole] == 0).all()
    assert whole.sum() == 108  # nine of ten are hidden altogether
    partly, own = known[:120, 2:][~whole], values[:120][~whole]
    lost = ((partly == 0) & (own > 0)).any(dim=0)
    torch.testing.assert_close(partly, own * ~lost)  # the same genes on all of them
    assert lost.sum() == 3
    assert not (lost & ~genes).any()  # half of those of the step


def test_loss_counts_measured_genes_of_masked_patches_alone():
    model = STPathModel(**OWN, dropout=0.0, hvgs=[0, 3]).train()
    batch, values, (target,) = packed(30)
    drawn = {}
    model._crop = lambda coords: torch.arange(len(coords))
    mask = torch.zeros(30, dtype=torch.bool).index_fill(0, torch.tensor([2, 7, 9]), True)
    model._masked = lambda *_: mask
    known = model._known(target.values, mask, torch.ones(9, dtype=torch.bool))
    model._known = lambda *_: drawn.setdefault("known", known)
    measured = torch.ones(9, dtype=torch.bool).index_fill(0, torch.tensor([3]), False)
    model.restricted = 1.0
    loss = model.loss(batch, [Target(target.values, measured)])
    hidden = model._encode(batch.features, rescale_coords(batch.coords), 0, known.to_dense())
    expected = (model.head(hidden)[mask][:, 0] - values[mask][:, 0]).square().mean()
    torch.testing.assert_close(loss, expected)
    model.restricted = 0.0
    loss = model.loss(batch, [Target(target.values, measured)])
    expected = (model.head(hidden)[mask] - values[mask])[:, measured].square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    embedded = model.network.input_encoder.gene_embed.weight.grad
    assert embedded[:, 2:].abs().sum() > 0  # what is known teaches too


def test_crops_are_the_nearest_patches_in_order():
    model = STPathModel(**OWN, max_spots=70)
    coords = torch.rand(300, 2)
    sizes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        rows = model._crop(coords)
        sizes.add(len(rows))
        assert 64 <= len(rows) <= 70
        assert (rows.diff() > 0).all()
    assert len(sizes) > 1
    assert model._crop(coords[:9]).tolist() == list(range(9))


def test_place_is_needed():
    with pytest.raises(InputError, match="give its coordinates"):
        STPathModel(**OWN).predict(torch.randn(4, 12), "IDC")


@pytest.mark.parametrize("attention", ["fused", "as_published"])
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_known_expression_under_autocast(attention, lower):
    network = STPath(attention=attention, **SMALL).eval()
    features, coords = slide(20)
    known = network.masked_expression(20)
    known[::2] = torch.rand(10, 30)
    for given in (known, known.to_sparse_csr()):
        expected = network(features, coords, 1, 2, given)
        with torch.autocast("cpu", lower):
            found = network(features, coords, 1, 2, given)
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
