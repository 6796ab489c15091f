import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from histokit import models
from histokit.core.errors import InputError
from histokit.models import BLEEP
from histokit.models.base import Batch, Target
from histokit.models.bleep import soft_contrast
from histokit.models.registry import MODELS
from histokit.train.loader import TrainingSlide

HEADS = ("image_projection", "spot_projection")
MEASURED = torch.ones(7, dtype=torch.bool)


def slide(name="a", spots=20, genes=7, dim=6, measured=MEASURED):
    y = torch.rand(spots, genes) * measured
    x, coords = torch.randn(spots, dim), torch.rand(spots, 2)
    return TrainingSlide(name, x, y.to_sparse_csr(), measured, "IDC", coords)


def batch_of(*slides):
    x = torch.cat([s.features for s in slides])
    sizes = torch.tensor([len(s.features) for s in slides])
    index = torch.repeat_interleave(torch.arange(len(slides)), sizes)
    codes = torch.full((len(slides),), -1)
    packed = index if len(slides) > 1 else None
    return Batch(x, codes, packed), [Target(s.target, s.measured) for s in slides]


@pytest.mark.parametrize(
    ("input_dim", "genes", "count"),
    [(2048, 3467, 590_848 + 954_112), (1024, 50, 408_064), (1024, 1000, 651_264)],
)
def test_parameters_are_those_of_the_published_heads(input_dim, genes, count):
    with torch.device("meta"):
        model = BLEEP(input_dim, genes)
    expected = {}
    for head, width in zip(HEADS, (input_dim, genes), strict=True):
        expected |= {f"{head}.projection.weight": (256, width), f"{head}.fc.weight": (256, 256)}
        names = ("projection.bias", "fc.bias", "layer_norm.weight", "layer_norm.bias")
        expected |= {f"{head}.{name}": (256,) for name in names}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert sum(p.numel() for p in model.parameters()) == count


def test_loss_of_three_by_hand_and_its_asymmetry():
    image = np.array([[1.0, 0], [0, 2], [1, 1]])
    spot = np.array([[0.5, 1], [1, -1], [0, 1]])

    def by_hand(image, spot, temperature):
        total = 0.0
        logit = [[s @ i / temperature for i in image] for s in spot]
        target = []
        for a in range(3):
            e = [np.exp((image[a] @ image[b] + spot[a] @ spot[b]) / 2 / temperature)
                 for b in range(3)]  # fmt: skip
            target.append([value / sum(e) for value in e])
        for a in range(3):
            row = np.log(sum(np.exp(logit[a][b]) for b in range(3)))
            column = np.log(sum(np.exp(logit[b][a]) for b in range(3)))
            total -= sum(target[a][b] * (logit[a][b] - row) for b in range(3)) / 2
            total -= sum(target[b][a] * (logit[b][a] - column) for b in range(3)) / 2
        return total / 3

    i, s = torch.tensor(image), torch.tensor(spot)
    for temperature in (1.0, 0.5):
        expected = by_hand(image, spot, temperature)
        assert soft_contrast(i, s, temperature).item() == pytest.approx(expected)
    # the target stays, its columns are no distribution: I and S are not interchangeable
    assert soft_contrast(s, i).item() == pytest.approx(by_hand(spot, image, 1.0))
    assert abs(soft_contrast(s, i) - soft_contrast(i, s)) > 0.01
    # the row of T for the first: products of images 1, 0, 1, of spots 1.25, -0.5, 1
    first = np.exp(np.array([2.25, -0.5, 2]) / 2)
    t = ((i @ i.T + s @ s.T) / 2).softmax(1)
    np.testing.assert_allclose(t[0], first / first.sum())


def test_gradients_flow_through_the_soft_targets():
    image = torch.randn(5, 4, requires_grad=True, dtype=torch.float64)
    spot = torch.randn(5, 4, requires_grad=True, dtype=torch.float64)
    assert torch.autograd.gradcheck(soft_contrast, (image, spot))


def test_the_heads_as_published():
    model = BLEEP(6, 7).eval()
    head, x = model.image_projection, torch.randn(9, 6)
    p = x @ head.projection.weight.T + head.projection.bias
    q = torch.nn.functional.gelu(p) @ head.fc.weight.T + head.fc.bias
    expected = (p + q - (p + q).mean(1, keepdim=True)) / (p + q).std(1, correction=0)[:, None]
    torch.testing.assert_close(model.query(x), expected, rtol=1e-4, atol=1e-4)
    one = slide()
    dense = model.spot_projection(one.target.to_dense())
    torch.testing.assert_close(model.keys(one), dense)


def test_a_slide_is_contrasted_in_parts_of_equal_size():
    model, one = BLEEP(6, 7, bleep_batch=8, dropout=0.0), slide(spots=20)
    image, spot = model.query(one.features), model.keys(one)
    torch.manual_seed(5)
    parts = torch.randperm(20).split([7, 7, 6])
    expected = torch.stack([soft_contrast(image[p], spot[p]) for p in parts]).mean()
    torch.manual_seed(5)
    torch.testing.assert_close(model.train().loss(*batch_of(one)), expected)
    other = model.loss(*batch_of(one))  # another partition
    assert not torch.equal(other, expected)


def test_the_validation_loss_is_the_same_each_time_and_draws_nothing():
    model, one = BLEEP(6, 7, bleep_batch=8).eval(), slide(spots=20)
    before = torch.get_rng_state()
    first = model.loss(*batch_of(one))
    assert torch.equal(first, model.loss(*batch_of(one)))
    assert torch.equal(before, torch.get_rng_state())


def test_packed_slides_never_see_each_other():
    model, one, other = BLEEP(6, 7).eval(), slide(spots=20), slide("b", 9)
    apart = (model.loss(*batch_of(one)) + model.loss(*batch_of(other))) / 2
    torch.testing.assert_close(model.loss(*batch_of(one, other)), apart)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spots", [1, 2, 30])
def test_gradients_are_finite(normalize, spots):
    model = BLEEP(6, 7, bleep_batch=16, bleep_normalize=normalize).train()
    one = slide(spots=spots)
    one.features[:2] = one.features[0]  # patches that are the same
    model.loss(*batch_of(one)).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()


def test_normalized_embeddings_bound_the_logits():
    model, one = BLEEP(6, 7, bleep_normalize=True).eval(), slide(spots=12)
    image, spot = (torch.nn.functional.normalize(t, dim=1)
                   for t in (model.query(one.features), model.keys(one)))  # fmt: skip
    torch.testing.assert_close(model.loss(*batch_of(one)), soft_contrast(image, spot))


def test_unmeasured_genes_enter_as_the_training_mean():
    measured = MEASURED.clone()
    measured[[2, 5]] = False
    model, one = BLEEP(6, 7).eval(), slide(measured=measured)
    mean = torch.rand(7)
    model.start_at(mean)
    filled = one.target.to_dense() + mean * ~measured
    torch.testing.assert_close(model.keys(one), model.spot_projection(filled))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_lower_precision_is_about_the_same(dtype):
    model, one = BLEEP(6, 7).eval(), slide()
    loss = model.loss(*batch_of(one))
    lower = model.loss(*batch_of(one), dtype)
    assert lower.dtype == torch.float32
    assert lower.item() == pytest.approx(loss.item(), rel=0.05)


def test_it_predicts_the_spots_that_its_embeddings_are_nearest_to():
    model, one, other = BLEEP(6, 7, retrieval_k=3), slide(spots=20), slide("b", 9)
    model.remember([one, other])
    x = torch.randn(5, 6)
    keys = torch.cat([model.keys(one), model.keys(other)]).double()
    cosine = torch.nn.functional.cosine_similarity(model.query(x)[:, None].double(), keys, dim=2)
    index = cosine.topk(3).indices
    assert torch.equal(model.retrieve(x)[0], index)
    y = torch.cat([one.target.to_dense(), other.target.to_dense()])
    prediction = model.predict(x, "IDC")
    torch.testing.assert_close(prediction, y[index].mean(1))
    assert torch.equal(prediction, model.predict(x, "IDC"))
    order = torch.randperm(5)
    torch.testing.assert_close(model.predict(x[order], "IDC"), prediction[order])
    torch.testing.assert_close(model.predict(x[:1], "IDC"), prediction[:1])


def test_remembering_leaves_the_dropout_out():
    model, one = BLEEP(6, 7, dropout=0.5).train(), slide()
    model.remember([one])
    torch.testing.assert_close(model.bank.keys, model.eval().keys(one))


def test_it_saves_and_loads(tmp_path):
    arguments = {"input_dim": 6, "num_genes": 7, "retrieval_k": 3, "bleep_batch": 8}
    model = BLEEP(**arguments)
    models.save(model, "bleep", arguments | model.remember([slide(), slide("b")]), tmp_path)
    x = torch.randn(5, 6)
    loaded = models.load(tmp_path)
    assert torch.equal(loaded.predict(x, "IDC"), model.predict(x, "IDC"))
    batch = batch_of(slide())
    assert torch.equal(loaded.loss(*batch), model.loss(*batch))


def official(model, spot="spot"):
    state = {f"module.image_encoder.model.{k}": torch.zeros(2) for k in ("conv1.weight", "bn.bias")}
    for name, value in model.named_parameters():
        state[f"module.{name.replace('spot', spot)}"] = value.detach().clone()
    return state


@pytest.mark.parametrize("spot", ["spot", "well"])
def test_official_checkpoints_load(tmp_path, spot):
    model, one = BLEEP(6, 7).eval(), slide()
    save_file(official(model, spot), tmp_path / "best.safetensors")
    loaded = BLEEP.from_official(tmp_path / "best.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.state_dict()[name], parameter)
    loaded.remember([one])
    assert loaded.predict(one.features, "").shape == (20, 7)


def test_other_checkpoints_are_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not a checkpoint of BLEEP: it lacks image_projection"):
        BLEEP.from_official(path)
    save_file(official(BLEEP(6, 7)) | {"module.odd": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds the unexpected odd"):
        BLEEP.from_official(path)
    with pytest.raises(InputError, match="does not exist"):
        BLEEP.from_official(tmp_path / "none.pt")


def test_presets_name_the_published_figures():
    presets = MODELS["bleep"].presets
    published = {"lr": 1e-3, "weight_decay": 1e-3, "epochs": 150, "bleep_batch": 128}
    published |= {"bleep_temperature": 1.0, "bleep_normalize": False, "dropout": 0.1}
    assert presets["paper"].items() >= published.items()
    assert presets["small"]["refit"]
