import pytest
import torch
import torch.nn.functional as F

from histokit import models
from histokit.core.errors import InputError
from histokit.models.base import Batch, Target
from histokit.models.histogene import HisToGene

SMALL = {"input_dim": 12, "num_genes": 7, "hidden_dim": 16, "num_layers": 2}
SMALL |= {"feedforward_dim": 24, "histogene_heads": 4, "histogene_tables": 20}


def slide(count, columns=6, dim=12):
    at = torch.arange(count)
    coords = torch.stack([at % columns, at // columns], 1) * 100.0 + 40
    return torch.randn(count, dim), coords


def number(**arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in HisToGene(**arguments).parameters())


def test_parameters_are_those_of_the_published_networks():
    pixels = {"input_dim": 112 * 112 * 3, "histogene_tables": 64}
    assert number(**pixels, num_genes=785, num_layers=8) == 106_648_337
    assert number(**pixels, num_genes=1000, num_layers=4) == 73_281_512
    assert number(input_dim=1024, num_genes=50) == 35_304_498
    small = {"hidden_dim": 256, "feedforward_dim": 512, "histogene_heads": 8}
    assert number(input_dim=1024, num_genes=50, histogene_tables=128, **small) == 2_446_642


def published_tensors(layers, genes):
    block = {
        "0.norm.weight": (1024,),
        "0.norm.bias": (1024,),
        "0.fn.to_qkv.weight": (3072, 1024),
        "0.fn.to_out.0.weight": (1024, 1024),
        "0.fn.to_out.0.bias": (1024,),
        "1.norm.weight": (1024,),
        "1.norm.bias": (1024,),
        "1.fn.net.0.weight": (2048, 1024),
        "1.fn.net.0.bias": (2048,),
        "1.fn.net.3.weight": (1024, 2048),
        "1.fn.net.3.bias": (1024,),
    }
    found = {
        "patch_embedding.weight": (1024, 37_632),
        "patch_embedding.bias": (1024,),
        "x_embed.weight": (64, 1024),
        "y_embed.weight": (64, 1024),
        "gene_head.0.weight": (1024,),
        "gene_head.0.bias": (1024,),
        "gene_head.1.weight": (genes, 1024),
        "gene_head.1.bias": (genes,),
    }
    for i in range(layers):
        found |= {f"vit.transformer.layers.{i}.{key}": shape for key, shape in block.items()}
    return found


def test_tensors_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        model = HisToGene(37_632, 785, num_layers=8, histogene_tables=64)
    state = model.state_dict()
    assert len(state) == 96
    assert {k: tuple(v.shape) for k, v in state.items()} == published_tensors(8, 785)


def from_stock_functions(model, x, positions):
    """The published forward pass, of state under published names."""
    s = model.state_dict()

    def norm(h, name):
        return F.layer_norm(h, h.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"])

    def line(h, name):
        return F.linear(h, s[f"{name}.weight"], s.get(f"{name}.bias"))

    h = line(x, "patch_embedding")
    h = h + s["x_embed.weight"][positions[:, 0]] + s["y_embed.weight"][positions[:, 1]]
    for i in range(2):
        at = f"vit.transformer.layers.{i}."
        q, k, v = line(norm(h, at + "0.norm"), at + "0.fn.to_qkv").chunk(3, dim=1)
        heads = []
        for a, b, c in zip(*(t.split(4, dim=1) for t in (q, k, v)), strict=True):
            heads.append(torch.softmax(a @ b.T / 2, dim=1) @ c)
        h = h + line(torch.cat(heads, 1), at + "0.fn.to_out.0")
        h = h + line(F.gelu(line(norm(h, at + "1.norm"), at + "1.fn.net.0")), at + "1.fn.net.3")
    return line(norm(h, "gene_head.0"), "gene_head.1")


def test_prediction_is_the_published_forward_pass():
    model = HisToGene(**SMALL).double().eval()
    x, coords = slide(20)
    at = torch.arange(20)
    expected = from_stock_functions(model, x.double(), torch.stack([at % 6, at // 6], 1))
    torch.testing.assert_close(model(x.double(), -1, None, coords), expected)


def test_loss_is_the_mse_of_measured_genes():
    model = HisToGene(**SMALL).eval()
    x, coords = slide(9)
    y, measured = torch.rand(9, 7), torch.arange(7) < 4
    target = Target(y.to_sparse_csr(), measured)
    loss = model.loss(Batch(x, torch.tensor([-1]), None, coords), [target])
    expected = (model(x, -1, None, coords) - y)[:, :4].square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.gene_head[1].bias.grad[4:].abs().sum() == 0


def test_packed_slides_are_predicted_as_each_alone():
    model = HisToGene(**SMALL).eval()
    (x, a), (y, b) = slide(8), slide(5, columns=2)
    index = torch.repeat_interleave(torch.arange(2), torch.tensor([8, 5]))
    packed = model(torch.cat([x, y]), torch.tensor([-1, -1]), index, torch.cat([a, b]))
    alone = torch.cat([model(x, -1, None, a), model(y, -1, None, b)])
    torch.testing.assert_close(packed, alone)


def test_evaluation_draws_nothing_and_training_does():
    model = HisToGene(**SMALL)
    x, coords = slide(8)
    first = model.predict(x, "", coords)
    assert torch.equal(first, model.predict(x, "", coords))
    model.train()
    assert not torch.equal(model(x, -1, None, coords), model(x, -1, None, coords))


def test_order_of_spots_and_place_of_the_slide_do_not_matter_but_places_in_it_do():
    model = HisToGene(**SMALL).eval()
    x, coords = slide(20)
    whole, order = model.predict(x, "", coords), torch.randperm(20)
    torch.testing.assert_close(model.predict(x[order], "", coords[order]), whole[order])
    moved = model.predict(x, "", coords + torch.tensor([12_300.0, 7]))
    torch.testing.assert_close(moved, whole)
    assert not torch.allclose(model.predict(x, "", coords.flip(1)), whole, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_slides_and_spots_at_one_place(count):
    model = HisToGene(**SMALL)
    prediction = model.predict(torch.randn(count, 12), "", torch.full((count, 2), 70.0))
    assert prediction.shape == (count, 7)
    assert prediction.isfinite().all()


def test_spots_beyond_the_tables_share_the_last_vector_and_are_counted():
    model = HisToGene(**SMALL | {"histogene_tables": 4})
    x, coords = slide(18)
    with pytest.warns(UserWarning, match="6 of 18 spots .* beyond column or row 3 of"):
        found = model.predict(x, "", coords)
    whole = HisToGene(**SMALL | {"histogene_tables": 6})
    state = model.state_dict()
    for name in ("x_embed.weight", "y_embed.weight"):
        state[name] = state[name][[0, 1, 2, 3, 3, 3]]
    whole.load_state_dict(state)
    torch.testing.assert_close(whole.predict(x, "", coords), found)


def test_vectors_that_start_at_zero_add_nothing():
    model = HisToGene(**SMALL, histogene_start="zero")
    x, coords = slide(9)
    torch.testing.assert_close(model.predict(x, "", coords), model.predict(x, "", coords.flip(1)))


def test_start_at_the_mean_to_the_bit():
    model, mean = HisToGene(**SMALL), torch.rand(7)
    model.start_at(mean)
    assert torch.equal(model.predict(*slide(4)[:1], "", slide(4)[1]), mean.expand(4, -1))


def test_saves_and_loads(tmp_path):
    model = HisToGene(**SMALL)
    models.save(model, "histogene", SMALL, tmp_path)
    x, coords = slide(7)
    assert torch.equal(models.load(tmp_path).predict(x, "", coords), model.predict(x, "", coords))


def test_bad_input():
    with pytest.raises(InputError, match="3 heads of histogene do not divide --hidden-dim 16"):
        HisToGene(**SMALL | {"histogene_heads": 3})
    with pytest.raises(InputError, match="--histogene-start must be one of random, zero"):
        HisToGene(**SMALL, histogene_start="one")
    with pytest.raises(InputError, match="give its coordinates"):
        HisToGene(**SMALL).predict(torch.randn(4, 12), "")
