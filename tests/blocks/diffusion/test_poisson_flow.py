"""Poisson flow: the law of its noise, its Gaussian limit, and renewing that keeps the law."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ropewalk.blocks.diffusion import (
    Cosine,
    Gaussian,
    Karras,
    PoissonFlow,
    RectifiedFlow,
    universal_step,
)

SIZES = [(3, 1.0), (8, 5.0), (1, 2.5), (64, 128.0)]
"""N and D."""


def shares(noise: Tensor, D: float) -> Tensor:
    """β of each sample: |ε|² = D·β/(1 − β)."""
    squared = noise.double().square().flatten(1).sum(1)
    return squared / (D + squared)


def same_law(values: Tensor, size: int, D: float) -> float:
    """The p-value of the radii under β ~ Beta(N/2, D/2)."""
    return float(stats.kstest(values.numpy(), stats.beta(size / 2, D / 2).cdf).pvalue)


@pytest.mark.parametrize(("size", "D"), SIZES)
def test_the_radius_has_the_law_of_the_paper(size: int, D: float) -> None:
    noise = PoissonFlow(D, Cosine()).fresh(torch.empty(20_000, size, dtype=torch.float64))
    assert same_law(shares(noise, D), size, D) > 1e-3
    assert same_law(shares(noise, 1.5 * D), size, 1.5 * D) < 1e-3


@pytest.mark.parametrize(("size", "D"), SIZES)
def test_the_direction_is_uniform_and_independent_of_the_radius(size: int, D: float) -> None:
    noise = PoissonFlow(D, Cosine()).fresh(torch.empty(20_000, size, dtype=torch.float64))
    unit = noise / noise.norm(dim=1, keepdim=True)
    assert (unit.mean(0).abs() < 5 / math.sqrt(20_000 * size)).all()
    second = unit.T @ unit / 20_000
    assert (second - torch.eye(size) / size).abs().max() < 5 / (20_000**0.5 * size)
    far = shares(noise, D) > shares(noise, D).median()
    assert (unit[far].mean(0).abs() < 5 / math.sqrt(10_000 * size)).all()


def test_many_dimensions_are_gaussian() -> None:
    x0 = torch.empty(50, 12, dtype=torch.float64)

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    exact = Gaussian(Karras()).fresh(x0, generator=seeded())
    assert torch.equal(PoissonFlow(math.inf, Karras()).fresh(x0, generator=seeded()), exact)
    for D in (1e6, 1e12):
        near = PoissonFlow(D, Karras()).fresh(x0, generator=seeded())
        assert (near / exact - 1).abs().max() < 10 / D**0.5
    # And so is what is done with it.
    limit, gaussian = PoissonFlow(math.inf, Karras()), Gaussian(Karras())
    steps = [
        universal_step(each, exact, exact.cos(), 0.5, 0.3, 0.7, generator=seeded())
        for each in (limit, gaussian)
    ]
    assert torch.equal(*steps)


@pytest.mark.parametrize(("size", "D"), SIZES)
@pytest.mark.parametrize("rho", [0.3, 0.8, 1.0])
def test_renewing_keeps_the_law(size: int, D: float, rho: float) -> None:
    process = PoissonFlow(D, RectifiedFlow())
    noise = process.fresh(torch.empty(20_000, size, dtype=torch.float64))
    renewed = process.renew(noise, rho)
    assert same_law(shares(renewed, D), size, D) > 1e-3
    # The part √(1 − ρ²) is kept: both are Gaussian with one precision, so directions correlate so.
    cosine = (noise * renewed).sum(1) / (noise.norm(dim=1) * renewed.norm(dim=1))
    if size == 64:
        assert cosine.mean() == pytest.approx(math.sqrt(1 - rho**2), abs=0.02)


def test_mixing_in_independent_heavy_tails_would_not_keep_it() -> None:
    process = PoissonFlow(1.0, RectifiedFlow())
    x0 = torch.empty(20_000, 3, dtype=torch.float64)
    naive = 0.6 * process.fresh(x0) + 0.8 * process.fresh(x0)
    assert same_law(shares(naive, 1.0), 3, 1.0) < 1e-3


def test_steps_keep_the_marginal_law() -> None:
    """With the true x₀ the state at s has the law of F_s, whatever is renewed."""
    process = PoissonFlow(4.0, RectifiedFlow())
    x0 = torch.full((20_000, 5), 0.7, dtype=torch.float64)
    x_t = process.corrupt(x0, process.fresh(x0), 0.9)
    for rho in (0.0, 0.5, 1.0):
        x_s = universal_step(process, x_t, x0, 0.9, 0.4, rho)
        assert same_law(shares((x_s - 0.6 * x0) / 0.4, 4.0), 5, 4.0) > 1e-3
