import pytest
import torch
from stem_samples import SMALL, features, model, one, stirred

from histokit import models
from histokit.models import StemModel
from histokit.models.base import Target
from histokit.models.stem_model import reversal


def taught(n=15, measured=None):
    random = torch.Generator().manual_seed(2)
    values = torch.rand(n, 7, generator=random, dtype=torch.float64)
    measured = torch.ones(7, dtype=torch.bool) if measured is None else measured
    return values, Target((values * measured).to_sparse_csr(), measured)


def test_loss_of_the_untrained_network_by_hand():
    stem = StemModel(**SMALL).double().train()
    values, target = taught(6)
    step, noise = torch.tensor([700, 3, 20, 999, 1, 0]), torch.randn(6, 7).double()
    stem._drawn = lambda count: (torch.arange(6), step, noise)
    loss = stem.loss(one(features(6)), [target])
    schedule = stem.schedule
    noisy = schedule.noised(values, step, noise)
    bits = torch.zeros(6, 7).double()
    guess = noisy / schedule.alpha_bar[step].sqrt()[:, None]  # of the data: no noise is told
    mean = schedule.posterior_mean(guess, noisy, step)
    variance = (schedule.beta * schedule.posterior_variance).sqrt()[step]  # halfway, of logs
    for i in range(5):
        true = torch.distributions.Normal(
            schedule.posterior_mean(values[i : i + 1], noisy[i : i + 1], step[i : i + 1]),
            schedule.posterior_variance[step[i]].sqrt(),
        )
        ours = torch.distributions.Normal(mean[i : i + 1], variance[i].sqrt())
        bits[i] = torch.distributions.kl_divergence(true, ours)[0]
    bits[5] = -torch.distributions.Normal(mean[5], variance[5].sqrt()).log_prob(values[5])
    expected = noise.square().mean() + bits.mean() / torch.tensor(2.0).log()
    torch.testing.assert_close(loss, expected)


def test_the_bound_teaches_the_variance_alone():
    stem = model().train()
    _, target = taught()
    torch.manual_seed(1)
    stem.loss(one(features(15)), [target]).backward()
    last = stem.network.final_layer.linear.weight.grad.clone()
    stem.zero_grad()
    torch.manual_seed(1)
    rows, step, noise = stem._drawn(15)
    data = target.values.to_dense()[rows]
    noisy = stem.schedule.noised(data, step, noise.double())
    told = stem.network(noisy, step, stem.network.label_embed(features(15)[rows]))
    (told[..., 0] - noise).square().mean().backward()
    of_noise = stem.network.final_layer.linear.weight.grad
    torch.testing.assert_close(last[0], of_noise[0])
    assert not of_noise[1].any()
    assert last[1].any()


def test_unmeasured_genes_are_no_tokens():
    measured = torch.ones(7, dtype=torch.bool).index_fill(0, torch.tensor([2, 5]), False)
    values, target = taught(measured=measured)
    strange = Target(torch.where(measured, values, 99.0).to_sparse_csr(), measured)
    for mode in (True, False):
        stem, losses = model().train(mode), []
        for given in (target, strange):
            torch.manual_seed(4)
            losses.append(stem.loss(one(features(15)), [given]))
        assert torch.equal(*losses)


def test_validation_repeats_itself():
    stem, (_, target) = model(), taught()
    first = stem.loss(one(features(15)), [target])
    torch.manual_seed(99)
    assert torch.equal(stem.loss(one(features(15)), [target]), first)
    rows, step, _ = stem._fixed(15)
    assert len(rows) == 10
    assert (rows.diff() > 0).all()
    assert sorted(step.tolist()) == list(range(50, 1000, 100))


def test_a_step_draws_spots_of_the_slide():
    stem = model(stem_batch=10)
    rows, step, noise = stem._drawn(15)
    assert len({*rows.tolist()}) == len(step) == len(noise) == 10
    assert len(stem._drawn(4)[0]) == 4


@pytest.mark.parametrize("n", [1, 15])
def test_gradients_are_finite(n):
    stem = model().train()
    stem.loss(one(features(n)), [taught(n)[1]]).backward()
    for name, parameter in stem.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in stem.ema.parameters())


def test_running_mean_follows_as_it_is_told():
    for warms_up, left in ((True, [2 / 11, 3 / 12]), (False, [0.9, 0.9])):
        stem = model(stem_ema=0.9, stem_ema_warm_up=warms_up).train()
        bias, mean = stem.network.final_layer.linear.bias, stem.ema.module.final_layer.linear.bias
        values = []
        for value in (1.0, 2.0, 3.0):
            torch.nn.init.constant_(bias, value)
            stem.after_step()
            values.append(float(mean[0]))
        second = left[0] * 1 + (1 - left[0]) * 2
        third = left[1] * second + (1 - left[1]) * 3
        assert values == pytest.approx([1.0, second, third])


def test_reversal_of_the_truth_is_the_posterior():
    stem, (data, _) = model(), taught(5)
    step, noise = torch.tensor([0, 1, 70, 500, 999]), torch.randn(5, 7).double()
    noisy = stem.schedule.noised(data, step, noise)
    told = torch.stack([noise, torch.full_like(noise, -1)], dim=2)
    mean, log_variance = reversal(stem.schedule, noisy, step, told)
    torch.testing.assert_close(mean, stem.schedule.posterior_mean(data, noisy, step))
    expected = stem.schedule.posterior_variance[step].log()[:, None].expand(5, 7)
    torch.testing.assert_close(log_variance, expected)


def test_saved_models_draw_the_same(tmp_path):
    stem = StemModel(**SMALL).eval()
    stirred(stem.ema.module)
    stem.start_at(torch.rand(7))
    models.save(stem, "stem", SMALL, tmp_path)
    x = torch.randn(9, 12)
    assert torch.equal(models.load(tmp_path).predict(x, ""), stem.predict(x, ""))
