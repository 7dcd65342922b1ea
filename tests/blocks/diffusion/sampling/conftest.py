"""Data whose score is known exactly: mixtures of Gaussians, as models for `sample`."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.diffusion.parametrisation import parametrisation
from ropewalk.blocks.diffusion.schedule import Schedule


@dataclass(eq=False)
class Mixture:
    """Σ_k w_k·N(m_k, v_k·I): its marginals under α and σ, and its exact denoiser, in float64."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def draw(self, count, generator=None):
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[which] + self.variances[which].sqrt()[:, None] * noise

    def at(self, schedule: Schedule, t: float) -> "Mixture":
        """The marginal at t, which is a mixture again."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return Mixture(
            self.weights, alpha * self.means, alpha.square() * self.variances + sigma.square()
        )

    def log_prob(self, x):
        squared = (x[:, None] - self.means).square().sum(-1)
        constant = -0.5 * x.shape[1] * (2 * torch.pi * self.variances).log()
        return (self.weights.log() + constant - 0.5 * squared / self.variances).logsumexp(-1)

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        centred = self.means - self.mean
        own = (self.weights @ self.variances) * torch.eye(len(self.mean), dtype=torch.float64)
        return own + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def denoiser(self, schedule: Schedule, name: str = "x0"):
        """E[x₀ | x_t] as a model of the parametrisation."""
        reading = parametrisation(name)

        def model(x, t, condition):
            alpha = schedule.alpha(t)[:, None].to(x)
            sigma = schedule.sigma(t)[:, None].to(x)
            x_t = x / reading.input(torch.ones_like(x), alpha, sigma)
            means, variances = self.means.to(x), self.variances.to(x)
            spread = alpha.square() * variances + sigma.square()
            away = x_t[:, None] - alpha[..., None] * means
            size = x.shape[1]
            logits = self.weights.to(x).log() - 0.5 * size * spread.log()
            share = (logits - 0.5 * away.square().sum(-1) / spread).softmax(-1)
            each = means + (alpha * variances / spread)[..., None] * away
            x0 = (share[..., None] * each).sum(1)
            return reading.from_x0(x0, x_t, alpha, sigma)

        return model


@pytest.fixture(scope="session")
def mixture():
    return Mixture(
        torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
        torch.tensor([[1.0, -0.5], [-1.0, 0.5], [0.2, 1.2]], dtype=torch.float64),
        torch.tensor([0.15, 0.3, 0.2], dtype=torch.float64),
    )


@pytest.fixture(scope="session")
def gaussian():
    """`gaussian(mean, variance)`: one component in one dimension."""

    def make(mean, variance):
        one = torch.ones(1, dtype=torch.float64)
        return Mixture(one, mean * one[:, None], variance * one)

    return make
