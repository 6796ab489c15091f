import math

import pytest
import torch
from stflow_samples import SMALL, model, network, one, places, predicted, slide

from histokit import models
from histokit.core.errors import InputError
from histokit.models import STFlow, STFlowModel
from histokit.models.neighborhoods import Neighborhoods
from histokit.models.stflow_model import draw_prior


@pytest.mark.parametrize(("dim", "count"), [(1024, 1_147_724), (1536, 1_213_260)])
def test_parameters_are_those_of_the_published_model(dim, count):
    with torch.device("meta"):
        published = STFlow(dim, 50)
    state = published.state_dict()
    assert (len(state), sum(t.numel() for t in state.values())) == (142, count)
    block = published.backbone.blks[0]
    assert sum(t.numel() for t in block.parameters()) == 241_779
    shapes = {
        "image_transform.weight": (128, dim),
        "fourier_proj.mlp.0.weight": (128, 256),
        "fourier_proj.mlp.2.weight": (128, 128),
    }
    inside = {
        "attn.layernorm_qkv.0.weight": (128,),
        "attn.layernorm_qkv.1.weight": (384, 128),
        "attn.mlp_attn.fc1.weight": (128, 146),
        "attn.mlp_attn.norm.weight": (64,),
        "attn.mlp_attn.fc2.weight": (1, 64),
        "attn.edge_trans.fc1.weight": (128, 3),
        "attn.edge_trans.norm.weight": (64,),
        "attn.edge_trans.fc2.weight": (128, 64),
        "attn.W_output.fc1.weight": (128, 256),
        "attn.W_output.norm.weight": (64,),
        "attn.W_output.fc2.weight": (128, 64),
        "mlp.fc1.weight": (512, 128),
        "mlp.norm.weight": (256,),
        "mlp.fc2.weight": (128, 256),
        "gene_updater.output.0.weight": (128, 128),
        "gene_updater.output.2.weight": (128,),
        "gene_updater.output.4.weight": (50, 128),
    }
    shapes |= {f"backbone.blks.{i}.{k}": shape for i in range(4) for k, shape in inside.items()}
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert {*state} == {*shapes, *(name.replace("weight", "bias") for name in shapes)}


def test_official_names_load_strictly(tmp_path):
    theirs = STFlow(12, 7, 16, 3)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    loaded = STFlowModel.from_official(tmp_path / "model.pt")
    assert loaded.samples == 1
    for name, value in theirs.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    assert loaded.predict(torch.randn(9, 12), "", torch.rand(9, 2)).shape == (9, 7)
    state = theirs.state_dict() | {"image_transform.scale": torch.ones(1)}
    torch.save(state, tmp_path / "more.pt")
    with pytest.raises(InputError, match=r"unexpected image_transform\.scale"):
        STFlowModel.from_official(tmp_path / "more.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a checkpoint of STFlow"):
        STFlowModel.from_official(tmp_path / "other.pt")


def test_attention_is_the_published_one_on_concatenated_columns():
    attn = network().backbone.blks[0].attn
    (h, coords), y = slide(20), torch.randn(20, 7, dtype=torch.float64)
    h = torch.cat([h, h[:, :4]], 1)
    near = Neighborhoods.of(coords, 8)
    edges = attn.edge_trans(near.frames).mean(1)
    q, k, v = attn.layernorm_qkv(h).split(16, dim=1)
    context, of_edges = torch.zeros(20, 16).double(), torch.zeros(20, 16).double()
    assert not near.there.all()
    for i in range(20):
        index = near.index[i][near.there[i]]
        for head in (slice(4 * n, 4 * n + 4) for n in range(4)):
            logits = torch.cat(
                [
                    attn.mlp_attn(
                        torch.cat([q[i, head], k[j, head], edges[i, n, head], y[j] - y[i]])
                    )
                    for n, j in enumerate(index)
                ]
            )
            share = logits.softmax(0)
            context[i, head] = share @ v[index, head]
            of_edges[i, head] = share @ edges[i, : len(index), head]
    expected = attn.W_output(torch.cat([context, of_edges], 1))
    torch.testing.assert_close(attn(h, y, near, edges), expected)


def test_frames_of_a_hand_worked_neighborhood():
    coords = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    frames = Neighborhoods.of(coords, 3).frames[0]  # neighbors 2, 1, 3; middle (0, 1/3)
    # axes by growing spread: y (2/3) and x (18)
    expected = torch.tensor([[2 / 3, 0.0], [-1 / 3, 3.0], [-1 / 3, -3.0]], dtype=torch.float64)
    torch.testing.assert_close(frames[0, :, :2].abs(), expected.abs())
    torch.testing.assert_close(frames[:, :, 2], torch.tensor([[1.0, 3.0, 3.0]] * 4).double())
    signs = {tuple((frame[:, :2] / frames[0, :, :2]).nan_to_num(1)[1].tolist()) for frame in frames}
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


@pytest.mark.parametrize("unit", ["pixels", "pitch"])
def test_square_grids_have_no_axes_that_rounding_could_choose(unit):
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).double() * 100
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    near = Neighborhoods.of(grid, 8, unit)
    middle = near.frames[12][:, near.there[12]]
    turned = Neighborhoods.of(grid @ turn + 123.4, 8, unit).frames[12][:, near.there[12]]
    unit_length = 100 if unit == "pixels" else 1
    assert (middle[:, :, 1] == 0).all()
    assert sorted(middle[0, :, 0].div(unit_length).round(decimals=6).tolist()) == pytest.approx(
        [1.0] * 4 + [math.sqrt(2)] * 4
    )
    torch.testing.assert_close(turned.sum((0, 1)), middle.sum((0, 1)))


def test_rotation_reflection_and_translation_change_nothing():
    net, (x, coords) = network(), slide(60)
    y = torch.rand(60, 7, dtype=torch.float64)
    expected = predicted(net, x, coords, y)
    angle = torch.tensor(1.1, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    flip = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    for moved in (coords + 7e4, coords @ turn, coords @ flip, coords @ turn @ flip - 12):
        torch.testing.assert_close(predicted(net, x, moved, y), expected)
    assert not torch.allclose(predicted(net, x, coords * 2, y), expected)


def test_other_orders_of_spots_give_the_same_in_that_order():
    net, (x, coords) = network(), slide(60)
    y, order = torch.rand(60, 7, dtype=torch.float64), torch.randperm(60)
    torch.testing.assert_close(
        predicted(net, x[order], coords[order], y[order]), predicted(net, x, coords, y)[order]
    )
    zero = model(stflow_prior="zero")
    torch.testing.assert_close(
        zero.hidden(one(x[order], coords[order])), zero.hidden(one(x, coords))[order]
    )


def test_neighbors_and_their_expression_matter():
    net, (x, coords) = network(), slide(60)
    y = torch.rand(60, 7, dtype=torch.float64)
    expected = predicted(net, x, coords, y)
    assert not torch.allclose(predicted(net, x, coords.flip(0), y), expected)
    assert not torch.allclose(predicted(net, x, coords, y * 2), expected)
    torch.testing.assert_close(predicted(net, x, coords, y + 3), expected)  # differences alone
    assert not torch.allclose(predicted(net, x, coords, y, 0.9), expected)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_slides_of_few_spots(n):
    x, coords = slide(n)
    found = model().hidden(one(x, coords))
    assert found.shape == (n, 7)
    assert found.isfinite().all()


@pytest.mark.parametrize("unit", ["pixels", "pitch"])
def test_spots_at_one_place(unit):
    x, coords = slide(12)
    for doubled in (coords[:1].expand(12, 2), torch.cat([coords[:6]] * 2)):
        assert model(stflow_unit=unit).hidden(one(x, doubled)).isfinite().all()


def test_pitch_does_not_depend_on_the_pixels():
    x, coords = slide(30)
    by_pitch = model(stflow_unit="pitch")
    expected = by_pitch.hidden(one(x, coords))
    torch.testing.assert_close(by_pitch.hidden(one(x, coords * 4)), expected)
    assert not torch.allclose(model().hidden(one(x, coords * 4)), model().hidden(one(x, coords)))


def test_large_panels_are_projected_and_say_so(tmp_path):
    whole, narrow = (STFlow(12, 60, 16, 2, project_over=over) for over in (60, 59))
    assert whole.backbone.blks[0].attn.mlp_attn.fc1.weight.shape == (16, 12 + 60)
    assert narrow.backbone.blks[0].attn.mlp_attn.fc1.weight.shape == (16, 12 + 50)
    assert narrow.projection.weight.shape == (50, 60)
    arguments = SMALL | {"num_genes": 60, "stflow_project_over": 59}
    models.save(STFlowModel(**arguments), "stflow", arguments, tmp_path)
    assert "projection.weight" in models.load(tmp_path).network.state_dict()


def test_what_is_refused():
    with pytest.raises(InputError, match="--hidden-dim 18: the 4 heads"):
        STFlowModel(**SMALL | {"hidden_dim": 18})
    with pytest.raises(InputError, match="--stflow-prior poisson: stflow has zinb"):
        draw_prior("poisson", (2, 3), None)
    with pytest.raises(InputError, match="--stflow-unit um: distances are in pixels or pitch"):
        Neighborhoods.of(places(9), 8, "um")


def test_prior_has_its_mean_and_zeros():
    random = torch.Generator().manual_seed(0)
    counts = draw_prior("zinb", (400, 500), random).double().expm1()
    assert float((counts == 0).double().mean()) == pytest.approx(0.7375, abs=0.005)
    assert float(counts.mean()) == pytest.approx(0.5 * math.exp(0.1), abs=0.01)
    mean = math.exp(0.1)  # of a geometric distribution, whose variance is mean + mean squared
    second = 0.5 * (mean + 2 * mean**2)
    assert float(counts.square().mean()) == pytest.approx(second, rel=0.03)
    assert float(draw_prior("gaussian", (400, 500), random).std()) == pytest.approx(1, abs=0.01)
    assert not draw_prior("zero", (4, 5), random).any()
