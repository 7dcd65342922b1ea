"""Solvers against what they are published as: DDPM's posterior, EDM's Algorithm 2, diffusers."""

import itertools
import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, Karras, RectifiedFlow, Tabulated
from ropewalk.blocks.diffusion.solvers import Heun
from ropewalk.blocks.diffusion.solvers.variance import posterior_log_variance

STEPS = 1000
TABLE = Tabulated.linear_beta(STEPS)
PROCESS = Gaussian(TABLE, "epsilon")
SHAPE = (3, 2, 4)
# Their schedulers make arrays of tensors.
NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def network(x, k):
    """Some smooth ε̂ of state and step."""
    return torch.tanh(0.7 * x + 0.1) + 0.2 * torch.cos(k / 150)


def model(x, t, condition):
    return network(x, (t * STEPS - 1).reshape(-1, *[1] * (x.ndim - 1)))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ours(steps, start, solver, **options):
    return sample(
        model,
        PROCESS,
        SHAPE,
        steps=steps,
        start=start,
        solver=solver,
        generator=torch.Generator().manual_seed(7),
        **options,
    )


@pytest.mark.parametrize(("t", "s"), [(1000, 999), (500, 400), (31, 30), (2, 1)])
def test_ancestral_is_ddpms_posterior(t, s):
    """Mean and variance in DDPM's own symbols, the same noise: one step, to 1e-12."""
    x_t = normal(*SHAPE)
    found = sample(
        model,
        PROCESS,
        SHAPE,
        times=[t / STEPS, s / STEPS],
        start=x_t,
        solver="ancestral",
        generator=torch.Generator().manual_seed(3),
    )
    product, before = torch.tensor(
        [TABLE.alphas_cumprod[k - 1] for k in (t, s)], dtype=torch.float64
    )
    beta = 1 - product / before
    epsilon = network(x_t, torch.tensor(t - 1.0).double())
    x0 = (x_t - (1 - product).sqrt() * epsilon) / product.sqrt()
    mean = before.sqrt() * beta / (1 - product) * x0
    mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - product) * x_t
    variance = (1 - before) / (1 - product) * beta
    noise = normal(*SHAPE, seed=3)
    torch.testing.assert_close(found, mean + variance.sqrt() * noise, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Karras()], ids=str)
def test_ancestral_is_the_posterior_of_every_schedule(schedule):
    """Su's symbols, in which α and β are no squares (kexue.fm/archives/9181)."""
    t, s = 0.8, 0.55
    x_t, x0 = normal(*SHAPE), normal(*SHAPE, seed=1)
    found = sample(
        lambda x, t, y: x0,
        Gaussian(schedule, "x0"),
        SHAPE,
        times=[t, s],
        start=x_t,
        solver="ancestral",
        generator=torch.Generator().manual_seed(3),
    )
    alpha = schedule.alpha(t) / schedule.alpha(s)
    bar_t, bar_s = schedule.sigma(t).square(), schedule.sigma(s).square()
    beta = bar_t - alpha.square() * bar_s
    mean = alpha * bar_s / bar_t * x_t + schedule.alpha(s) * beta / bar_t * x0
    deviation = (bar_s * beta / bar_t).sqrt()
    expected = mean + deviation * normal(*SHAPE, seed=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_ancestral_takes_the_variance_that_was_learned():
    x_t, raw = normal(*SHAPE), torch.tanh(normal(*SHAPE, seed=1))
    t, s = torch.tensor([0.7, 0.6], dtype=torch.float64)
    options = {
        "times": [0.7, 0.6],
        "start": x_t,
        "solver": "ancestral",
    }
    plain = sample(model, PROCESS, SHAPE, generator=torch.Generator().manual_seed(3), **options)
    found = sample(
        lambda x, t, y: torch.cat([model(x, t, y), raw], 1),
        PROCESS,
        SHAPE,
        generator=torch.Generator().manual_seed(3),
        **options,
    )
    noise = normal(*SHAPE, seed=3)
    least = posterior_log_variance(-torch.ones_like(raw), TABLE, t, s)
    learned = posterior_log_variance(raw, TABLE, t, s)
    mean = plain - (0.5 * least).exp() * noise
    torch.testing.assert_close(found, mean + (0.5 * learned).exp() * noise, rtol=0, atol=1e-12)


def scheduler(kind, steps, **config):
    """A scheduler of diffusers with our table in float64, on the same steps."""
    made = kind(
        num_train_timesteps=STEPS,
        beta_schedule="linear",
        timestep_spacing="trailing",
        **config,
    )
    made.alphas_cumprod = torch.tensor(TABLE.alphas_cumprod, dtype=torch.float64)
    if hasattr(made, "sigma_t"):
        made.alpha_t, made.sigma_t = made.alphas_cumprod.sqrt(), (1 - made.alphas_cumprod).sqrt()
        made.lambda_t = made.alpha_t.log() - made.sigma_t.log()
    made.set_timesteps(steps)
    return made


def driven(made, x, generator=None, network=network, timesteps=None):
    for k in made.timesteps if timesteps is None else timesteps:
        scaled = made.scale_model_input(x, k)
        arguments = {} if generator is None else {"generator": generator}
        x = made.step(network(scaled, k.double()), k, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddpm_of_diffusers(steps):
    x = normal(*SHAPE)
    made = scheduler(DDPMScheduler, steps, variance_type="fixed_small", clip_sample=False)
    # Its `one` and betas are float32 and enter nothing but the last step and training.
    expected = driven(made, x, torch.Generator().manual_seed(7))
    # Its variances are cut at 1e-20, and so is nothing here.
    torch.testing.assert_close(ours(steps, x, "ancestral"), expected, rtol=0, atol=1e-9)


def test_ddpm_of_diffusers_with_a_learned_variance():
    x, channels = normal(2, 3, 4), 3

    def twice(x, k):
        return torch.cat([network(x, k), torch.tanh(2 * x)], 1)

    made = scheduler(DDPMScheduler, 20, variance_type="learned_range", clip_sample=False)
    # All but its last step, to which it adds noise where the data is due.
    expected = driven(made, x, torch.Generator().manual_seed(7), twice, made.timesteps[:-1])
    found = sample(
        lambda x, t, y: twice(x, (t * STEPS - 1).reshape(-1, 1, 1)),
        PROCESS,
        (2, channels, 4),
        times=TABLE.times(20)[:-1],
        start=x,
        solver="ancestral",
        generator=torch.Generator().manual_seed(7),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_of_diffusers(eta):
    x = normal(*SHAPE)
    made = scheduler(DDIMScheduler, 20, clip_sample=False, set_alpha_to_one=True)
    made.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    expected = x
    for k in made.timesteps:
        expected = made.step(
            network(expected, k.double()), k, expected, eta=eta, generator=generator
        ).prev_sample
    found = ours(20, x, "euler", stochasticity=eta)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@NUMPY
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_dpm_solver_of_diffusers(steps):
    x = normal(*SHAPE)
    made = scheduler(
        DPMSolverMultistepScheduler,
        steps,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        euler_at_final=True,
    )
    expected = driven(made, x)
    # It computes its steps in float32.
    torch.testing.assert_close(ours(steps, x, "dpmpp_2m"), expected, rtol=1e-5, atol=1e-5)


@NUMPY
@pytest.mark.parametrize(
    ("kind", "solver"),
    [(EulerDiscreteScheduler, "euler"), (HeunDiscreteScheduler, Heun("sigma"))],
    ids=["euler", "heun"],
)
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_sigma_schedulers_of_diffusers(kind, solver, steps):
    """They keep x/α, and hand x to the network; their σ are float32."""
    x = normal(*SHAPE)
    made = scheduler(kind, steps)
    expected = driven(made, x / math.sqrt(TABLE.alphas_cumprod[-1]))
    torch.testing.assert_close(ours(steps, x, solver), expected, rtol=0, atol=2e-4)


def edm_algorithm_2(denoise, x, sigmas, churn, low, high, noise_scale, generator):
    """Karras et al., arXiv 2206.00364, as printed."""
    count = len(sigmas) - 1
    for i in range(count):
        sigma, following = sigmas[i], sigmas[i + 1]
        gamma = min(churn / count, math.sqrt(2) - 1) if low <= sigma <= high else 0.0
        raised = sigma + gamma * sigma
        if churn > 0 and low <= sigma <= high:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + (raised**2 - sigma**2) ** 0.5 * noise_scale * noise
        slope = (x - denoise(x, raised)) / raised
        after = x + (following - raised) * slope
        if following != 0:
            second = (after - denoise(after, following)) / following
            after = x + (following - raised) * (slope + second) / 2
        x = after
    return x


@pytest.mark.parametrize("churn", [0.0, 0.3, 1.0])
def test_heun_is_edms_algorithm_2(churn):
    schedule, count = Karras(), 12

    def denoise(x, sigma):
        return torch.tanh(x) / (1 + math.log1p(float(sigma)))

    def network(x, t, condition):
        return denoise(x, schedule.sigma(t[0]))

    # Their last level before 0 is σ_min: two times that are 0, a step to it and one to the data.
    times = [*torch.linspace(1, 0, count, dtype=torch.float64).tolist(), 0.0]
    sigmas = [*schedule.sigma(torch.tensor(times[:-1], dtype=torch.float64)).tolist(), 0.0]
    x = 80 * normal(*SHAPE)
    found = sample(
        network,
        Gaussian(schedule, "x0"),
        SHAPE,
        times=times,
        start=x,
        solver=Heun(low=0.05, high=50.0, noise_scale=1.003),
        stochasticity=churn,
        generator=torch.Generator().manual_seed(5),
    )
    expected = edm_algorithm_2(
        denoise,
        x,
        sigmas,
        churn * (math.sqrt(2) - 1) * count,
        0.05,
        50.0,
        1.003,
        torch.Generator().manual_seed(5),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_churn_never_leaves_the_schedule(mixture):
    """At t = 1 there is no more noise to be had, and the step is the one without churn."""
    schedule = Karras()
    options = {"times": [1.0, 0.9], "start": 80 * normal(6, 2), "solver": "heun"}
    process = Gaussian(schedule, "x0")
    churned = sample(mixture.denoiser(schedule), process, (6, 2), stochasticity=1.0, **options)
    plain = sample(mixture.denoiser(schedule), process, (6, 2), **options)
    torch.testing.assert_close(churned, plain, rtol=0, atol=1e-9)


def test_edms_times_are_theirs():
    """σ_i of their equation 5."""
    count, (low, high, rho) = 18, (0.002, 80.0, 7.0)
    theirs = [
        (high ** (1 / rho) + i / (count - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(count)
    ]
    ours = Karras().sigma(torch.linspace(1, 0, count, dtype=torch.float64))
    torch.testing.assert_close(ours.tolist(), theirs, rtol=1e-12, atol=0)
    assert all(a > b for a, b in itertools.pairwise(theirs))
