import pytest
import torch
from arrays import KINDS, array

from histokit.models.places import array_positions, nearest_spots

SQUARE = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij"), -1).view(
    -1, 2
)


def test_nearest_spots_are_those_of_all_distances():
    coords = torch.randn(60, 2, dtype=torch.float64)
    distance = torch.cdist(coords, coords).fill_diagonal_(torch.inf)
    near, order = distance.sort(dim=1)
    counted = near <= 1.01 * near[:, 6:7]
    index, there = nearest_spots(coords, 7)
    assert torch.equal(there, counted[:, : there.shape[1]])
    assert not counted[:, there.shape[1] :].any()
    assert torch.equal(index[there], order[:, : there.shape[1]][there])


def test_ties_all_count_and_do_not_move_with_the_slide():
    coords = SQUARE.float() * 100
    index, there = nearest_spots(coords, 4)
    assert index[0][there[0]].tolist() == [1, 5, 6, 2, 10]  # 100, 100, 141, and both of 200
    moved = nearest_spots(coords + 12_345, 4)
    assert torch.equal(index, moved[0])
    assert torch.equal(there, moved[1])


@pytest.mark.parametrize(("count", "k", "columns"), [(1, 8, 0), (3, 8, 2), (0, 8, 0), (2, 2, 1)])
def test_small_slides_have_fewer_neighbors(count, k, columns):
    index, there = nearest_spots(torch.rand(count, 2), k)
    assert index.shape == there.shape == (count, columns)
    assert there.all()


def test_spots_at_one_place_are_neighbors_but_not_of_themselves():
    index, there = nearest_spots(torch.zeros(40, 2), 3)
    assert index.shape == (40, 15)  # twelve more than asked for at most
    assert there.all()
    assert all(i not in row for i, row in enumerate(index.tolist()))


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rounded", [False, True])
def test_pieces_of_tissue_keep_their_distance(kind, axis, rounded):
    whole = array(30, 34, kind, 97.3)
    line = torch.arange(30 * 34)
    line = line % 34 if axis == 0 else line // 34
    pieces = (line < 8) | (line >= 18)  # ten lines of the array lie between them
    coords = whole.round() if rounded else whole
    expected = array_positions(whole)
    assert torch.equal(array_positions(coords[pieces]), expected[pieces])
    first = expected[:, axis].unique()
    assert len(first) == int(first[-1]) + 1  # the whole has no gap


def test_two_single_columns_of_spots_keep_their_distance():
    coords = torch.tensor([[x, y] for x in (0.0, 1000.0) for y in range(0, 900, 100)])
    assert array_positions(coords)[:, 0].tolist() == [0] * 9 + [10] * 9


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
