"""On arrays neighbors are equally far: which of them count depends on no order and no frame."""

import pytest
import torch
from arrays import KINDS, array, turned

from histokit.data.graph import with_neighbors
from histokit.models import DeepSpot, Merge, STFlowModel
from histokit.models.places import nearest_spots
from histokit.models.triplex import TRIPLEX

SIZES = {"input_dim": 12, "num_genes": 7, "hidden_dim": 16}
STFLOW = SIZES | {"num_layers": 2, "stflow_prior": "zero", "samples": 1}
MODELS = {
    "stflow": lambda: STFlowModel(**STFLOW),
    "stflow by pitch": lambda: STFlowModel(**STFLOW, stflow_unit="pitch"),
    "deepspot": lambda: DeepSpot(**SIZES),
    "merge": lambda: Merge(12, 7, merge_widths="8,8", merge_heads=2),
    "triplex": lambda: TRIPLEX(**SIZES),
    "triplex nearest": lambda: TRIPLEX(**SIZES, triplex_neighbors="nearest"),
}
FREE = ("stflow", "stflow by pitch", "deepspot", "merge")  # of how a slide lies


@pytest.fixture(params=KINDS)
def places(request):
    return array(9, 8, request.param)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_order_of_spots_changes_nothing(name, rounded, places):
    model, x, order = MODELS[name]().double(), torch.randn(72, 12).double(), torch.randperm(72)
    places = places.round() if rounded else places
    whole = model.predict(x, "", places)
    torch.testing.assert_close(model.predict(x[order], "", places[order]), whole[order])


@pytest.mark.parametrize("name", FREE)
def test_how_a_slide_lies_changes_nothing(name, places):
    model, x = MODELS[name]().double(), torch.randn(72, 12).double()
    torch.testing.assert_close(model.predict(x, "", turned(places)), model.predict(x, "", places))


@pytest.mark.parametrize("how", ["mean", "attention"])
def test_neighbors_set_beside_features_have_no_ties(how, places):
    x, order = torch.randn(72, 12), torch.randperm(72)
    whole = with_neighbors(x, places.numpy(), how)
    moved = with_neighbors(x[order], turned(places)[order].numpy(), how)
    torch.testing.assert_close(moved, whole[order])


@pytest.mark.parametrize(("kind", "k", "count"), [
    ("square", 8, 8), ("hexagonal", 8, 12), ("square", 24, 24), ("hexagonal", 24, 30),
    ("hexagonal", 6, 6), ("square", 5, 8),
])  # fmt: skip
@pytest.mark.parametrize("shift", [0, 0.4])
def test_neighbors_are_whole_rings(kind, k, count, shift):
    coords = array(13, 13, kind)
    coords = (coords + shift * torch.rand_like(coords)).round()
    index, there = nearest_spots(coords, k)
    middle = 6 * 13 + 6
    found = index[middle][there[middle]]
    away = (coords - coords[middle]).norm(dim=1)
    away[middle] = torch.inf
    limit = 1.01 * away.sort().values[k - 1]
    assert {*found.tolist()} == {*(away <= limit).nonzero().flatten().tolist()}
    assert len(found) == count
    assert (index[~there] == torch.arange(169)[:, None].expand_as(index)[~there]).all()
