"""With an exact score: every solver converges at its order, and to the data's law."""

import functools
import itertools
import math

import pytest
import torch

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.process import PoissonFlow
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import (
    Cosine,
    Karras,
    LinearBeta,
    RectifiedFlow,
    Shifted,
    Sigmoid,
)
from ropewalk.blocks.diffusion.solvers import SDE, SOLVERS, DPMPlusPlus2M, Euler, Heun

SCHEDULES = [RectifiedFlow(), Cosine(), LinearBeta(), Karras(0.02, 20.0), Sigmoid()]
DETERMINISTIC = [Euler(), Heun("sigma"), Heun("flow"), Heun("angle"), DPMPlusPlus2M(), SDE()]


def runs(mixture, schedule, solver, start, begin, end, steps):
    """The flow from begin to end; with no stochasticity."""
    times = torch.linspace(begin, end, steps + 1, dtype=torch.float64)
    return sample(
        mixture.denoiser(schedule),
        Gaussian(schedule, "x0"),
        start.shape,
        times=times,
        start=start,
        solver=solver,
        stochasticity=None if solver.stochasticity is None else 0.0,
    )


@functools.cache
def fine(mixture, schedule, begin, end):
    """(16 states at begin, their flow to end): Runge and Kutta's method in the angle of the noise.

    y = x/√(α² + σ²), dy/dφ = cos φ·ε̂ − sin φ·x̂₀, written without anything that is tested.
    """
    # Its own seed: what is cached is not to depend on which test asks first.
    start = mixture.at(schedule, begin).draw(16, torch.Generator().manual_seed(0))
    model = mixture.denoiser(schedule)

    def slope(angle, y):
        t = schedule.time_at(-2 * angle.tan().log())
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = torch.hypot(alpha, sigma) * y
        x0 = model(x, t.expand(16), None)
        return angle.cos() * (x - alpha * x0) / sigma - angle.sin() * x0

    first, last = (torch.atan2(schedule.sigma(t), schedule.alpha(t)) for t in (begin, end))
    angles = torch.linspace(float(first), max(float(last), 1e-6), 201, dtype=torch.float64)
    y = start / torch.hypot(schedule.alpha(begin), schedule.sigma(begin))
    for here, there in itertools.pairwise(angles):
        h = there - here
        a = slope(here, y)
        b = slope(here + h / 2, y + h / 2 * a)
        c = slope(here + h / 2, y + h / 2 * b)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(there, y + h * c))
    return start, y * torch.hypot(schedule.alpha(end), schedule.sigma(end))


def measured_orders(mixture, schedule, solver, begin, end, steps=(32, 64, 128)):
    start, expected = fine(mixture, schedule, begin, end)
    errors = [
        (runs(mixture, schedule, solver, start, begin, end, n) - expected).square().mean().sqrt()
        for n in steps
    ]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=str)
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=str)
def test_halving_the_steps_divides_the_error_by_two_to_the_order(mixture, schedule, solver):
    # Between two inner times, where the equation is smooth, whatever the schedule's ends are.
    orders = measured_orders(mixture, schedule, solver, 0.9, 0.1)
    assert all(abs(order - solver.order) < 0.2 for order in orders), orders


@pytest.mark.parametrize("solver", [Euler(), Heun("flow"), Heun("angle")], ids=str)
def test_the_order_holds_from_pure_noise_to_the_data(mixture, solver):
    for schedule in (RectifiedFlow(), Cosine()):
        orders = measured_orders(mixture, schedule, solver, 1.0, 0.0)
        assert all(abs(order - solver.order) < 0.25 for order in orders), orders


def test_euler_is_the_same_in_every_form(mixture):
    """The universal step at ρ = 0, the SDEs' family without noise, and Euler's method by hand."""
    for schedule in SCHEDULES:
        for begin, end in ((0.9, 0.1), (1.0, 0.0)):
            start = mixture.at(schedule, begin).draw(8)
            ours = runs(mixture, schedule, Euler(), start, begin, end, 5)
            sde = runs(mixture, schedule, SDE(), start, begin, end, 5)
            torch.testing.assert_close(ours, sde, rtol=0, atol=1e-12)
    schedule = RectifiedFlow()
    start = mixture.at(schedule, 0.9).draw(8)
    ours = runs(mixture, schedule, Euler(), start, 0.9, 0.1, 5)
    # By hand: dx/dt = ε̂ − x̂₀.
    x, model = start, mixture.denoiser(schedule)
    times = torch.linspace(0.9, 0.1, 6, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        x0 = model(x, t.expand(8), None)
        x = x + (s - t) * ((x - (1 - t) * x0) / t - x0)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-13)


def test_two_m_remembers_one_prediction(mixture):
    """DPM-Solver++(2M) by its own equations, the last step of first order."""
    schedule = LinearBeta()
    times = torch.linspace(1, 0, 7, dtype=torch.float64)
    start = torch.randn(5, 2, dtype=torch.float64)
    model, x = mixture.denoiser(schedule), start
    before, last_h = None, torch.tensor(0.0)
    for t, s in itertools.pairwise(times):
        x0 = model(x, t.expand(5), None)
        if s == 0:
            x = x0
            break
        half = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t))
        data = x0
        if before is not None:
            r = last_h / half
            data = (1 + 1 / (2 * r)) * x0 - before / (2 * r)
        on_x = schedule.sigma(s) / schedule.sigma(t)
        x = on_x * x - schedule.alpha(s) * torch.expm1(-half) * data
        before, last_h = x0, half
    found = sample(model, Gaussian(schedule, "x0"), (5, 2), start=start, steps=6, solver="dpmpp_2m")
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [*SCHEDULES, Shifted(RectifiedFlow(), 2.0)], ids=str)
@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"renoise"}))
def test_samples_have_the_moments_of_the_data(mixture, schedule, name):
    generator = torch.Generator().manual_seed(11)
    # A model is told the time of the schedule that was shifted.
    own = schedule.schedule if isinstance(schedule, Shifted) else schedule
    samples = sample(
        mixture.denoiser(own, "v"),
        Gaussian(schedule, "v"),
        (2000, 2),
        steps=25 if name in ("heun", "dpmpp_2m") else 100,
        solver=name,
        generator=generator,
        dtype=torch.float64,
    )
    # Four standard errors of 2000 samples are .1; the rest is what the steps leave.
    torch.testing.assert_close(samples.mean(0), mixture.mean, rtol=0, atol=0.12)
    torch.testing.assert_close(samples.T.cov(), mixture.covariance, rtol=0, atol=0.15)
    nearest = (samples[:, None] - mixture.means).square().sum(-1).argmin(-1)
    truth = (mixture.draw(20000)[:, None] - mixture.means).square().sum(-1).argmin(-1)
    found, expected = (torch.bincount(each).double() / len(each) for each in (nearest, truth))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_renoising_is_right_at_any_number_of_steps_for_a_consistency_function(gaussian, steps):
    """What follows the flow to its end gives draws of the data, and their law is kept."""
    data, schedule = gaussian(0.7, 0.3), Cosine()

    def consistency(x, t, condition):
        there = data.at(schedule, float(t[0]))
        return 0.7 + (0.3 / there.variances).sqrt() * (x - there.means[0])

    samples = sample(
        consistency,
        Gaussian(schedule, "x0"),
        (20000, 1),
        steps=steps,
        solver="renoise",
        dtype=torch.float64,
    )
    torch.testing.assert_close(samples.mean().item(), 0.7, rtol=0, atol=0.016)
    torch.testing.assert_close(samples.var().item(), 0.3, rtol=0, atol=0.012)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_poisson_flow_of_infinite_dimensions_is_gaussian(mixture, name):
    schedule, model = Karras(), mixture.denoiser(Karras())
    start = 80 * torch.randn(6, 2, dtype=torch.float64)
    found, expected = (
        sample(model, process, (6, 2), steps=9, start=start, solver=name)
        for process in (PoissonFlow(math.inf, schedule, "x0"), Gaussian(schedule, "x0"))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
