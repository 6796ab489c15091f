"""DeepSpot: its parameters, its bags, its loss, and what must not matter."""

import pytest
import torch
from torch import nn

from histokit import models
from histokit.core.errors import InputError
from histokit.models.base import Batch, Target
from histokit.models.deepspot import DeepSpot, MeanLinear

SMALL = {"input_dim": 12, "num_genes": 7, "hidden_dim": 10, "deepspot_members": 3}


def grid(columns: int, rows: int) -> torch.Tensor:
    """(N, 2) centers of a square array, pitch 100."""
    at = torch.arange(columns * rows)
    return torch.stack([at % columns, at // columns], 1) * 100.0 + 60


def slide(columns: int = 5, rows: int = 4, dim: int = 12):
    torch.manual_seed(1)
    return torch.randn(columns * rows, dim), grid(columns, rows)


def target(n: int, genes: int = 7, measured=None) -> Target:
    torch.manual_seed(2)
    values = (torch.rand(n, genes) * 3 * (torch.rand(n, genes) < 0.6)).to_sparse_csr()
    return Target(values, torch.ones(genes, dtype=torch.bool) if measured is None else measured)


@pytest.mark.parametrize(
    ("genes", "scales", "count"),
    [(50, 10, 6_016_500), (5000, 10, 82_098_000), (50, 1, 5_760_500)],
)
def test_parameters_are_those_of_the_published_model(genes, scales, count):
    with torch.device("meta"):
        state = DeepSpot(1024 * scales, genes, deepspot_scales=scales).state_dict()
    width = 1024 if scales == 1 else 1536
    expected = {}
    for i in range(10):
        expected[f"phi_spot.{i}.model.0.weight"] = (512, 1024)
        expected[f"phi_spot.{i}.model.0.bias"] = (512,)
        expected[f"rho.{i}.model.2.weight"] = (genes, width)
        expected[f"rho.{i}.model.2.bias"] = (genes,)
    assert {key: tuple(t.shape) for key, t in state.items()} == expected
    assert sum(t.numel() for t in state.values()) == count


def by_hand(model: DeepSpot, x: torch.Tensor, ring: list[list[int]], scales: int) -> torch.Tensor:
    """Spot by spot from its parameters; ring holds the neighbors of each."""

    def phi(row):
        copies = torch.stack([phi.model[0](row).relu() for phi in model.phi_spot])
        return copies.sort(0).values[(len(copies) - 1) // 2]

    parts = x.view(len(x), scales, -1)
    rows = []
    for spot, others in enumerate(ring):
        bags = [phi(parts[spot, 0])]
        if scales > 1:
            bags.append(torch.stack([phi(part) for part in parts[spot, 1:]]).sum(0))
        bags.append(torch.stack([phi(parts[i, 0]) for i in others]).amax(0))
        z = torch.cat(bags)
        rows.append(torch.stack([rho.model[2](z) for rho in model.rho]).mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("members", [2, 3])
def test_prediction_worked_by_hand(scales, members):
    options = {"deepspot_scales": scales, "deepspot_members": members}
    model = DeepSpot(**SMALL | options).eval()
    x, coords = slide(3, 3)
    ring = [[j for j in range(9) if j != i and (coords[i] - coords[j]).norm() < 150]
            for i in range(9)]  # fmt: skip
    assert [len(some) for some in ring] == [3, 5, 3, 5, 8, 5, 3, 5, 3]
    ours = model.predict(x, "IDC", coords)
    torch.testing.assert_close(ours, by_hand(model, x, ring, scales))


def test_hexagonal_spots_have_six_neighbors_and_absent_ones_are_nothing():
    model = DeepSpot(**SMALL).eval()
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    coords = torch.stack([columns + rows % 2 / 2, rows * 3**0.5 / 2], -1).view(-1, 2) * 100
    x = torch.randn(25, 12)
    before = model.predict(x, "", coords)
    x[12] += 3
    moved = (model.predict(x, "", coords) != before).any(1)
    assert {*moved.nonzero().flatten().tolist()} <= {6, 7, 11, 12, 13, 16, 17}
    nn.init.constant_(model.phi_spot[0].model[0].bias, 5.0)
    alone = model.embed(x[:1], "", coords=coords[:1])
    assert (alone[0, 10:] == 0).all()  # not phi(0), which is ReLU(bias)


@pytest.mark.parametrize("scales", [1, 2])
def test_order_origin_and_company_do_not_matter(scales):
    model = DeepSpot(**SMALL | {"deepspot_scales": scales}).eval()
    x, coords = slide()
    y = model.predict(x, "", coords)
    assert torch.equal(y, model.predict(x, "", coords))
    order = torch.randperm(len(x))
    torch.testing.assert_close(model.predict(x[order], "", coords[order]), y[order])
    torch.testing.assert_close(model.predict(x, "", coords + torch.tensor([512.0, -64.0])), y)
    other, place = torch.randn(6, 12), grid(3, 2)
    index = torch.tensor([0] * 20 + [1] * 6)
    both = model(torch.cat([x, other]), torch.zeros(2), index, torch.cat([coords, place]))
    torch.testing.assert_close(both[:20], y)
    torch.testing.assert_close(both[20:], model.predict(other, "", place))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_spots_and_spots_at_one_place(n):
    model = DeepSpot(**SMALL)
    x = torch.randn(n, 12)
    for coords in (torch.zeros(n, 2), torch.rand(n, 2)):
        batch = Batch(x, torch.tensor([0]), None, coords)
        loss = model.train().loss(batch, [target(n)])
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert model.predict(x, "", coords).shape == (n, 7)


def test_training_loss_worked_by_hand(monkeypatch):
    """Every rho on its own dropped inputs; outputs dropped on average."""
    model = DeepSpot(**SMALL, dropout=0.4, deepspot_output_dropout=0.25).train()
    x, coords = slide()
    measured = torch.tensor([True] * 5 + [False] * 2)
    taught, batch = target(20, measured=measured), Batch(x, torch.tensor([0]), None, coords)
    torch.manual_seed(5)
    loss = model.loss(batch, [taught])
    torch.manual_seed(5)
    hidden = model.hidden(batch)
    copies = torch.stack([rho.model(hidden) for rho in model.rho])[:, :, measured]
    truth = taught.values.to_dense()[:, measured]
    expected = (copies.mean(0) - truth).square().mean() + 1 / 3 / 9 * copies.square().sum(0).mean()
    torch.testing.assert_close(loss, expected)
    draws = torch.nn.functional.dropout(copies.expand(4000, *copies.shape), 0.25).mean(1)
    torch.testing.assert_close((draws - truth).square().mean(), loss, rtol=0.01, atol=0)


def test_evaluation_loss_is_the_mse_of_predictions():
    model = DeepSpot(**SMALL).eval()
    x, coords = slide()
    measured = torch.tensor([False] + [True] * 6)
    taught = target(20, measured=measured)
    loss = model.loss(Batch(x, torch.tensor([0]), None, coords), [taught])
    error = (model.predict(x, "", coords) - taught.values.to_dense())[:, measured]
    torch.testing.assert_close(loss, error.square().mean())


def test_values_of_unmeasured_genes_teach_nothing():
    model = DeepSpot(**SMALL).train()
    x, coords = slide()
    measured = torch.tensor([True] * 6 + [False])
    model.loss(
        Batch(x, torch.tensor([0]), None, coords), [target(20, measured=measured)]
    ).backward()
    for rho in model.rho:
        grad = rho.model[2].weight.grad
        assert (grad[6] == 0).all()
        assert (grad[:6] != 0).any(1).all()


def test_copies_learn_apart():
    model = DeepSpot(**SMALL).train()
    model.start_at(torch.rand(7))
    x, coords = slide()
    model.loss(Batch(x, torch.tensor([0]), None, coords), [target(20)]).backward()
    first, second, _ = (rho.model[2].weight.grad for rho in model.rho)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("members", [2, 10])
def test_start_is_the_mean_to_the_bit(members):
    model = DeepSpot(**SMALL | {"deepspot_members": members})
    mean = torch.rand(7) * 3
    model.start_at(mean)
    assert torch.equal(model.predict(*slide()[:1], "", slide()[1]), mean.expand(20, 7))


def test_mean_of_layers():
    layers = [nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    expected = torch.stack([layer(x) for layer in layers]).mean(0)
    torch.testing.assert_close(MeanLinear(layers)(x), expected)
    MeanLinear(layers)(x).sum().backward()
    assert all(layer.weight.grad is not None for layer in layers)


def test_lower_precision_is_close():
    model = DeepSpot(**SMALL).train()
    batch = Batch(*slide()[:1], torch.tensor([0]), None, slide()[1])
    losses = []
    for kind in (None, torch.bfloat16):
        torch.manual_seed(3)
        losses.append(model.loss(batch, [target(20)], kind))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("scales", [1, 2])
def test_files_and_official_names(tmp_path, scales):
    arguments = SMALL | {"deepspot_scales": scales}
    model = DeepSpot(**arguments).eval()
    models.save(model, "deepspot", arguments, tmp_path)
    x, coords = slide()
    expected = model.predict(x, "", coords)
    assert torch.equal(models.load(tmp_path).predict(x, "", coords), expected)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    official = DeepSpot.from_official(tmp_path / "last.ckpt", scales)
    assert torch.equal(official.predict(x, "", coords), expected)


def test_bad_files(tmp_path):
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="is not a checkpoint of DeepSpot: it lacks phi_spot"):
        DeepSpot.from_official(tmp_path / "a.pt")
    torch.save(DeepSpot(**SMALL | {"deepspot_scales": 2}).state_dict(), tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"rho\.0\.model\.2\.weight is \(7, 30\) there"):
        DeepSpot.from_official(tmp_path / "b.pt")


def test_bad_input():
    with pytest.raises(InputError, match="--deepspot-scales 5 does not divide the 12 dimensions"):
        DeepSpot(**SMALL | {"deepspot_scales": 5})
    with pytest.raises(InputError, match="give its coordinates"):
        DeepSpot(**SMALL).predict(torch.randn(4, 12), "")
