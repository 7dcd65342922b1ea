"""The universal step is DDIM's, EDM's, rectified flow's and DDPM's, in float64."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ropewalk.blocks.diffusion import (
    Cosine,
    Gaussian,
    Karras,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    Tabulated,
    ancestral_rho,
    universal_step,
)

T, S = 0.7, 0.45
SCHEDULES = {
    "cosine": Cosine(),
    "linear_beta": LinearBeta(),
    "sigmoid": Sigmoid(),
    "table": Tabulated.linear_beta(1000),
}
preserving = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def states(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x_t and a prediction that has nothing to do with it."""
    x_t, x0 = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64).to(dtype)
    return x_t, x0


@preserving
def test_nothing_renewed_is_ddim(schedule: Schedule) -> None:
    x_t, x0 = states()
    squared_t, squared_s = schedule.alpha(T) ** 2, schedule.alpha(S) ** 2  # ᾱ of DDIM
    epsilon = (x_t - squared_t.sqrt() * x0) / (1 - squared_t).sqrt()
    expected = squared_s.sqrt() * x0 + (1 - squared_s).sqrt() * epsilon
    step = universal_step(Gaussian(schedule), x_t, x0, T, S, 0.0)
    assert (step - expected).abs().max() <= 1e-14


def test_nothing_renewed_is_the_euler_step_of_edm_and_of_rectified_flow() -> None:
    x_t, x0 = states()
    karras = Karras()
    slope = (x_t - x0) / karras.sigma(T)  # dx/dσ
    expected = x_t + (karras.sigma(S) - karras.sigma(T)) * slope
    step = universal_step(Gaussian(karras), x_t, x0, T, S, 0.0)
    assert (step - expected).abs().max() <= 1e-14

    velocity = (x_t - x0) / T  # ε − x₀
    step = universal_step(Gaussian(RectifiedFlow()), x_t, x0, T, S, 0.0)
    assert (step - (x_t + (S - T) * velocity)).abs().max() <= 1e-14


@preserving
def test_ancestral_is_the_posterior_of_ddpm(schedule: Schedule) -> None:
    """Mean and variance of p(x_s | x_t, x₀) by Ho et al., equations 6 and 7, over any two times."""
    x_t, x0 = states()
    squared_t, squared_s = schedule.alpha(T) ** 2, schedule.alpha(S) ** 2
    alpha = squared_t / squared_s
    mean = (
        squared_s.sqrt() * (1 - alpha) / (1 - squared_t) * x0
        + alpha.sqrt() * (1 - squared_s) / (1 - squared_t) * x_t
    )
    variance = (1 - squared_s) / (1 - squared_t) * (1 - alpha)

    rho = ancestral_rho(schedule, T, S)
    process = Gaussian(schedule)
    generator = torch.Generator().manual_seed(0)
    step = universal_step(process, x_t, x0, T, S, rho, generator=generator)
    z = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(0))
    assert (step - (mean + variance.sqrt() * z)).abs().max() <= 1e-12
    # The mean by itself: the same draw with the opposite sign cancels.
    noise = process.noise(x_t, x0, T)
    kept = process.corrupt(x0, (1 - rho**2).sqrt() * noise, S)
    assert (kept - mean).abs().max() <= 1e-12
    assert ((schedule.sigma(S) * rho) ** 2 - variance).abs() <= 1e-12


@preserving
def test_a_part_of_it_is_the_eta_of_ddim(schedule: Schedule) -> None:
    squared_t, squared_s = schedule.alpha(T) ** 2, schedule.alpha(S) ** 2
    eta = 0.6
    deviation = (
        eta * ((1 - squared_s) / (1 - squared_t)).sqrt() * (1 - squared_t / squared_s).sqrt()
    )
    ours = schedule.sigma(S) * eta * ancestral_rho(schedule, T, S)
    assert (ours - deviation).abs() <= 1e-13


def test_diffusers_ddim_takes_the_same_steps() -> None:
    theirs = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(50)
    process = Gaussian(Tabulated(tuple(theirs.alphas_cumprod.tolist())), "epsilon")
    x_t, output = states()
    for index in (980, 500, 20):
        expected = theirs.step(output, index, x_t, eta=0.0).prev_sample
        t, s = (index + 1) / 1000, (index - 19) / 1000
        x0 = process.predict(output, x_t, t)
        step = universal_step(process, x_t, x0, t, s, 0.0)
        torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Karras()], ids=repr)
def test_ancestral_rho_at_the_ends_and_for_small_steps(schedule: Schedule) -> None:
    assert ancestral_rho(schedule, 0.5, 0.5) == 0
    assert ancestral_rho(schedule, 1.0, 1.0) == 0
    assert ancestral_rho(schedule, 0.0, 0.0) == 0
    assert 0.99 < ancestral_rho(schedule, 1.0, 0.0) <= 1
    # ρ² → (λ_s − λ_t) for small steps, here of 1e-9.
    t = torch.tensor(0.5, dtype=torch.float64)
    squared = ancestral_rho(schedule, t + 1e-9, t) ** 2
    slope = 2 * (
        schedule.sigma_derivative(t) / schedule.sigma(t)
        - schedule.alpha_derivative(t) / schedule.alpha(t)
    )
    assert squared == pytest.approx(1e-9 * slope.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x_t, x0 = states(dtype)
    process = Gaussian(Cosine())
    half = universal_step(process, x_t, x0, T, S, 0.0)
    assert torch.equal(half, universal_step(process, x_t.float(), x0.float(), T, S, 0.0).to(dtype))


def test_times_and_parts_may_be_one_or_one_per_sample() -> None:
    x_t, x0 = states()
    process = Gaussian(Cosine())
    t, s = torch.tensor([0.9, 0.5, 0.1]).double(), torch.tensor([0.8, 0.0, 0.1]).double()
    rho = torch.tensor([0.0, 0.5, 0.0]).double()
    together = universal_step(
        process, x_t, x0, t, s, rho, generator=torch.Generator().manual_seed(1)
    )
    z = torch.randn(x_t.shape, dtype=x_t.dtype, generator=torch.Generator().manual_seed(1))
    for i in range(3):
        noise = process.noise(x_t[i : i + 1], x0[i : i + 1], t[i])
        noise = (1 - rho[i] ** 2).sqrt() * noise + rho[i] * z[i]
        alone = process.corrupt(x0[i : i + 1], noise, float(s[i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-13)
    # s = 0 is the data, and s = t with nothing renewed changes nothing.
    torch.testing.assert_close(together[1], x0[1], rtol=0, atol=0)
    torch.testing.assert_close(together[2], x_t[2], rtol=1e-13, atol=1e-13)


def test_the_same_generator_gives_the_same_step() -> None:
    x_t, x0 = states()
    steps = [
        universal_step(
            Gaussian(Cosine()), x_t, x0, T, S, 0.5, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0], steps[2])
