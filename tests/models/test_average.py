"""The average of models is the mean of what they predict, also after it was saved."""

import json

import pytest
import torch

from histokit import models
from histokit.core.errors import InputError
from histokit.models.average import Average
from histokit.models.base import Batch, Standardizer
from histokit.models.outputs import Direct, Outputs
from histokit.models.registry import MODELS

SIZES = {"input_dim": 16, "num_genes": 7}
TRAINED = {
    "ridge-by-gene": SIZES | {"num_components": 5},
    "mlp": SIZES | {"hidden_dim": 8},
    "bpbooster": SIZES | {"latent_dim": 16, "num_prototypes": 4, "num_hvgs": 3},
    "histoprism": SIZES | {"cancers": ["IDC", "PRAD"], "hidden_dim": 16, "feedforward_dim": 24},
    "deepspot": SIZES | {"hidden_dim": 8, "deepspot_members": 2},
}
HOW = dict(zip(TRAINED, ("none", "train", "train", "slide", "none"), strict=True))


def trained(names=TRAINED, blocks=()):
    found = []
    for name in names:
        model = MODELS[name].load_class()(**TRAINED[name])
        for buffer in model.buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
        model.standardizer = Standardizer.fit(HOW[name], torch.randn(9, 16) * 3 + 1, blocks)
        found.append((name, model.eval(), TRAINED[name]))
    return found


def expected(members, x, code="PRAD"):
    coords = torch.rand(len(x), 2)
    predictions = [model.predict(x, code, coords) for _, model, _ in members]
    return coords, torch.stack(predictions).double().mean(0)


@pytest.mark.parametrize("blocks", [(), (12, 4)])
def test_it_is_the_mean_of_its_members_saved_and_not(tmp_path, blocks):
    members, x = trained(blocks=blocks), torch.randn(30, 16)
    coords, mean = expected(members, x)
    model, arguments = Average.of(members)
    assert isinstance(model.head, Direct)
    assert model.uses_coords
    models.save(model, "average", arguments, tmp_path)
    loaded = models.load(tmp_path)
    for average in (model, loaded):
        found = average.predict(x, "PRAD", coords)
        torch.testing.assert_close(found.double(), mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.predict(x, "PRAD", coords), loaded.predict(x, "PRAD", coords))
    assert Outputs.of(loaded.head).is_finite()


def test_packed_slides_are_standardized_each_by_itself():
    model, _ = Average.of(trained(["histoprism", "mlp"]))
    slides = [torch.randn(n, 16) * n for n in (9, 4)]
    apart = [model(x, torch.tensor([code])) for code, x in enumerate(slides)]
    packed = Batch(torch.cat(slides), torch.tensor([0, 1]), torch.tensor([0] * 9 + [1] * 4))
    torch.testing.assert_close(model.hidden(packed), torch.cat(apart))


def test_cancers_are_those_of_the_members():
    model, _ = Average.of(trained(["mlp", "histoprism"]))
    assert model.cancers == ["IDC", "PRAD"]
    assert Average.of(trained(["mlp"]))[0].cancers is None
    x = torch.randn(5, 16)
    assert not torch.equal(model.predict(x, "PRAD"), model.predict(x, "IDC"))
    with pytest.raises(InputError, match="does not know the cancer code 'COAD'"):
        model.predict(x, "COAD")
    one, other = trained(["histoprism"]) * 2
    other = (*other[:2], other[2] | {"cancers": ["PRAD", "IDC"]})
    with pytest.raises(InputError, match="know different cancers"):
        Average.of([one, other])


def test_an_average_of_nothing_is_refused():
    with pytest.raises(InputError, match="at least one member"):
        Average(16, 7, [])


def test_a_damaged_description_is_refused(tmp_path):
    model, arguments = Average.of(trained(["mlp", "ridge-by-gene"]))
    models.save(model, "average", arguments, tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["arguments"]["members"][0]["standardize"]
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="description of a model"):
        models.load(tmp_path)
    about["arguments"]["members"] = about["arguments"]["members"][1:]
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="does not fit this model"):
        models.load(tmp_path)
