import dataclasses

import numpy as np
import pytest
import torch

from histokit import models
from histokit.core.errors import InputError
from histokit.models import NearestSpots, bank
from histokit.models.bank import nearest_keys, unit_rows
from histokit.models.base import Batch
from histokit.models.registry import MODELS
from histokit.models.retrieval import WEIGHTS


@dataclasses.dataclass
class Slide:
    slide_id: str
    features: torch.Tensor
    target: torch.Tensor
    measured: torch.Tensor
    coords: torch.Tensor | None = None


def slide(name, spots, dim=6, genes=7, unmeasured=(), seed=0):
    random = torch.Generator().manual_seed(seed)
    y = torch.rand(spots, genes, generator=random)
    y = torch.where(y > 0.5, y, 0)
    measured = torch.ones(genes, dtype=torch.bool)
    measured[list(unmeasured)] = False
    y[:, ~measured] = 0
    x = torch.randn(spots, dim, generator=random)
    return Slide(name, x, y.to_sparse_csr(), measured)


def nearest(*slides, **options):
    model = NearestSpots(slides[0].features.shape[1], slides[0].target.shape[1], **options)
    model.remember(slides)
    return model


def expression(*slides):
    return torch.cat([s.target.to_dense() for s in slides])


def test_nearest_keys_are_those_of_a_full_sort(monkeypatch):
    monkeypatch.setattr(bank, "BANK_ROWS", 7)
    monkeypatch.setattr(bank, "QUERIES", 3)
    query, keys = torch.randn(10, 5), torch.randn(40, 5)
    cosine = unit_rows(query) @ unit_rows(keys).T
    for k in (1, 6, 40, 60):
        expected = cosine.argsort(dim=1, descending=True, stable=True)[:, :k]
        assert torch.equal(nearest_keys(query, keys, k), expected)


@pytest.mark.parametrize("rows", [2, 5, 100])
def test_of_ties_the_first_of_the_bank_are_taken(monkeypatch, rows):
    monkeypatch.setattr(bank, "BANK_ROWS", rows)
    keys = torch.tensor([[0.0, 1], [2, 0], [1, 0], [-1, 0], [3, 0], [0, 0]])
    query = torch.tensor([[5.0, 0], [-1, 0], [0, 0]])
    expected = [[1, 2, 4, 0, 5, 3], [3, 0, 5, 1, 2, 4], [0, 1, 2, 3, 4, 5]]
    assert nearest_keys(query, keys, 6).tolist() == expected
    assert nearest_keys(query, keys, 2).tolist() == [row[:2] for row in expected]


def test_chunks_bound_the_memory_and_change_nothing(monkeypatch):
    one, other = slide("a", 50), slide("b", 30, seed=1)
    x, seen = torch.randn(23, 6), []
    expected = nearest(one, other, retrieval_k=9).predict(x, "")
    monkeypatch.setattr(bank, "BANK_ROWS", 11)
    monkeypatch.setattr(bank, "QUERIES", 4)
    plain = torch.Tensor.topk

    def topk(tensor, k):
        seen.append(tensor.shape)
        return plain(tensor, k)

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    torch.testing.assert_close(nearest(one, other, retrieval_k=9).predict(x, ""), expected)
    assert max(shape[0] for shape in seen) == 4
    assert max(shape[1] for shape in seen) == 11 + 9


def test_k_of_one_returns_the_spot_itself():
    one, other = slide("a", 20), slide("b", 15, seed=1)
    model = nearest(one, other, retrieval_k=1)
    torch.testing.assert_close(model.predict(other.features, ""), expression(other))
    index, weight = model.retrieve(other.features)
    assert index[:, 0].tolist() == list(range(20, 35))
    assert weight.unique().tolist() == [1]
    assert model.bank.slides == ["a", "b"]
    assert model.bank.slide[index[:, 0]].unique().tolist() == [1]
    assert model.bank.row[index[:, 0]].tolist() == list(range(15))


@pytest.mark.parametrize("k", [35, 1000])
def test_the_whole_bank_is_the_training_mean(k):
    one, other = slide("a", 20), slide("b", 15, seed=1)
    model = nearest(one, other, retrieval_k=k)
    mean = expression(one, other).mean(0)
    torch.testing.assert_close(model.predict(torch.randn(4, 6), ""), mean.expand(4, -1))
    torch.testing.assert_close(model.bank.mean, mean)
    assert model.retrieve(torch.randn(4, 6))[0].shape == (4, 35)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_order_of_bank_and_patches_changes_nothing(weights):
    whole, x = slide("a", 40), torch.rand(9, 6)
    whole.features = whole.features.abs()  # loki needs cosines that are positive
    order, again = torch.randperm(40), torch.randperm(9)
    shuffled = dataclasses.replace(
        whole,
        features=whole.features[order],
        target=whole.target.to_dense()[order].to_sparse_csr(),
    )
    options = {"retrieval_k": 5, "retrieval_weights": weights}
    expected = nearest(whole, **options).predict(x, "")
    torch.testing.assert_close(nearest(shuffled, **options).predict(x, ""), expected)
    torch.testing.assert_close(nearest(whole, **options).predict(x[again], ""), expected[again])
    alone = nearest(whole, **options).predict(x[:1], "")
    torch.testing.assert_close(alone, expected[:1])


def test_weights_by_hand():
    x = torch.tensor([[1.0, 0], [2, 0], [4, 1]])
    y = torch.eye(3).to_sparse_csr()  # a prediction is the weights themselves
    three = Slide("a", x, y, torch.ones(3, dtype=torch.bool))
    query = torch.tensor([[2.0, 1]])
    found = {w: nearest(three, retrieval_weights=w).predict(query, "")[0] for w in WEIGHTS}
    torch.testing.assert_close(found["mean"], torch.full((3,), 1 / 3))
    e = np.exp([-2.0, -1, -4])
    torch.testing.assert_close(found["softmax"], torch.tensor(e / e.sum()).float())
    w = np.array([1 / 4, 1, 1 / 4])  # distances 2, 1, 2
    torch.testing.assert_close(found["l1"], torch.tensor(w / w.sum()).float())
    cosine = np.array([2, 2, 9 / 17**0.5]) / 5**0.5
    torch.testing.assert_close(found["loki"], torch.tensor(cosine / cosine.sum()).float())
    index, weight = nearest(three, retrieval_weights="loki", retrieval_k=2).retrieve(query)
    assert index.tolist() == [[2, 0]]
    torch.testing.assert_close(weight[0], found["loki"][[2, 0]])


def test_l1_of_spots_at_no_distance():
    x = torch.tensor([[1.0, 1], [2, 2], [1, 1]])
    three = Slide("a", x, torch.eye(3).to_sparse_csr(), torch.ones(3, dtype=torch.bool))
    prediction = nearest(three, retrieval_weights="l1").predict(x[:1], "")
    torch.testing.assert_close(prediction, torch.tensor([[0.5, 0, 0.5]]))


@pytest.mark.parametrize("weights", ["mean", "softmax"])
def test_genes_are_weighed_over_the_slides_that_measured_them(weights):
    one = slide("a", 12, unmeasured=(1, 2))
    other = slide("b", 12, unmeasured=(2, 3), seed=1)
    model = nearest(one, other, retrieval_k=6, retrieval_weights=weights)
    x = torch.randn(5, 6)
    index, weight = model.retrieve(x)
    y, known = expression(one, other), torch.stack([one.measured, other.measured])
    mean = expression(one, other).sum(0) / (12 * known.sum(0)).clamp(min=1)
    torch.testing.assert_close(model.bank.mean, mean)
    for n, prediction in enumerate(model.predict(x, "")):
        for gene in range(7):
            knows = known[model.bank.slide[index[n]].long(), gene]
            values, w = y[index[n], gene][knows], weight[n][knows]
            expected = (w * values).sum() / w.sum() if knows.any() else mean[gene]
            assert prediction[gene].item() == pytest.approx(float(expected), abs=1e-6)


def test_where_none_of_the_k_measured_a_gene_the_mean_is_predicted():
    one, other = slide("a", 10, unmeasured=(0,)), slide("b", 10, seed=1)
    model = nearest(one, other, retrieval_k=1)
    predicted = model.predict(one.features, "")
    torch.testing.assert_close(predicted[:, 0], expression(other)[:, 0].mean().expand(10))
    torch.testing.assert_close(predicted[:, 1:], expression(one)[:, 1:])


def test_loki_is_the_cosine_weighted_mean_of_the_bank(monkeypatch):
    one, other = slide("a", 20, unmeasured=(1, 2)), slide("b", 15, unmeasured=(2,), seed=1)
    one.features, other.features, x = one.features.abs(), other.features.abs(), torch.rand(9, 6)
    monkeypatch.setattr(bank, "BANK_ROWS", 8)
    model = nearest(one, other, retrieval_weights="loki")
    weight = unit_rows(x) @ unit_rows(torch.cat([one.features, other.features])).T
    known = torch.cat([s.measured.double().expand(len(s.features), -1) for s in (one, other)])
    expected = (weight @ expression(one, other).double()) / (weight @ known)
    expected[:, 2] = 0
    torch.testing.assert_close(model.predict(x, ""), expected.float())
    with pytest.raises(InputError, match="loki weighs every training spot by its cosine"):
        model.predict(-x, "")


def test_an_empty_bank_predicts_the_training_mean_to_the_bit():
    model, mean = NearestSpots(6, 4), torch.rand(4, dtype=torch.float64)
    model.start_at(mean)
    assert torch.equal(model.predict(torch.randn(3, 6), "IDC"), mean.float().expand(3, -1))


@pytest.mark.parametrize("unmeasured", [(), (1,)])
def test_features_that_are_not_finite_show(unmeasured):
    model = nearest(slide("a", 20, unmeasured=unmeasured), retrieval_k=2)
    x = torch.randn(3, 6)
    x[1, 2] = torch.nan
    prediction = model.predict(x, "")
    assert prediction[1].isnan().all()
    assert prediction[[0, 2]].isfinite().all()


def test_packed_slides_are_as_apart_and_twice_the_same():
    model = nearest(slide("a", 20), retrieval_k=3).eval()
    x = torch.randn(8, 6)
    index = torch.tensor([0] * 5 + [1] * 3)
    packed = model.hidden(Batch(x, torch.tensor([-1, -1]), index))
    assert torch.equal(packed, model.hidden(Batch(x, torch.tensor([-1, -1]), index)))
    torch.testing.assert_close(packed[:5], model.predict(x[:5], ""))
    torch.testing.assert_close(packed[5:], model.predict(x[5:], ""))


def test_it_saves_and_loads_the_bank(tmp_path):
    one, other = slide("a", 20, unmeasured=(1,)), slide("b", 15, seed=1)
    arguments = {"input_dim": 6, "num_genes": 7, "retrieval_k": 4, "retrieval_weights": "l1"}
    model = NearestSpots(**arguments)
    arguments |= model.remember([one, other])
    models.save(model, "knn", arguments, tmp_path)
    loaded, x = models.load(tmp_path), torch.randn(5, 6)
    assert torch.equal(loaded.predict(x, ""), model.predict(x, ""))
    assert loaded.bank.slides == ["a", "b"]
    assert len(loaded.bank) == 35
    with pytest.raises(InputError, match="features of 6 dimensions"):
        loaded.predict(torch.randn(5, 7), "")


def test_a_bank_is_replaced_by_the_next():
    model = nearest(slide("a", 20), slide("b", 15, seed=1))
    model.remember([slide("c", 4, seed=2)])
    assert (model.bank.slides, len(model.bank)) == (["c"], 4)


def test_unknown_weights_are_named():
    with pytest.raises(InputError, match="one of mean, softmax, l1, loki, got 'best'"):
        NearestSpots(6, 4, retrieval_weights="best")


def test_presets_hold_the_published_k():
    assert {v["retrieval_k"] for n in ("knn", "bleep") for v in MODELS[n].presets.values()} == {50}
