import pytest
import torch
from stem_samples import SMALL, features, model, one, stirred

from histokit.core.errors import InputError
from histokit.models import Stem, StemModel
from histokit.models.base import Batch


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((1536, 200), 35_639_042),
        ((1024, 200), 34_131_202),
        ((1024, 50, 128, 4), 2_473_986),
    ],
)
def test_parameters_are_those_of_the_published_model(sizes, count):
    with torch.device("meta"):
        published = Stem(*sizes)
    assert sum(p.numel() for p in published.parameters()) == count


def test_names_and_shapes_are_those_of_the_published_model():
    with torch.device("meta"):
        published = Stem()
    state = published.state_dict()
    shapes = {
        "gene_joint_embed.gene_count_ebd.0.weight": (384, 1),
        "gene_joint_embed.gene_count_ebd.2.weight": (384, 384),
        "time_embed.mlp.0.weight": (384, 256),
        "time_embed.mlp.2.weight": (384, 384),
        "label_embed.0.weight": (1536, 1536),
        "label_embed.2.weight": (384, 1536),
        "final_layer.linear.weight": (2, 384),
        "final_layer.adaLN_modulation.1.weight": (768, 384),
    }
    block = {
        "attn.qkv.weight": (1152, 384),
        "attn.proj.weight": (384, 384),
        "mlp.fc1.weight": (1536, 384),
        "mlp.fc2.weight": (384, 1536),
        "adaLN_modulation.1.weight": (2304, 384),
    }
    shapes |= {f"blocks.{i}.{key}": shape for i in range(12) for key, shape in block.items()}
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    biases = {name.replace("weight", "bias") for name in shapes}
    assert {*state} == {*shapes, *biases, "gene_joint_embed.gene_name_ebd"}
    assert state["gene_joint_embed.gene_name_ebd"].shape == (200, 384)
    assert published.blocks[0].attn.num_heads == 6
    assert sum(p.numel() for p in published.blocks[3].parameters()) == 2_659_968


def test_official_names_load_strictly(tmp_path):
    theirs, wrong = stirred(Stem(12, 7, 16, 3)), Stem(12, 7, 16, 3)
    checkpoint = {"model": wrong.state_dict(), "ema": theirs.state_dict(), "opt": {}}
    torch.save(checkpoint, tmp_path / "0200000.pt")
    torch.save(theirs.state_dict(), tmp_path / "bare.pt")
    for name in ("0200000.pt", "bare.pt"):
        loaded = StemModel.from_official(tmp_path / name)
        assert (loaded.network_calls, loaded.samples) == (20_000, 20)
        for key, value in theirs.state_dict().items():
            assert torch.equal(loaded.ema.module.state_dict()[key], value)
    short = {key: value for key, value in theirs.state_dict().items() if "final" not in key}
    torch.save(short, tmp_path / "short.pt")
    with pytest.raises(InputError, match="lacks final_layer"):
        StemModel.from_official(tmp_path / "short.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a checkpoint of Stem"):
        StemModel.from_official(tmp_path / "other.pt")


def test_an_untrained_network_tells_zero():
    told = Stem(12, 7, 16, 2)(torch.randn(5, 7), torch.tensor(3), torch.randn(5, 16))
    assert torch.equal(told, torch.zeros(5, 7, 2))


def test_genes_in_another_order_with_their_names_are_the_same():
    network = stirred(Stem(12, 7, 16, 2)).double()
    x, label = torch.randn(5, 7).double(), torch.randn(5, 16).double()
    time, order = torch.tensor([0, 9, 500, 999, 4]), torch.randperm(7)
    expected = network(x, time, label)
    assert not torch.allclose(network(x[:, order], time, label), expected[:, order])
    names = network.gene_joint_embed.gene_name_ebd
    names.data = names.data[order].clone()
    torch.testing.assert_close(network(x[:, order], time, label), expected[:, order])


def test_genes_are_chosen_by_name():
    network = stirred(Stem(12, 7, 16, 2))
    x, label, genes = torch.randn(5, 3), torch.randn(5, 16), torch.arange(7) % 3 == 0
    few = Stem(12, 3, 16, 2)
    state = network.state_dict()
    key = "gene_joint_embed.gene_name_ebd"
    few.load_state_dict(state | {key: state[key][genes]})
    torch.testing.assert_close(network(x, torch.tensor(8), label, genes),
                               few(x, torch.tensor(8), label))  # fmt: skip


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (64, 1), (128, 2), (384, 6)])
def test_heads_are_64_wide(width, heads):
    with torch.device("meta"):
        assert Stem(12, 7, width, 1).blocks[0].attn.num_heads == heads


def test_what_is_refused():
    with pytest.raises(InputError, match="--hidden-dim 100: stem's heads are 64 wide"):
        Stem(12, 7, 100, 1)
    with pytest.raises(InputError, match=r"38,982 genes.*--stem-max-genes 512.*--panel FILE"):
        StemModel(12, 38_982, stem_max_genes=512)
    assert StemModel(**SMALL | {"stem_max_genes": 7}).head.out_features == 7


# ---- draws -------------------------------------------------------------------------------------


def test_evaluation_is_the_seeds_and_never_the_global_generators():
    stem, before = model(), torch.get_rng_state()
    first = stem.hidden(one(features(15)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(stem.hidden(one(features(15))), first)
    assert not torch.allclose(model(sample_seed=1).hidden(one(features(15))), first)


def test_packed_slides_are_drawn_as_each_alone():
    stem, sizes = model(), (15, 1)
    parts = [features(n, seed) for seed, n in enumerate(sizes)]
    index = torch.repeat_interleave(torch.tensor(sizes))
    whole = stem.hidden(Batch(torch.cat(parts), torch.tensor([-1, -1]), index))
    for found, part in zip(whole.split(sizes), parts, strict=True):
        torch.testing.assert_close(found, stem.hidden(one(part)))


def test_calls_of_any_size_draw_the_same():
    expected = model(stem_batch=1).hidden(one(features(7)))
    torch.testing.assert_close(model(stem_batch=5).hidden(one(features(7))), expected)


def test_a_spot_is_generated_alone():
    x, stem = features(6), model()
    expected = stem.hidden(one(x))
    changed = x.clone()
    changed[4] += 1
    found = stem.hidden(one(changed))
    assert not torch.allclose(found[4], expected[4])
    torch.testing.assert_close(found[[0, 1, 2, 3, 5]], expected[[0, 1, 2, 3, 5]])


def test_more_draws_come_nearer_to_their_mean():
    drawn = model().draws(one(features(8)), torch.Generator().manual_seed(3))
    with torch.no_grad():
        every = torch.stack([next(drawn) for _ in range(160)])
    truth = every.mean(0)
    of_eight = every.unflatten(0, (20, 8)).mean(1)
    ratio = (of_eight - truth).square().mean() / (every - truth).square().mean()
    assert float(ratio) == pytest.approx(1 / 8, rel=0.3)


class Oracle(torch.nn.Module):
    """A network that knows the data to be N(mean, 1) and tells the best guess of the noise."""

    def __init__(self, schedule, mean):
        super().__init__()
        self.schedule, self.mean = schedule, mean

    def label_embed(self, x):
        return x

    def forward(self, x, time, label):
        left = self.schedule.alpha_bar[time]
        # x_t is N(sqrt(a) mean, 1): the noise is expected to be sqrt(1 - a) of what is over
        noise = (1 - left).sqrt() * (x - left.sqrt() * self.mean)
        return torch.stack([noise, torch.ones_like(noise)], dim=2)


@pytest.mark.parametrize("steps", [25, 50])
def test_sampling_gives_the_distribution_that_the_network_knows(steps):
    stem = model(stem_steps=steps, samples=1, stem_batch=500)
    stem.ema.module = Oracle(stem.schedule, 2.5)
    drawn = stem.hidden(one(features(2000)))
    assert float(drawn.mean()) == pytest.approx(2.5, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.04)


def test_center_shifts_every_draw():
    x, mean = one(features(6)), torch.rand(7).double()
    plain, moved = model(), model()
    moved.start_at(mean)
    torch.testing.assert_close(moved.hidden(x), plain.hidden(x) + mean)
