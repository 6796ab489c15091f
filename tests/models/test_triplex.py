import pytest
import torch
import torch.nn.functional as F
from arrays import KINDS, array

from histokit import models
from histokit.core.errors import InputError
from histokit.models.base import Batch, Target
from histokit.models.triplex import TRIPLEX, from_official_names
from histokit.models.triplex_parts import Array, ArrayWindows, NearestWindows

TINY = {"input_dim": 12, "num_genes": 7, "hidden_dim": 16, "triplex_config": "small"}
RESNET18 = 11_176_512  # parameters of the published trunk, whose last layer is left out


def grid(count, columns=6):
    at = torch.arange(count)
    return torch.stack([at % columns, at // columns], 1) * 100.0 + 40


def slide(count, columns=6, dim=12):
    return torch.randn(count, dim), grid(count, columns)


def trained(**options):
    """A model whose biases by offset, which start at zero, are not."""
    model = TRIPLEX(**TINY | options)
    if model.neighbor_encoder is not None:
        for attention, _ in model.neighbor_encoder.layer.layers:
            torch.nn.init.normal_(attention.fn.attention_biases)
    return model.eval()


def number(**arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in TRIPLEX(**arguments).parameters())


@pytest.mark.parametrize(
    ("config", "width", "count"),
    [("default", 512, 14_293_080), ("andersson", 512, 19_019_128), ("small", 256, 2_421_804)],
)
def test_parameters_on_features_of_1024_dimensions(config, width, count):
    sizes = {"hidden_dim": width, "triplex_config": config}
    assert number(input_dim=1024, num_genes=50, **sizes) == count


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ("default", 24_568_248),
        ("andersson", 29_294_296),
        ("bryan", 40_320_840),
        ("andrew", 27_722_344),
    ],
)
def test_parameters_are_those_of_the_published_networks_without_their_trunk(config, count):
    published = {"input_dim": 512, "num_genes": 250, "triplex_project": False}
    assert number(**published, triplex_config=config) == count - RESNET18


def published_tensors(e, genes, heads, mlp):
    """Names and shapes of a configuration with two blocks everywhere, but for the trunk."""
    linear = {"weight": (genes, e), "bias": (genes,)}
    norm = {"weight": (e,), "bias": (e,)}
    rest = {"0.fn.to_out.0.weight": (e, e), "1.fn.net.0.weight": (mlp, e)}
    rest |= {"1.fn.net.0.bias": (mlp,), "1.fn.net.3.weight": (e, mlp)}
    rest |= {"0.fn.to_out.0.bias": (e,), "1.fn.net.3.bias": (e,)}
    rest |= {f"{i}.norm.{key}": shape for i in (0, 1) for key, shape in norm.items()}
    own = {"0.fn.to_qkv.weight": (3 * e, e)} | rest
    cross = {"0.fn.to_q.weight": (e, e), "0.fn.to_kv.weight": (2 * e, e)} | rest
    near = own | {"0.fn.attention_biases": (heads, 25)}
    layers = {
        "neighbor_encoder.layer.layers.0.": near,
        "neighbor_encoder.layer.layers.1.": near,
        "global_encoder.layer1.layers.0.": own,
        "global_encoder.layer2.layers.0.": own,
        "fusion_encoder.fusion_layer.layers.0.": cross,
        "fusion_encoder.fusion_layer.layers.1.": cross,
        "global_encoder.pos_layer.proj.": {"weight": (e, 1, 3, 3), "bias": (e,)},
        "target_linear.": {"weight": (e, 512), "bias": (e,)},
    }
    layers |= {f"{name}.": linear for name in ("fc", "fc_target", "fc_neighbor", "fc_global")}
    layers |= {f"{name}_encoder.norm.": norm for name in ("neighbor", "global", "fusion")}
    return {prefix + key: shape for prefix, part in layers.items() for key, shape in part.items()}


def test_tensors_are_those_of_the_published_checkpoint():
    with torch.device("meta"):
        state = TRIPLEX(512, 250, triplex_project=False).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes == published_tensors(512, 250, 8, 1024)


# ---- against the forward pass as it is published -----------------------------------------------


class AsPublished:
    """The published forward pass, window by window and on a dense grid, under published names."""

    def __init__(self, model):
        self.state, self.heads = model.state_dict(), 4
        self.depth = len(model.fusion_encoder.fusion_layer.layers)

    def line(self, h, name):
        return F.linear(h, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, h, name):
        return F.layer_norm(h, h.shape[-1:], *(self.state[f"{name}.{k}"] for k in _AFFINE))

    def attend(self, q, k, v, bias=None):
        size, found = q.shape[1] // self.heads, []
        for i, part in enumerate(zip(*(t.split(size, dim=1) for t in (q, k, v)), strict=True)):
            scores = part[0] @ part[1].T / size**0.5
            scores = scores if bias is None else scores + bias[i]
            found.append(torch.softmax(scores, dim=1) @ part[2])
        return torch.cat(found, 1)

    def mlp(self, h, at):
        return self.line(F.gelu(self.line(self.norm(h, at + "1.norm"), at + "1.fn.net.0")),
                         at + "1.fn.net.3")  # fmt: skip

    def block(self, h, at, bias=None):
        q, k, v = self.line(self.norm(h, at + "0.norm"), at + "0.fn.to_qkv").chunk(3, dim=1)
        h = h + self.line(self.attend(q, k, v, bias), at + "0.fn.to_out.0")
        return h + self.mlp(h, at)

    def convolved(self, h, places):
        rows, columns = (int(places[:, i].max()) + 1 for i in (1, 0))
        dense = h.new_zeros(h.shape[1], rows, columns)
        dense[:, places[:, 1], places[:, 0]] = h.T
        at = "global_encoder.pos_layer.proj."
        out = F.conv2d(dense, self.state[at + "weight"], self.state[at + "bias"], padding=1,
                       groups=h.shape[1])  # fmt: skip
        return out[:, places[:, 1], places[:, 0]].T

    def whole(self, x, places):
        h = self.block(self.line(x, "global_linear"), "global_encoder.layer1.layers.0.")
        h = self.convolved(h, places)
        for i in range(self.depth - 1):
            h = self.block(h, f"global_encoder.layer2.layers.{i}.")
        return self.norm(h, "global_encoder.norm")

    def near(self, x, places, spot):
        """Tokens of the 5 x 5 window of a spot where one lies."""
        there = (places - places[spot]).abs().max(1).values <= 2
        h, places = self.line(x[there], "neighbor_linear"), places[there]
        apart = (places[:, None] - places).abs()
        for i in range(self.depth):
            at = f"neighbor_encoder.layer.layers.{i}."
            bias = self.state[at + "0.fn.attention_biases"][:, 5 * apart[..., 1] + apart[..., 0]]
            h = self.block(h, at, bias)
        return self.norm(h, "neighbor_encoder.norm")

    def ask(self, query, tokens):
        for i in range(self.depth):
            at = f"fusion_encoder.fusion_layer.layers.{i}."
            q, t = (self.norm(h, at + "0.norm") for h in (query, tokens))
            k, v = self.line(t, at + "0.fn.to_kv").chunk(2, dim=1)
            attended = self.attend(self.line(q, at + "0.fn.to_q"), k, v)
            query = query + self.line(attended, at + "0.fn.to_out.0")
            query = query + self.mlp(query, at)
        return query

    def __call__(self, x, places):
        """Predictions (N, G) of the four heads."""
        target, whole = self.line(x, "target_linear"), self.whole(x, places)
        near = [self.near(x, places, i) for i in range(len(x))]
        fused = [
            self.ask(whole[i : i + 1], target[i : i + 1]) + self.ask(whole[i : i + 1], near[i])
            for i in range(len(x))
        ]
        views = {"fc_target": target, "fc_global": whole}
        views["fc_neighbor"] = torch.stack([tokens.mean(0) for tokens in near])
        views["fc"] = self.norm(torch.cat(fused), "fusion_encoder.norm")
        return {name: self.line(view, name) for name, view in views.items()}


_AFFINE = ("weight", "bias")


@pytest.mark.parametrize("depth", [1, 2])
def test_all_heads_are_the_published_forward_pass(monkeypatch, depth):
    from histokit.models import triplex_parts

    sizes = triplex_parts.Sizes((depth,) * 3, (4, 4, 4), (2, 2, 2), (0.1, 0.1, 0.1))
    monkeypatch.setitem(triplex_parts.CONFIGS, "tiny", sizes)
    model = trained(triplex_config="tiny").double()
    x, coords = slide(40)
    kept = torch.ones(40, dtype=torch.bool).index_fill(0, torch.tensor([3, 8, 21, 22]), False)
    x, coords = x[kept].double(), coords[kept]
    places = ((coords - 40) / 100).long()
    expected = AsPublished(model)(x, places)
    views = model._views(x, coords)
    found = {f"fc_{name}": head(views[name]) for name, head in model.branch_heads().items()}
    found["fc"] = model(x, -1, None, coords)
    assert found.keys() == expected.keys()
    for name, prediction in found.items():
        torch.testing.assert_close(prediction, expected[name], msg=name)


def test_windows_taken_in_parts_are_those_of_all_at_once(monkeypatch):
    model, (x, coords) = trained(), slide(30)
    whole = model.predict(x, "", coords)
    monkeypatch.setattr("histokit.models.triplex.ROWS", 7)
    torch.testing.assert_close(model.predict(x, "", coords), whole)


def test_nearest_spots_are_the_array_where_a_slide_is_one_window():
    x, coords = slide(25, columns=5)
    array, nearest = trained(), trained(triplex_neighbors="nearest")
    nearest.load_state_dict(array.state_dict())
    middle = torch.tensor([12])  # all others lie in its window
    found = [model.predict(x, "", coords)[middle] for model in (array, nearest)]
    torch.testing.assert_close(*found)


# ---- losses ------------------------------------------------------------------------------------


def batch_of(*sizes):
    parts = [slide(size) for size in sizes]
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x, coords = (torch.cat(part) for part in zip(*parts, strict=True))
    batch = Batch(x, torch.full((len(sizes),), -1), index, coords)
    values = [torch.rand(size, 7) * (torch.rand(size, 7) < 0.6) for size in sizes]
    return batch, values


def predictions(model, x, coords):
    views = model._views(x, coords)
    heads = {"fusion": model.fc} | model.branch_heads()
    found = {name: head(views[name]) for name, head in heads.items()}
    return {name: p.clamp(min=0) if model.clamp else p for name, p in found.items()}


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_loss_by_hand(clamp, layout):
    model = TRIPLEX(**TINY, dropout=0.0, triplex_clamp=clamp).train()
    batch, (y,) = batch_of(20)
    measured = torch.arange(7) != 3
    target = Target(y.to_sparse_csr() if layout == "csr" else y, measured)
    p = {k: v[:, measured] for k, v in predictions(model, batch.features, batch.coords).items()}
    fusion, y = p.pop("fusion"), y[:, measured]
    expected = F.mse_loss(fusion, y)
    for branch in p.values():
        expected = expected + 0.7 * F.mse_loss(branch, y) + 0.3 * F.mse_loss(branch, fusion)
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters, retain_graph=True)
    loss = model.loss(batch, [target])
    torch.testing.assert_close(loss, expected)
    for name, a, b in zip(names, torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
        assert a.isfinite().all()
    torch.testing.assert_close(model.eval().loss(batch, [target]), F.mse_loss(fusion, y))


def test_the_fusion_learns_from_the_branches_too():
    model = TRIPLEX(**TINY, dropout=0.0).train()
    batch, (y,) = batch_of(20)
    with torch.no_grad():  # where the fusion fits, only its distance to the branches is left
        y = model(batch.features, -1, None, batch.coords)
    model.loss(batch, [Target(y, torch.ones(7, dtype=torch.bool))]).backward()
    assert model.fc.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_a_step_is_taught_some_spots_and_sees_all(layout):
    model = TRIPLEX(**TINY, dropout=0.0, triplex_spots=9).train()
    batch, (y,) = batch_of(20)
    target = Target(y.to_sparse_csr() if layout == "csr" else y, torch.ones(7, dtype=torch.bool))
    torch.manual_seed(5)
    loss = model.loss(batch, [target])
    torch.manual_seed(5)
    rows = torch.randperm(20)[:9].sort().values
    p = {k: v[rows] for k, v in predictions(model, batch.features, batch.coords).items()}
    fusion = p.pop("fusion")
    expected = F.mse_loss(fusion, y[rows])
    for branch in p.values():
        expected = expected + 0.7 * F.mse_loss(branch, y[rows]) + 0.3 * F.mse_loss(branch, fusion)
    torch.testing.assert_close(loss, expected)
    assert model.loss(batch, [target]) != loss
    model.eval()
    torch.testing.assert_close(
        model.loss(batch, [target]), F.mse_loss(model(batch.features, -1, None, batch.coords), y)
    )


@pytest.mark.parametrize("clamp", [False, True])
def test_start_at_the_mean_to_the_bit(clamp):
    model, mean = TRIPLEX(**TINY, triplex_clamp=clamp), torch.rand(7)
    model.start_at(mean)
    x, coords = slide(8)
    assert torch.equal(model.predict(x, "", coords), mean.expand(8, -1))
    y = Target(mean.expand(8, -1).contiguous(), torch.ones(7, dtype=torch.bool))
    assert model.train().loss(Batch(x, torch.tensor([-1]), None, coords), [y]) < 1e-12


def test_clamped_predictions_are_those_cut_at_zero():
    free, clamped = trained(), trained(triplex_clamp=True)
    clamped.load_state_dict(free.state_dict())
    x, coords = slide(20)
    expected = free.predict(x, "", coords).clamp(min=0)
    assert (expected == 0).any()
    assert torch.equal(clamped.predict(x, "", coords), expected)


# ---- what is not repeated, and what must not matter --------------------------------------------


def test_evaluation_draws_nothing_and_training_does():
    model, (x, coords) = trained(dropout=0.5), slide(12)
    assert torch.equal(model.predict(x, "", coords), model.predict(x, "", coords))
    model.train()
    assert not torch.equal(model(x, -1, None, coords), model(x, -1, None, coords))


def test_weights_that_are_loaded_in_evaluation_mode_count():
    model, other, (x, coords) = trained(), trained(), slide(12)
    model.predict(x, "", coords)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.predict(x, "", coords), other.predict(x, "", coords))
    before = model.predict(x, "", coords)
    model.neighbor_encoder.layer.layers[0][0].fn.attention_biases.data.normal_(0, 5)
    assert not torch.allclose(model.predict(x, "", coords), before)


@pytest.mark.parametrize("neighbors", ["array", "nearest"])
def test_each_slide_has_an_array_of_its_own(neighbors):
    model = trained(triplex_neighbors=neighbors)
    (x, a), (y, b) = slide(20), slide(9, columns=2)
    index = torch.repeat_interleave(torch.arange(2), torch.tensor([20, 9]))
    packed = model(torch.cat([x, y]), torch.tensor([-1, -1]), index, torch.cat([a, b]))
    alone = [trained_like(model).predict(z, "", c) for z, c in ((x, a), (y, b))]
    torch.testing.assert_close(packed, torch.cat(alone))


def trained_like(model):
    """The same weights in a model that has seen no slide."""
    fresh = trained(triplex_neighbors="nearest" if model.nearest else "array")
    fresh.load_state_dict(model.state_dict())
    return fresh


@pytest.mark.parametrize("neighbors", ["array", "nearest"])
def test_order_of_spots_and_place_of_the_slide_do_not_matter(neighbors):
    model = trained(triplex_neighbors=neighbors)
    x, coords = slide(30)
    whole, order = model.predict(x, "", coords), torch.randperm(30)
    torch.testing.assert_close(model.predict(x[order], "", coords[order]), whole[order])
    moved = model.predict(x, "", coords + torch.tensor([12_288.0, 1024]))
    torch.testing.assert_close(moved, whole)


@pytest.mark.parametrize("neighbors", ["array", "nearest"])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("spread", [0.0, 90.0])
def test_tiny_slides_and_spots_at_one_place(neighbors, count, spread):
    model = trained(triplex_neighbors=neighbors)
    x, coords = torch.randn(count, 12), torch.rand(count, 2) * spread + 70
    assert model.predict(x, "", coords).isfinite().all()
    target = Target(torch.rand(count, 7), torch.ones(7, dtype=torch.bool))
    model.train().loss(Batch(x, torch.tensor([-1]), None, coords), [target]).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_spots_of_one_cell_are_neighbors_as_their_mean_in_any_order():
    model = trained()
    x, coords = torch.randn(9, 12), grid(9, columns=4)
    coords[8] = coords[3]
    whole, order = model.predict(x, "", coords), torch.randperm(9)
    torch.testing.assert_close(model.predict(x[order], "", coords[order]), whole[order])


# ---- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ablation", "gone", "heads"),
    [
        ("fusion-only", (), set()),
        ("no-neighbor", ("neighbor",), {"target", "global"}),
        ("no-global", ("global",), {"target", "neighbor"}),
    ],
)
def test_ablations(ablation, gone, heads):
    model, (x, coords) = TRIPLEX(**TINY, triplex_ablation=ablation, dropout=0.0), slide(20)
    assert set(model.branch_heads()) == heads
    for view in gone:
        assert not [name for name in model.state_dict() if name.startswith(view)]
    target = Target(torch.rand(20, 7), torch.ones(7, dtype=torch.bool))
    batch = Batch(x, torch.tensor([-1]), None, coords)
    loss = model.train().loss(batch, [target])
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if ablation == "fusion-only":
        torch.testing.assert_close(loss, model.eval().loss(batch, [target]))


def test_without_the_global_view_far_spots_do_not_matter():
    model, (x, coords) = trained(triplex_ablation="no-global"), slide(60)
    other = x.clone()
    other[-6:] += 3
    a, b = model.predict(x, "", coords), model.predict(other, "", coords)
    torch.testing.assert_close(a[:42], b[:42])
    changed = (a - b).abs().amax(1) > 1e-6
    assert changed[42:].all()  # two rows away and nearer
    whole = trained()
    a, b = whole.predict(x, "", coords), whole.predict(other, "", coords)
    assert not torch.allclose(a[:42], b[:42])


def test_what_stands_for_missing_neighbors_does_not_matter():
    """They are looked up as the first spot, whose values must not come through."""
    model, (x, coords) = trained(triplex_ablation="no-global"), slide(60)
    other = x.clone()
    other[0] *= 50
    a, b = model.predict(x, "", coords), model.predict(other, "", coords)
    assert torch.equal(a[-6:], b[-6:])
    assert not torch.allclose(a[0], b[0])


def test_a_hexagonal_array_has_thirteen_spots_in_a_window():
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    x = (columns + 0.5 * (rows % 2)) * 100.0
    coords = torch.stack([x, rows * 86.6], -1).view(-1, 2)
    window = ArrayWindows(Array(coords)).of(torch.arange(len(coords)))
    assert window.index.shape == (81, 13)
    assert window.mask[40].all()  # the middle one
    near = (coords[40] - coords).abs()
    expected = (near[:, 0] < 110) & (near[:, 1] < 180)
    assert set(Array(coords).owner[expected].tolist()) == set(window.index[40].tolist())
    assert window.offsets.max() == 24
    assert window.offsets.diagonal().tolist() == [0] * 13


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_does_not_reach_another_piece_of_tissue(kind):
    coords = array(8, 30, kind).float()
    left = torch.arange(240) % 30 < 10
    coords, left = coords[left | (torch.arange(240) % 30 >= 20)], left.view(8, 30)[:, :20].flatten()
    model, x = trained(triplex_ablation="no-global"), torch.randn(160, 12)
    other = x.clone()
    other[left] *= 50
    a, b = model.predict(x, "", coords), model.predict(other, "", coords)
    assert torch.equal(a[~left], b[~left])
    assert not torch.isclose(a[left], b[left]).any(1).all()


def test_nearest_windows_hold_no_table_of_all_pairs():
    coords = array(40, 40, "hexagonal").float()
    windows = NearestWindows(coords)
    assert sum(part.nbytes for part in vars(windows).values()) < 400 * 1600
    whole, some = windows.of(torch.arange(1600)), windows.of(torch.arange(50, 60))
    assert whole.index.shape == (1600, 31)
    for name in ("index", "mask", "offsets"):
        assert torch.equal(getattr(some, name), getattr(whole, name)[50:60])


def official(model, heads):
    """A state dict as the authors save it: prefix, trunk, rows of the global attention."""
    state = {"model.target_encoder.0.weight": torch.ones(3)}
    for name, value in model.state_dict().items():
        if name.startswith("global_encoder.layer") and "to_qkv" in name:
            parts = value.view(3, heads, -1, value.shape[1])
            value = parts.permute(1, 2, 0, 3).reshape(value.shape)
        state[f"model.{name}"] = value.clone()
    return state


def test_official_checkpoints_load(tmp_path):
    model = trained(input_dim=16, triplex_project=False, triplex_config="default")
    state = official(model, heads=8)
    assert not torch.equal(
        state["model.global_encoder.layer1.layers.0.0.fn.to_qkv.weight"],
        model.state_dict()["global_encoder.layer1.layers.0.0.fn.to_qkv.weight"],
    )
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    x, coords = slide(20, dim=16)
    loaded = TRIPLEX.from_official(tmp_path / "last.ckpt", triplex_clamp=False)
    assert torch.equal(loaded.predict(x, "", coords), model.predict(x, "", coords))
    clamped = TRIPLEX.from_official(tmp_path / "last.ckpt")
    assert (clamped.predict(x, "", coords) >= 0).all()
    with pytest.raises(InputError, match="does not fit this model: it lacks"):
        TRIPLEX.from_official(tmp_path / "last.ckpt", "bryan")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="is not a checkpoint of TRIPLEX"):
        TRIPLEX.from_official(tmp_path / "other.ckpt")


def test_rows_of_the_published_global_attention():
    """Two heads of two dimensions: rows lie head by head, dimension by dimension, q k v."""
    named = [f"{part}{head}{dim}" for head in "01" for dim in "01" for part in "qkv"]
    wanted = [f"{part}{head}{dim}" for part in "qkv" for head in "01" for dim in "01"]
    rows = torch.arange(12.0)[:, None].expand(12, 4).contiguous()
    found = from_official_names(
        {"model.global_encoder.layer1.layers.0.0.fn.to_qkv.weight": rows}, heads=2
    )["global_encoder.layer1.layers.0.0.fn.to_qkv.weight"]
    assert [named[int(row)] for row in found[:, 0]] == wanted


@pytest.mark.parametrize("clamp", [False, True])
def test_saves_and_loads(tmp_path, clamp):
    arguments = TINY | {"dropout": None, "triplex_clamp": clamp, "triplex_spots": 9}
    model, (x, coords) = TRIPLEX(**arguments), slide(8)
    models.save(model, "triplex", arguments, tmp_path)
    assert torch.equal(models.load(tmp_path).predict(x, "", coords), model.predict(x, "", coords))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"triplex_config": "big"}, "--triplex-config must be one of default, andersson"),
        ({"triplex_neighbors": "far"}, "--triplex-neighbors must be one of array, nearest"),
        ({"triplex_ablation": "all"}, "--triplex-ablation must be one of none, fusion-only"),
        ({"triplex_project": False}, "needs features of --hidden-dim 16 dimensions, got 12"),
        ({"hidden_dim": 18}, "4 heads of the fusion encoder of triplex do not divide"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(InputError, match=text):
        TRIPLEX(**TINY | options)


def test_place_is_needed():
    with pytest.raises(InputError, match="give its coordinates"):
        trained().predict(torch.randn(4, 12), "")
