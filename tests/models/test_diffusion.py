import math

import pytest
import torch

from histokit.models.diffusion import Schedule, sinusoid, variational_bits

FULL = Schedule.linear()


def test_schedule_is_the_published_one():
    beta = FULL.beta
    assert len(FULL) == 1000
    assert float(beta[0]) == pytest.approx(1e-4)
    assert float(beta[-1]) == pytest.approx(0.02)
    torch.testing.assert_close(beta.diff(), torch.full((999,), 0.0199 / 999).double())
    assert float(FULL.alpha_bar[-1]) == pytest.approx(4.04e-5, rel=0.01)
    assert FULL.posterior_variance[0] == FULL.posterior_variance[1]


@pytest.mark.parametrize("steps", [2, 25, 50, 1000])
def test_respaced_schedules_are_the_full_one_at_the_kept_steps(steps):
    few = FULL.respaced(steps)
    assert len(few) == steps
    assert few.times[[0, -1]].tolist() == [0, 999]
    assert (few.times.diff() > 0).all()
    assert torch.equal(few.alpha_bar, FULL.alpha_bar[few.times])
    torch.testing.assert_close((1 - few.beta).cumprod(0), FULL.alpha_bar[few.times])
    assert (few.posterior_variance[1:] < few.beta[1:]).all()


def test_noise_is_undone():
    data, noise = torch.randn(2, 5, 3, dtype=torch.float64)
    step = torch.tensor([0, 3, 500, 998, 999])
    noisy = FULL.noised(data, step, noise)
    torch.testing.assert_close(FULL.data_from(noisy, step, noise), data)
    torch.testing.assert_close(FULL.noised(data, 500, noise)[2], noisy[2])
    assert float(noisy[4].sub(noise[4]).abs().max()) < 0.05


def test_posterior_is_bayes_rule():
    """Of x_{t-1} where x_0 and x_t are known, on a grid of values."""
    step, data, noisy = 40, 0.7, -0.2
    grid = torch.linspace(-2, 3, 200_001, dtype=torch.float64)
    before, beta = FULL.alpha_bar_before[step], FULL.beta[step]
    log = -((grid - before.sqrt() * data) ** 2) / (2 * (1 - before))
    log = log - (noisy - (1 - beta).sqrt() * grid) ** 2 / (2 * beta)
    share = log.softmax(0)
    mean = (share * grid).sum()
    values = (torch.tensor([[v]], dtype=torch.float64) for v in (data, noisy))
    found = FULL.posterior_mean(*values, step)
    torch.testing.assert_close(found[0, 0], mean)
    spread = (share * (grid - mean) ** 2).sum()
    torch.testing.assert_close(FULL.posterior_variance[step], spread)


def test_variances_stay_between_their_bounds():
    step = torch.tensor([0, 1, 400, 999])
    coefficient = torch.tensor([[-1.0, 0.0, 1.0]] * 4, dtype=torch.float64)
    variance = FULL.log_variance(coefficient, step).exp()
    torch.testing.assert_close(variance[:, 0], FULL.posterior_variance[step])
    torch.testing.assert_close(variance[:, 2], FULL.beta[step])
    torch.testing.assert_close(variance[:, 1], (variance[:, 0] * variance[:, 2]).sqrt())
    assert (variance[1:, 0] < variance[1:, 2]).all()


def test_bits_are_the_divergence_of_two_gaussians():
    data, noise, mean = torch.randn(3, 3, 4, dtype=torch.float64)
    step = torch.tensor([5, 300, 999])
    noisy = FULL.noised(data, step, noise)
    log_variance = FULL.log_variance(torch.rand(3, 4, dtype=torch.float64), step)
    found = variational_bits(FULL, data, noisy, step, mean, log_variance)
    true = torch.distributions.Normal(
        FULL.posterior_mean(data, noisy, step), FULL.posterior_variance[step].sqrt()[:, None]
    )
    ours = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(true, ours) / math.log(2)
    torch.testing.assert_close(found, expected)


def test_bits_of_the_last_step_are_the_density_of_the_data():
    data, noise, mean = torch.randn(3, 2, 4, dtype=torch.float64)
    step = torch.zeros(2, dtype=torch.int64)
    noisy, log_variance = FULL.noised(data, step, noise), torch.full((2, 4), -9.0).double()
    found = variational_bits(FULL, data, noisy, step, mean, log_variance)
    density = torch.distributions.Normal(mean, math.exp(-4.5)).log_prob(data)
    torch.testing.assert_close(found, -density / math.log(2))


def test_right_reversals_cost_nothing():
    data, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    step = torch.tensor([1, 300, 999])
    noisy = FULL.noised(data, step, noise)
    mean = FULL.posterior_mean(data, noisy, step)
    log_variance = FULL.posterior_log_variance(step, data).expand(3, 4)
    bits = variational_bits(FULL, data, noisy, step, mean, log_variance)
    torch.testing.assert_close(bits, torch.zeros(3, 4).double())


def test_waves_are_cosines_first():
    waves = sinusoid(torch.tensor([0.0, 1.0, 700.0]))
    assert waves.shape == (3, 256)
    assert torch.equal(waves[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert float(waves[1, 0]) == pytest.approx(math.cos(1))
    assert float(waves[1, 128]) == pytest.approx(math.sin(1))
    assert float(waves[2, 64]) == pytest.approx(math.cos(700 / 100), abs=1e-4)
