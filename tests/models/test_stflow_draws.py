import copy

import pytest
import torch
from stflow_samples import DRAWN, SMALL, model, one, places, predicted, slide

from histokit import models
from histokit.core.errors import InputError
from histokit.models import STFlow, STFlowModel
from histokit.models.base import Batch, Target


class Still(torch.nn.Module):
    """Stands in for the network: predicts one value, and notes what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def edges(self, near):
        return []

    def forward(self, features, index, edges, y, time):
        self.asked.append((float(time), y.clone()))
        return torch.full_like(y, 5.0)


def test_steps_are_eulers_and_the_last_prediction_is_the_draw():
    still, (x, coords) = Still(), slide(4)
    flow = model(samples=1, stflow_prior="gaussian")
    flow.network = still
    assert torch.equal(flow.hidden(one(x, coords)), torch.full((4, 7), 5.0).double())
    times, states = zip(*still.asked, strict=True)
    assert times == pytest.approx((0.01, 0.2575, 0.505, 0.7525))
    assert flow.network_calls == len(times) == 4
    start = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).double()
    for time, state in zip(times, states, strict=True):  # the straight path from start to end
        left = (1 - time) / 0.99
        torch.testing.assert_close(state, start * left + 5 * (1 - left))


def test_evaluation_is_the_seeds_and_never_the_global_generators():
    x, coords = slide(30)
    flow = model()
    before = torch.get_rng_state()
    first = flow.hidden(one(x, coords))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(flow.hidden(one(x, coords)), first)
    assert not torch.allclose(model(sample_seed=1).hidden(one(x, coords)), first)


def test_packed_slides_are_drawn_as_each_alone():
    flow, sizes = model(), (20, 1, 9)
    alone = [slide(n, seed) for seed, n in enumerate(sizes)]
    x, coords = (torch.cat(parts) for parts in zip(*alone, strict=True))
    index = torch.repeat_interleave(torch.tensor(sizes))
    whole = flow.hidden(Batch(x, torch.tensor([-1] * 3), index, coords))
    spread = flow.behind(whole).spread
    parts = zip(whole.split(sizes), spread.split(sizes), alone, strict=True)
    for mean, deviation, (features, where) in parts:
        expected = flow.hidden(one(features, where))
        torch.testing.assert_close(mean, expected)
        torch.testing.assert_close(deviation, flow.behind(expected).spread)


def test_mean_and_spread_are_those_of_the_draws():
    (x, coords), flow = slide(15), model(samples=5)
    mean = flow.hidden(one(x, coords))
    random = torch.Generator().manual_seed(0)
    drawn = flow.draws(one(x, coords), random)
    every = torch.stack([next(drawn) for _ in range(5)]).detach()
    assert not torch.allclose(every[0], every[1])
    torch.testing.assert_close(mean, every.mean(0))
    torch.testing.assert_close(flow.behind(mean).first, every[0])
    torch.testing.assert_close(flow.behind(mean).spread, every.std(0))
    torch.testing.assert_close(model(samples=1).hidden(one(x, coords)), every[0])
    single = model(samples=1)
    assert single.behind(single.hidden(one(x, coords))).spread.isnan().all()


def test_spread_of_another_prediction_is_refused():
    flow = model()
    first = flow.hidden(one(*slide(6)))
    with pytest.raises(RuntimeError, match="not the model's last"):
        model().behind(first)
    flow.hidden(one(*slide(6, 2)))
    with pytest.raises(RuntimeError, match="not the model's last"):
        flow.behind(first)


def test_more_draws_come_nearer_to_their_mean():
    drawn = model().draws(one(*slide(12)), torch.Generator().manual_seed(3))
    with torch.no_grad():
        every = torch.stack([next(drawn) for _ in range(160)])
    truth = every.mean(0)
    of_eight = every.unflatten(0, (20, 8)).mean(1)
    ratio = (of_eight - truth).square().mean() / (every - truth).square().mean()
    assert float(ratio) == pytest.approx(1 / 8, rel=0.3)


def test_one_step_from_zero_is_a_plain_regression():
    x, coords = slide(20)
    plain = model(stflow_prior="zero", stflow_steps=1)
    expected = predicted(plain.network, x, coords, torch.zeros(20, 7).double(), 0.01)
    found = plain.hidden(one(x, coords))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(plain.behind(found).spread, torch.zeros(20, 7).double())
    values = torch.rand(20, 7, dtype=torch.float64)
    target = Target(values.to_sparse_csr(), torch.ones(7, dtype=torch.bool))
    expected = (expected - values).square().mean()
    for mode in (True, False):  # training asks what evaluation asks
        loss = plain.train(mode).loss(one(x, coords), [target])
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


# ---- losses ------------------------------------------------------------------------------------


def taught(n=20, seed=1, measured=None):
    values = torch.rand(n, 7, generator=torch.Generator().manual_seed(seed)).double()
    measured = torch.ones(7, dtype=torch.bool) if measured is None else measured
    return values, Target((values * measured).to_sparse_csr(), measured)


def test_loss_is_the_error_of_the_end_over_measured_genes():
    x, coords = slide(20)
    measured = torch.ones(7, dtype=torch.bool).index_fill(0, torch.tensor([2, 5]), False)
    values, target = taught(measured=measured)
    flow = model(stflow_prior="gaussian").train()
    torch.manual_seed(3)
    loss = flow.loss(one(x, coords), [target])
    torch.manual_seed(3)
    time, start = float(torch.rand(())), torch.randn(20, 7).double()
    y = torch.where(measured, (1 - time) * start + time * values, start)
    expected = (predicted(flow.network, x, coords, y, time) - values)[:, measured].square().mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_unmeasured_values_play_no_part():
    x, coords = slide(20)
    measured = torch.ones(7, dtype=torch.bool).index_fill(0, torch.tensor([2, 5]), False)
    values, target = taught(measured=measured)
    strange = Target(torch.where(measured, values, 99.0).to_sparse_csr(), measured)
    for mode in (True, False):
        flow, losses = model().train(mode), []
        for given in (target, strange):
            torch.manual_seed(4)
            losses.append(flow.loss(one(x, coords), [given]))
        assert torch.equal(*losses)


def test_validation_repeats_itself():
    x, coords = slide(20)
    flow, (_, target) = model(), taught()
    first = flow.loss(one(x, coords), [target])
    torch.manual_seed(99)
    assert torch.equal(flow.loss(one(x, coords), [target]), first)
    flow.train()
    assert not torch.equal(flow.loss(one(x, coords), [target]), flow.loss(one(x, coords), [target]))


def test_packed_loss_is_the_mean_of_the_slides():
    flow = model()
    (x, coords), (other, there) = slide(20), slide(9, 2)
    targets = [taught()[1], taught(9, 2)[1]]
    index = torch.repeat_interleave(torch.tensor([20, 9]))
    codes = torch.tensor([-1, -1])
    batch = Batch(torch.cat([x, other]), codes, index, torch.cat([coords, there]))
    alone = [flow.loss(one(*s), [t]) for s, t in zip(((x, coords), (other, there)), targets,
                                                     strict=True)]  # fmt: skip
    torch.testing.assert_close(flow.loss(batch, targets), torch.stack(alone).mean())


def test_crops_are_the_nearest_spots():
    flow, coords = model(stflow_crops=200), places(40)
    crops = list(flow._crop_rows(coords))
    assert len(crops) == 200
    sizes = {len(rows) for rows in crops}
    assert min(sizes) == 2
    assert max(sizes) < 40
    for rows in crops:
        assert (rows.diff() > 0).all()
        reach = torch.cdist(coords, coords[rows])
        ranked = reach.argsort(0)[: len(rows)]  # for each member as the middle, its nearest
        assert any(set(ranked[:, i].tolist()) == set(rows.tolist()) for i in range(len(rows)))
    assert next(iter(flow._crop_rows(coords[:1]))).tolist() == [0]


@pytest.mark.parametrize("n", [1, 2, 25])
def test_gradients_are_finite(n):
    flow = model(stflow_crops=2, dropout=0.2).train()
    flow.loss(one(*slide(n)), [taught(n)[1]]).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_published_dropout_also_drops_genes():
    x, coords = slide(30)
    for drops in (True, False):
        net = STFlow(12, 7, 16, 1, 0.3, output_dropout=drops).double().train()
        y = torch.rand(30, 7, dtype=torch.float64)
        dropped = (predicted(net, x, coords, y) == 0).double().mean()
        assert (dropped > 0.2) == drops


def test_start_is_the_mean():
    flow, mean = model(), torch.rand(7)
    flow.start_at(mean)
    found = flow.hidden(one(*slide(9)))
    torch.testing.assert_close(found, mean.double().expand(9, 7))


def test_saved_models_draw_the_same(tmp_path):
    arguments = DRAWN | {"stflow_prior": "gaussian", "sample_seed": 4}
    saved = STFlowModel(**arguments).eval()
    models.save(saved, "stflow", arguments, tmp_path)
    x, coords = torch.randn(9, 12), torch.rand(9, 2)
    loaded = models.load(tmp_path)
    assert torch.equal(loaded.predict(x, "", coords), saved.predict(x, "", coords))
    torch.testing.assert_close(copy.deepcopy(saved).predict(x, "", coords),
                               saved.predict(x, "", coords))  # fmt: skip


def test_places_are_needed():
    with pytest.raises(InputError, match="give its coordinates"):
        STFlowModel(**SMALL).predict(torch.randn(4, 12), "")
