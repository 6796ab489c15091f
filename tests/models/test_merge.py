"""MERGE: its parameters, its graph, its attention, and what must not matter."""

import pytest
import torch
from arrays import array, turned

from histokit import models
from histokit.core.errors import InputError
from histokit.models import hubs
from histokit.models.base import Batch, Target
from histokit.models.hubs import Graph, cluster, hub_graph
from histokit.models.merge import GraphAttention, Merge, SlideNorm, _Gather

SMALL = {"input_dim": 12, "num_genes": 7, "merge_widths": "6,5", "merge_heads": 2}


def slide(n: int = 60, dim: int = 12):
    """Spots of a hexagonal array in whole pixels, ten in a row, one row after another."""
    torch.manual_seed(1)
    row = torch.arange(n) // 10
    coords = torch.stack([torch.arange(n) % 10 + row % 2 / 2, row * 3**0.5 / 2], 1) * 100 + 60
    return torch.randn(n, dim), coords.round()


def target(n: int, genes: int = 7, measured=None) -> Target:
    torch.manual_seed(2)
    values = (torch.rand(n, genes) * 3 * (torch.rand(n, genes) < 0.6)).to_sparse_csr()
    return Target(values, torch.ones(genes, dtype=torch.bool) if measured is None else measured)


def pairs(graph: Graph) -> set[tuple[int, int]]:
    return {*zip(graph.source.tolist(), graph.target.tolist(), strict=True)}


@pytest.mark.parametrize(
    ("dim", "genes", "options", "count"),
    [
        (256, 50, {}, 18_365_078),
        (256, 250, {}, 18_775_278),
        (1024, 50, {}, 21_117_590),
        (1024, 50, {"merge_widths": "64,64,64", "merge_heads": 4}, 410_006),
    ],
)
def test_parameters_are_counted_as_published(dim, genes, options, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Merge(dim, genes, **options).parameters()) == count


def test_names_and_shapes_are_the_authors():
    with torch.device("meta"):
        model = Merge(256, 250)
    expected, before = {}, 256
    for i, width in enumerate((448, 384, 256), 1):
        expected[f"nn{i}.lin.weight"] = (8 * width, before)
        expected[f"nn{i}.att_src"] = expected[f"nn{i}.att_dst"] = (1, 8, width)
        before = 8 * width
        expected[f"nn{i}.bias"] = (before,)
        expected[f"layer_norm{i}.weight"] = expected[f"layer_norm{i}.bias"] = (before,)
    expected |= {"nn4.lin.weight": (250, 2048), "nn4.bias": (250,)}
    expected |= dict.fromkeys(("nn4.att_src", "nn4.att_dst"), (1, 1, 250))
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == expected


# ---- the graph ---------------------------------------------------------------------------------


def test_neighbors_go_both_ways_and_to_oneself():
    x, _ = slide(12)
    line = torch.stack([torch.arange(12.0), torch.zeros(12)], 1)
    expected = {(i, i) for i in range(12)}
    for i in range(12):
        eighth = sorted(abs(i - j) for j in range(12))[8]
        near = [j for j in range(12) if abs(i - j) <= eighth]  # both of two that are as near
        expected |= {(i, j) for j in near} | {(j, i) for j in near}
    assert pairs(hub_graph(x, line, 0)) == expected
    both = pairs(hub_graph(x, line.flip(1), 0))  # neither coordinate is left out
    assert both == expected


def test_hubs_are_linked_to_their_clusters_and_each_other(monkeypatch):
    """Two islands of three spots: the hub is the one whose features are the middle's."""
    monkeypatch.setattr(hubs, "NEIGHBORS", 1)
    coords = torch.tensor([[0.0, 0], [1, 0], [2.5, 0], [100, 0], [101, 0], [102.5, 0]])
    x = torch.tensor([[0.0], [1.0], [2.1], [5.0], [7.2], [6.0]])
    graph = hub_graph(x, coords, 2)
    # neighbors 0-1, 1-2, 3-4, 4-5; hubs by place 1 and 5; by features (0, 1, 2.1 | 5, 6, 7.2) same
    links = {(0, 1), (1, 2), (3, 4), (4, 5), (3, 5), (1, 5)}
    assert pairs(graph) == links | {(j, i) for i, j in links} | {(i, i) for i in range(6)}
    assert graph.offsets.tolist() == [0, *torch.bincount(graph.target).cumsum(0).tolist()]
    assert (graph.target.diff() >= 0).all()


def test_a_hub_is_the_member_nearest_to_the_mean_of_its_cluster():
    x, coords = slide()
    by_features = x[:, 3].argsort()
    x, coords = x[by_features], coords[by_features]  # the order that clusters are made in
    expected, hub_spots = pairs(hub_graph(x, coords, 0)), []
    place = coords.double()
    for labels in (cluster(place - place.amin(0), 5), cluster(x, 5)):
        for label in range(5):
            members = (labels == label).nonzero().flatten().tolist()
            distance = [(x[m] - x[members].mean(0)).norm() for m in members]
            hub = members[distance.index(min(distance))]
            expected |= {(hub, m) for m in members} | {(m, hub) for m in members}
            hub_spots.append(hub)
    expected |= {(i, j) for i in hub_spots for j in hub_spots}
    assert pairs(hub_graph(x, coords, 5)) == expected


@pytest.mark.parametrize("kind", ["irregular", "square", "hexagonal"])
def test_order_origin_and_turns_do_not_change_the_graph(kind):
    x, coords = slide()
    if kind != "irregular":
        coords = array(6, 10, kind)
    graph, order = hub_graph(x, coords, 5), torch.randperm(60)
    moved = hub_graph(x[order], coords[order], 5)
    back = {(int(order[i]), int(order[j])) for i, j in pairs(moved)}
    assert back == pairs(graph)
    assert pairs(hub_graph(x, coords + 4096, 5)) == pairs(graph)
    assert pairs(hub_graph(x, turned(coords.double()), 5)) == pairs(graph)


def test_clusters_of_islands():
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0], [50, 0], [0, 50], [50, 50], [25, 90]])
    owner = torch.arange(200) % 5
    labels = cluster(middles[owner] + torch.randn(200, 2), 5)
    assert len({*zip(owner.tolist(), labels.tolist(), strict=True)}) == 5
    assert torch.equal(labels, cluster(middles[owner] + 0, 5)[:200])


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_places_than_clusters(distinct):
    points = (torch.arange(12) % distinct)[:, None].float().expand(-1, 2)
    labels = cluster(points, 5)
    assert len({*zip((torch.arange(12) % distinct).tolist(), labels.tolist(), strict=True)}) == (
        distinct
    )


def test_dropped_edges_are_a_share_and_never_ones_own():
    graph = hub_graph(*slide(), 5)
    dropped = graph.drop(0.4)
    assert pairs(dropped) < pairs(graph)
    assert {(i, i) for i in range(60)} <= pairs(dropped)
    others = len(graph.source) - 60
    assert 0.5 < (len(dropped.source) - 60) / others < 0.7
    assert (dropped.target.diff() >= 0).all()


# ---- attention ---------------------------------------------------------------------------------


def dense_attention(layer: GraphAttention, h, graph: Graph):
    """The equations of the paper with an (N, N) mask."""
    z = layer.lin(h).view(len(h), *layer.att_src.shape[1:])
    score = (z * layer.att_src).sum(2)[None] + (z * layer.att_dst).sum(2)[:, None]
    score = torch.nn.functional.leaky_relu(score, 0.2)
    mask = torch.zeros(len(h), len(h), dtype=torch.bool)
    mask[graph.target, graph.source] = True
    weight = score.masked_fill(~mask[:, :, None], -torch.inf).softmax(1)
    return torch.einsum("ijh,jhc->ihc", weight, z).flatten(1) + layer.bias


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_the_papers_and_so_are_its_gradients(heads):
    layer = GraphAttention(12, 4, heads).double()
    torch.nn.init.normal_(layer.bias)
    x, coords = slide(30)
    graph = hub_graph(x, coords, 3)
    found = []
    for attend in (layer, lambda h, graph: dense_attention(layer, h, graph)):
        h = x.double().requires_grad_()
        out = attend(h, graph)
        grads = torch.autograd.grad(out.sin().sum(), [h, *layer.parameters()])
        found.append([out, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gathering_differentiates():
    graph = hub_graph(*slide(8), 2)
    weight = torch.rand(len(graph.source), 2, dtype=torch.float64, requires_grad=True)
    z = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, z: _Gather.apply(w, z, graph), (weight, z))


def test_large_scores_do_not_overflow():
    graph = hub_graph(*slide(), 5)
    weight = graph.softmax(torch.randn(60, 2) * 1e4, torch.randn(60, 2) * 1e4)
    total = torch.zeros(60, 2).index_add(0, graph.target, weight)
    torch.testing.assert_close(total, torch.ones(60, 2))


def test_prediction_is_the_layers_one_after_another():
    model = Merge(**SMALL).eval()
    x, coords = slide()
    graph, h = hub_graph(x, coords, 5), x
    for layer, norm in ((model.nn1, model.layer_norm1), (model.nn2, model.layer_norm2)):
        h = dense_attention(layer, h, graph).relu()
        h = (h - h.mean()) / (h.std(correction=0) + 1e-5) * norm.weight + norm.bias
    expected = dense_attention(model.nn3, h, graph)  # over genes, where the model is hidden, head
    torch.testing.assert_close(model.predict(x, "", coords), expected)


def test_norm_of_equal_values_is_finite():
    assert torch.equal(SlideNorm(3)(torch.ones(4, 3)), torch.zeros(4, 3))


# ---- the model ---------------------------------------------------------------------------------


def test_order_origin_and_company_do_not_matter():
    model = Merge(**SMALL).eval()
    x, coords = slide()
    y = model.predict(x, "", coords)
    assert torch.equal(y, model.predict(x, "", coords))
    order = torch.randperm(60)
    torch.testing.assert_close(model.predict(x[order], "", coords[order]), y[order])
    torch.testing.assert_close(model.predict(x, "", coords + 512), y)
    other, place = slide(25)
    index = torch.tensor([0] * 60 + [1] * 25)
    both = model(torch.cat([x, other]), torch.zeros(2), index, torch.cat([coords, place]))
    torch.testing.assert_close(both[:60], y)
    torch.testing.assert_close(both[60:], model.predict(other, "", place))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("clusters", [0, 5])
def test_few_spots_and_spots_at_one_place(n, clusters):
    model = Merge(**SMALL, merge_clusters=clusters)
    x = torch.randn(n, 12)
    for features, coords in ((x, torch.zeros(n, 2)), (x, torch.rand(n, 2)), (x * 0 + 1, x[:, :2])):
        batch = Batch(features, torch.tensor([0]), None, coords)
        model.train().loss(batch, [target(n)]).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert model.predict(features, "", coords).shape == (n, 7)


def test_loss_is_the_mse_over_measured_genes():
    model = Merge(**SMALL, dropout=0.0).train()
    x, coords = slide()
    measured = torch.tensor([True] * 6 + [False])
    taught, batch = target(60, measured=measured), Batch(x, torch.tensor([0]), None, coords)
    loss = model.loss(batch, [taught])
    error = (model(x, 0, None, coords) - taught.values.to_dense())[:, measured]
    torch.testing.assert_close(loss, error.square().mean())
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad.isfinite().all() and grad.any() for grad in grads.values())
    assert grads["nn3.bias"][6] == 0


def test_edges_drop_in_training_alone():
    model = Merge(**SMALL, dropout=0.5)
    x, coords = slide()
    batch = Batch(x, torch.tensor([0]), None, coords)
    assert not torch.equal(model.train().hidden(batch), model.hidden(batch))
    assert torch.equal(model.eval().hidden(batch), model.hidden(batch))


def test_start_is_the_mean():
    model, mean = Merge(**SMALL), torch.rand(7)
    model.start_at(mean)
    assert torch.equal(model.predict(*slide()[:1], "", slide()[1]), mean.expand(60, 7))


def test_lower_precision_is_close():
    model = Merge(**SMALL).eval()
    batch = Batch(*slide()[:1], torch.tensor([0]), None, slide()[1])
    full, low = (model.loss(batch, [target(60)], kind) for kind in (None, torch.bfloat16))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.02, atol=0)


def test_files(tmp_path):
    model = Merge(**SMALL).eval()
    models.save(model, "merge", SMALL, tmp_path)
    x, coords = slide()
    expected = model.predict(x, "", coords)
    assert torch.equal(models.load(tmp_path).predict(x, "", coords), expected)


@pytest.mark.parametrize("widths", ["", "8,", "8,x", "8,-1", "0", "8;8"])
def test_bad_widths(widths):
    with pytest.raises(InputError, match="--merge-widths must be whole numbers"):
        Merge(**SMALL | {"merge_widths": widths})


def test_place_is_needed():
    with pytest.raises(InputError, match="give its coordinates"):
        Merge(**SMALL).predict(torch.randn(4, 12), "")
