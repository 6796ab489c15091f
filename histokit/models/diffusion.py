"""Gaussian diffusion with a learned variance, and how a network is told the time.

Sources: Ho et al. 2020, Denoising Diffusion Probabilistic Models, and Nichol and Dhariwal 2021,
Improved Denoising Diffusion Probabilistic Models, whose equations are named below.
"""

from __future__ import annotations

import dataclasses
import math

import torch

STEPS = 1000
BETAS = (1e-4, 0.02)  # first and last, in equal steps


def sinusoid(time: torch.Tensor, size: int = 256) -> torch.Tensor:
    """Times (...,) to waves (..., size), cosines first; periods from 2 pi to 20,000 pi."""
    half = size // 2
    rate = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / half))
    angle = time[..., None] * rate.to(time)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How much noise each step of a diffusion adds; step 0 is the one next to the data.

    Attributes:
        times: (S,) int64, the step of the full schedule that a network is told.
        alpha_bar: (S,) float64, share of the data's variance that is left after the step.
    """

    times: torch.Tensor
    alpha_bar: torch.Tensor

    @classmethod
    def linear(cls, steps: int = STEPS) -> Schedule:
        """Variances that grow linearly from 1e-4 to 0.02 (Ho et al., section 4)."""
        beta = torch.linspace(*BETAS, steps, dtype=torch.float64)
        return cls(torch.arange(steps), (1 - beta).cumprod(0))

    def respaced(self, steps: int) -> Schedule:
        """So many of the steps, spread evenly, the first and the last among them (N and D, 4)."""
        kept = torch.linspace(0, len(self) - 1, steps, dtype=torch.float64).round().long()
        return Schedule(self.times[kept], self.alpha_bar[kept])

    def __len__(self) -> int:
        return len(self.times)

    @property
    def alpha_bar_before(self) -> torch.Tensor:
        """(S,) ``alpha_bar`` of the step nearer to the data, 1 before the first."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @property
    def beta(self) -> torch.Tensor:
        """(S,) variance of the noise that a step adds: the largest variance of its reversal."""
        return 1 - self.alpha_bar / self.alpha_bar_before

    @property
    def posterior_variance(self) -> torch.Tensor:
        """(S,) variance of a step's reversal where the data are known (Ho et al., Eq. 7).

        Zero at step 0, which therefore takes that of step 1.
        """
        variance = self.beta * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)
        return torch.cat([variance[1:2], variance[1:]])

    def noised(self, data: torch.Tensor, step, noise: torch.Tensor) -> torch.Tensor:
        """Data (n, G) after ``step``, an int or (n,) (Ho et al., Eq. 4)."""
        left = self._at(self.alpha_bar, step, data)
        return left.sqrt() * data + (1 - left).sqrt() * noise

    def data_from(self, noisy: torch.Tensor, step, noise: torch.Tensor) -> torch.Tensor:
        """Undo ``noised``."""
        left = self._at(self.alpha_bar, step, noisy)
        return (noisy - (1 - left).sqrt() * noise) / left.sqrt()

    def posterior_mean(self, data: torch.Tensor, noisy: torch.Tensor, step) -> torch.Tensor:
        """Mean (n, G) of the reversal of ``step`` where the data are known (Ho et al., Eq. 7)."""
        of_data = self.alpha_bar_before.sqrt() * self.beta / (1 - self.alpha_bar)
        kept = (1 - self.beta).sqrt() * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)
        return self._at(of_data, step, data) * data + self._at(kept, step, noisy) * noisy

    def posterior_log_variance(self, step, like: torch.Tensor) -> torch.Tensor:
        """Log variance of that reversal, as a tensor that goes with ``like`` (n, G)."""
        return self._at(self.posterior_variance.log(), step, like)

    def log_variance(self, coefficient: torch.Tensor, step) -> torch.Tensor:
        """Coefficients (n, G), -1 to 1, to log variances between the bounds (N and D, Eq. 15)."""
        share = (coefficient + 1) / 2
        low = self.posterior_log_variance(step, coefficient)
        return share * self._at(self.beta.log(), step, coefficient) + (1 - share) * low

    @staticmethod
    def _at(values: torch.Tensor, step, like: torch.Tensor) -> torch.Tensor:
        step = torch.as_tensor(step)
        return values[step.cpu()].to(like).reshape(*step.shape, *[1] * (like.ndim - step.ndim))


def variational_bits(
    schedule: Schedule,
    data: torch.Tensor,
    noisy: torch.Tensor,
    step: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
) -> torch.Tensor:
    """A step's term of the variational bound, in bits for each value (N and D, Eq. 4 to 7).

    The divergence of the reversal from the posterior. At step 0 the negative log density of the
    data: expression has no 256 levels whose probabilities images are scored by there.

    Args:
        schedule: the full one.
        data: (n, G) x_0.
        noisy: (n, G) x_t.
        step: (n,) int64 t.
        mean: (n, G) of the reversal.
        log_variance: (n, G) of the reversal.

    Returns:
        (n, G).
    """
    true_mean = schedule.posterior_mean(data, noisy, step)
    true_log = schedule.posterior_log_variance(step, data)
    ratio = log_variance - true_log
    away = (true_mean - mean).square() * (-log_variance).exp()
    divergence = 0.5 * (ratio - 1 + (-ratio).exp() + away)
    missed = (data - mean).square() * (-log_variance).exp()
    density = 0.5 * (math.log(2 * math.pi) + log_variance + missed)
    return torch.where((step == 0)[:, None], density, divergence) / math.log(2)
