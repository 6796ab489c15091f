import pytest
import torch

from histokit import models
from histokit.core.errors import InputError
from histokit.models import MclSTExp
from histokit.models.base import Batch, Target
from histokit.models.mclstexp import pair_contrast
from histokit.models.registry import MODELS
from histokit.train.loader import TrainingSlide


def slide(name="a", spots=20, genes=7, dim=6):
    y = torch.rand(spots, genes)
    coords = torch.stack([torch.arange(spots) % 5, torch.arange(spots) // 5], 1) * 100.0
    measured = torch.ones(genes, dtype=torch.bool)
    return TrainingSlide(name, torch.randn(spots, dim), y.to_sparse_csr(), measured, "", coords)


def loss_of(model, *slides):
    sizes = torch.tensor([len(s.features) for s in slides])
    index = torch.repeat_interleave(torch.arange(len(slides)), sizes)
    batch = Batch(
        torch.cat([s.features for s in slides]),
        torch.full((len(slides),), -1),
        index if len(slides) > 1 else None,
        torch.cat([s.coords for s in slides]),
    )
    return model.loss(batch, [Target(s.target, s.measured) for s in slides])


@pytest.mark.parametrize(
    ("genes", "count"), [(50, 623_564), (785, 116_132_850 - 2 * 65_536 * 785 - 6_953_856)]
)
def test_parameters_are_the_published_without_tables_and_trunk(genes, count):
    with torch.device("meta"):
        model = MclSTExp(1024, genes)
    assert sum(p.numel() for p in model.parameters()) == count


def test_loss_by_hand():
    image, spot = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 1], [1, 1]])
    # logits 3, 2 and 1, 2: by spots log(1 + e^-1) both, by patches log(1 + e^-2) and log 2
    e = torch.exp(torch.tensor([-1.0, -1, -2, 0]))
    assert pair_contrast(image, spot).item() == pytest.approx((1 + e).log().sum().item() / 4)


def test_spots_see_their_slide_alone_and_not_in_which_order_or_where_it_lies():
    model, one = MclSTExp(6, 7).eval(), slide()
    target = Target(one.target, one.measured)
    keys = model.spots(target, one.coords)
    torch.testing.assert_close(model.spots(target, one.coords + 12_345), keys)
    order = torch.randperm(20)
    moved = Target(one.target.to_dense()[order].to_sparse_csr(), one.measured)
    torch.testing.assert_close(model.spots(moved, one.coords[order]), keys[order])
    half = Target(one.target.to_dense()[:10].to_sparse_csr(), one.measured)
    assert not torch.allclose(model.spots(half, one.coords[:10]), keys[:10], atol=1e-3)
    assert not torch.allclose(model.spots(target, one.coords.flip(0)), keys, atol=1e-3)
    apart = (loss_of(model, one) + loss_of(model, other := slide("b", 9))) / 2
    torch.testing.assert_close(loss_of(model, one, other), apart)
    model.remember([one, other])
    torch.testing.assert_close(model.bank.keys[:20], keys)


@pytest.mark.parametrize("spots", [1, 2, 30])
@pytest.mark.parametrize("genes", [1, 6, 7])
def test_few_spots_and_any_panel(spots, genes):
    model, one = MclSTExp(6, genes, bleep_batch=16).train(), slide(spots=spots, genes=genes)
    one.coords[:2] = one.coords[0]
    loss_of(model, one).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    model.remember([one])
    prediction = model.predict(torch.randn(3, 6), "", torch.rand(3, 2))
    assert prediction.shape == (3, genes)
    assert prediction.isfinite().all()


def test_the_validation_loss_is_the_same_each_time():
    model, one = MclSTExp(6, 7, bleep_batch=8).eval(), slide()
    assert torch.equal(loss_of(model, one), loss_of(model, one))


def test_it_saves_and_loads(tmp_path):
    arguments = {"input_dim": 6, "num_genes": 7, "retrieval_k": 5}
    model, x, coords = MclSTExp(**arguments), torch.randn(4, 6), torch.rand(4, 2)
    models.save(model, "mclstexp", arguments | model.remember([slide()]), tmp_path)
    loaded = models.load(tmp_path)
    prediction = model.predict(x, "", coords)
    assert torch.equal(loaded.predict(x, "", coords), prediction)
    # a patch is predicted by itself, whoever shares its batch
    torch.testing.assert_close(loaded.predict(x[:1], "", coords[:1]), prediction[:1])
    with pytest.raises(InputError, match="give its coordinates too"):
        loaded.predict(x, "")


def test_panels_that_are_too_wide_are_refused():
    with pytest.raises(InputError, match="up to 4,096 genes, not 4,097"):
        MclSTExp(6, 4097)


def test_presets_name_the_published_figures():
    published = {"lr": 1e-4, "weight_decay": 1e-3, "epochs": 90, "bleep_batch": 128}
    published |= {"retrieval_k": 200, "retrieval_weights": "l1", "val_fraction": 0.0}
    assert MODELS["mclstexp"].presets["paper"].items() >= published.items()
