import pytest
import torch

from histokit.models.places import array_positions, nearest_spots

SQUARE = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"), -1).view(
    -1, 2
)


def test_nearest_spots_are_those_of_all_distances():
    coords = torch.randn(60, 2, dtype=torch.float64)
    distance = torch.cdist(coords, coords).fill_diagonal_(torch.inf)
    assert torch.equal(nearest_spots(coords, 7), distance.argsort(dim=1)[:, :7])


def test_ties_go_to_the_first_and_do_not_move_with_the_slide():
    coords = SQUARE.float() * 100
    found = nearest_spots(coords, 4)
    assert found[0].tolist() == [1, 5, 6, 2]  # 100, 100, 141, 200 before the spot at 200 below
    assert torch.equal(found, nearest_spots(coords + 12_345, 4))


@pytest.mark.parametrize(("count", "k", "columns"), [(1, 8, 0), (3, 8, 2), (0, 8, 0), (5, 2, 2)])
def test_small_slides_have_fewer_neighbors(count, k, columns):
    assert nearest_spots(torch.rand(count, 2), k).shape == (count, columns)


def test_spots_at_one_place_are_neighbors_but_not_of_themselves():
    found = nearest_spots(torch.zeros(4, 2), 3)
    assert all(i not in row for i, row in enumerate(found.tolist()))


def test_positions_on_a_square_array():
    moved = SQUARE * 250.0 + 70 + torch.rand(20, 2) * 5
    assert torch.equal(array_positions(moved), SQUARE)


def test_positions_on_a_hexagonal_array():
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    x = (columns + 0.5 * (rows % 2)) * 100.0
    y = rows * 86.6
    found = array_positions(torch.stack([x, y], -1).view(-1, 2))
    assert torch.equal(found[:, 1], rows.reshape(-1))
    assert torch.equal(found[:, 0], (2 * columns + rows % 2).reshape(-1))


def test_positions_of_one_spot():
    assert array_positions(torch.tensor([[7.0, 9.0]])).tolist() == [[0, 0]]


@pytest.mark.parametrize("degrees", [-12, -1, 0.3, 2, 9])
@pytest.mark.parametrize("shape", ["square", "hexagonal"])
def test_a_turned_array_is_turned_upright(degrees, shape):
    rows, columns = torch.meshgrid(torch.arange(30), torch.arange(25), indexing="ij")
    if shape == "square":
        x, y, expected = columns * 200.0, rows * 200.0, columns
    else:
        x, y, expected = (columns + 0.5 * (rows % 2)) * 100.0, rows * 86.6, 2 * columns + rows % 2
    angle = torch.tensor(degrees * torch.pi / 180)
    turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
    found = array_positions(turned.view(-1, 2) + 4000)
    assert torch.equal(found[:, 0], expected.reshape(-1))
    assert torch.equal(found[:, 1], rows.reshape(-1))
