"""Laws along the way: DDIM's marginals, Fokker–Planck for the SDEs, the W₂ bound on Gaussians."""

import math

import pytest
import torch

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow
from ropewalk.blocks.diffusion.solvers import SDE

COUNT = 20000
TEST_FUNCTIONS = {
    "x": lambda x: x,
    "x²": torch.square,
    "xy": lambda x: x.prod(-1),
    "cos": lambda x: torch.cos(2 * x),
    "tanh": lambda x: torch.tanh(3 * x.sum(-1)),
    "|x|": lambda x: x.norm(dim=-1),
}


def same_law(found, expected, slack):
    """Test functions agree within four standard errors of both samples, and a slack."""
    for name, function in TEST_FUNCTIONS.items():
        ours, theirs = function(found), function(expected)
        error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
        difference = (ours.mean(0) - theirs.mean(0)).abs()
        assert bool((difference < 4 * error + slack).all()), (name, difference, error)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("solver", ["euler", "renoise"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Karras()], ids=str)
def test_steps_keep_the_marginals_of_known_data(schedule, solver, eta):
    """With the true x₀ for x̂₀, x_s is α_s·x₀ + σ_s·ε with ε standard normal, whatever η and steps.

    That is the condition from which DDIM is derived (kexue.fm/archives/9181).
    """
    x0 = torch.randn(COUNT, 2, dtype=torch.float64)
    process = Gaussian(schedule, "x0")
    noise = torch.randn_like(x0)
    x_s = sample(
        lambda x, t, y: x0,
        process,
        x0.shape,
        times=[0.9, 0.5, 0.2],
        start=process.corrupt(x0, noise, 0.9),
        solver=solver,
        stochasticity=eta,
    )
    found = process.noise(x_s, x0, 0.2)
    same_law(found, torch.randn_like(found), 0.0)
    torch.testing.assert_close(
        torch.einsum("bi,bj->ij", found, x0) / COUNT,
        torch.zeros(2, 2, dtype=torch.float64),
        rtol=0,
        atol=4 / math.sqrt(COUNT),
    )
    if eta == 0:
        torch.testing.assert_close(found, noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "eta"),
    [
        (SDE(), 0.0),
        (SDE(), 0.3),
        (SDE(), 1.0),
        (SDE(diffusion=lambda t: 3 * t), 1.0),
        (SDE(diffusion=lambda t: torch.ones_like(t)), 0.5),
    ],
    ids=["flow", "third", "reverse", "growing", "constant"],
)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), LinearBeta()], ids=str)
def test_every_sde_of_the_family_has_the_marginals_of_fokker_and_planck(
    mixture, schedule, solver, eta
):
    begin, end = 0.8, 0.15
    found = sample(
        mixture.denoiser(schedule),
        Gaussian(schedule, "x0"),
        (6000, 2),
        times=torch.linspace(begin, end, 101, dtype=torch.float64),
        start=mixture.at(schedule, begin).draw(6000),
        solver=solver,
        stochasticity=eta,
    )
    same_law(found, mixture.at(schedule, end).draw(40000), 0.03)


def test_a_wrong_drift_would_be_noticed(mixture):
    """The same test functions tell apart the noise that is too large by a fifth."""
    schedule = RectifiedFlow()
    found = sample(
        mixture.denoiser(schedule),
        Gaussian(schedule, "x0"),
        (6000, 2),
        times=torch.linspace(0.8, 0.15, 101, dtype=torch.float64),
        start=1.2 * mixture.at(schedule, 0.8).draw(6000),
        solver="sde",
    )
    with pytest.raises(AssertionError):
        same_law(found, mixture.at(schedule, 0.6).draw(40000), 0.03)


def wasserstein(mean, deviation, other_mean, other_deviation):
    """W₂ between Gaussians on the line."""
    return math.hypot(mean - other_mean, deviation - other_deviation)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), Karras(0.05, 8.0)], ids=str)
@pytest.mark.parametrize("case", [(0.9, 0.4), (0.5, 0.7), (1.1, 0.25)], ids=str)
def test_w2_of_the_samples_is_bounded_by_the_integrated_score_error(gaussian, schedule, case):
    """kexue.fm/archives/9467, for the probability flow, where all is in closed form:

        W₂(data, samples) ≤ ∫ ½g²·I_t·√E|∇log p_t − s|² dt + I_1·W₂(p_1, prior)
        I_t = exp ∫_0^t L,    L the greatest growth rate of the model's flow towards the data

    The data is N(0.5, 0.4); the model has the score of another Gaussian. With its mean wrong only,
    all paths are off by the same, and the bound is an equality.
    """
    mean, variance = 0.5, 0.4
    data, believed = gaussian(mean, variance), gaussian(*case)
    begin, end, steps = 0.95, 0.05, 200
    times = torch.linspace(begin, end, steps + 1, dtype=torch.float64)
    # The flow of a linear field is affine: two states tell it. They start from the true p at begin.
    images = sample(
        believed.denoiser(schedule),
        Gaussian(schedule, "x0"),
        (2, 1),
        times=times,
        start=torch.tensor([[0.0], [1.0]], dtype=torch.float64),
        solver="heun",
    ).flatten()
    slope, offset = float(images[1] - images[0]), float(images[0])
    first, last = data.at(schedule, begin), data.at(schedule, end)
    distance = wasserstein(
        float(last.means),
        float(last.variances.sqrt()),
        offset + slope * float(first.means),
        slope * float(first.variances.sqrt()),
    )

    fine = torch.linspace(end, begin, 4001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(fine), schedule.sigma(fine)
    alpha_rate = schedule.alpha_derivative(fine) / alpha
    half_g2 = sigma * (schedule.sigma_derivative(fine) - sigma * alpha_rate)
    true_spread, spread = (alpha.square() * v + sigma.square() for v in (variance, case[1]))
    # s − ∇log p is affine in x ~ p_t: its mean square in closed form.
    tilt = 1 / true_spread - 1 / spread
    at_mean = -(alpha * mean - alpha * case[0]) / spread
    score_error = (at_mean.square() + tilt.square() * true_spread).sqrt()
    growth = -(alpha_rate + half_g2 / spread)  # of −v, the model's flow back in time
    logs = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(growth, fine)])
    bound = float(torch.trapezoid(half_g2 * logs.exp() * score_error, fine))
    assert distance <= bound * (1 + 1e-3), (distance, bound)
    if case[1] == variance:
        torch.testing.assert_close(distance, bound, rtol=2e-3, atol=0)
    else:
        assert bound < 3 * distance, (distance, bound)  # no idle bound either


def test_w2_bound_of_the_reverse_sde_in_shared_noise(gaussian):
    """The article's own case: with a constant error of the score and the same noise, the paths of
    truth and model are apart by ∫ g²·I_t·error dt, everywhere alike."""
    schedule, variance = RectifiedFlow(), 0.4
    begin, end, steps = 0.9, 0.1, 400
    times = torch.linspace(begin, end, steps + 1, dtype=torch.float64)
    start = gaussian(0.5, variance).at(schedule, begin).draw(50)
    true, model = (
        sample(
            gaussian(mean, variance).denoiser(schedule),
            Gaussian(schedule, "x0"),
            start.shape,
            times=times,
            start=start,
            solver="sde",
            generator=torch.Generator().manual_seed(1),
        )
        for mean in (0.5, 0.9)
    )
    apart = (model - true).flatten()
    fine = torch.linspace(end, begin, 4001, dtype=torch.float64)
    alpha, sigma = 1 - fine, fine
    g2 = 2 * sigma * (1 + sigma / alpha)
    spread = alpha.square() * variance + sigma.square()
    growth = -(-1 / alpha + g2 / spread)
    logs = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(growth, fine)])
    expected = torch.trapezoid(g2 * logs.exp() * alpha * 0.4 / spread, fine)
    torch.testing.assert_close(apart, expected.expand(50), rtol=0.03, atol=0)
