"""The probability flow by torchdiffeq: samples, and the exact density of a mixture."""

import math
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from torch import nn

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.ode import log_likelihood, sample_ode
from ropewalk.blocks.diffusion.ode.flow import METHODS
from ropewalk.blocks.diffusion.ode.likelihood import prior_log_density
from ropewalk.blocks.diffusion.process import Cold, Mask, PoissonFlow
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow, Tabulated
from ropewalk.blocks.diffusion.solvers import Heun

TIGHT = {"rtol": 1e-7, "atol": 1e-7}


@pytest.mark.parametrize("coordinate", ["flow", "angle"])
@pytest.mark.parametrize(
    "schedule",
    [RectifiedFlow(), Cosine(), LinearBeta(), Karras(), Tabulated.linear_beta()],
    ids=str,
)
def test_adaptive_samples_are_those_of_many_steps(mixture, schedule, coordinate):
    process, model = Gaussian(schedule, "x0"), mixture.denoiser(schedule)
    start = process.prior((20, 2), dtype=torch.float64)
    found = sample_ode(
        model, process, (20, 2), start=start, coordinate=coordinate, rtol=1e-6, atol=1e-6
    )
    # A schedule that rises like √t wants small steps near the data.
    times = torch.linspace(1, 0, 301, dtype=torch.float64) ** 2
    fine = sample(model, process, (20, 2), start=start, times=times, solver="heun")
    torch.testing.assert_close(found, fine, rtol=0, atol=3e-3)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=str)
def test_likelihood_of_a_mixture_is_exact(mixture, schedule):
    """At t = 1 nothing is left of the data, so the flow's density is the mixture's own."""
    x = mixture.draw(12)
    options = {**TIGHT, "least_noise": 3e-4}
    found = log_likelihood(mixture.denoiser(schedule, "v"), Gaussian(schedule, "v"), x, **options)
    torch.testing.assert_close(found, mixture.log_prob(x), rtol=0, atol=1e-4)
    # And in another coordinate, as a density does not depend on it.
    other = log_likelihood(
        mixture.denoiser(schedule), Gaussian(schedule, "x0"), x, coordinate="angle", **options
    )
    torch.testing.assert_close(other, found, rtol=0, atol=1e-5)


def test_likelihood_where_the_prior_is_an_approximation(mixture):
    """EDM's prior forgets where the data lies beside σ = 80: ln p is off by about mean/σ."""
    x, schedule = mixture.draw(8), Karras()
    flow, sigma = (
        log_likelihood(
            mixture.denoiser(schedule),
            Gaussian(schedule, "x0"),
            x,
            coordinate=coordinate,
            rtol=1e-6,
            atol=1e-6,
        )
        for coordinate in ("flow", "sigma")
    )
    torch.testing.assert_close(flow, mixture.log_prob(x), rtol=0, atol=3 / 80)
    torch.testing.assert_close(flow, sigma, rtol=0, atol=1e-4)


def test_hutchinson_is_exact_where_signs_say_all_and_unbiased_elsewhere(mixture, gaussian):
    # In one dimension e² = 1, so that any probe is exact.
    data, schedule = gaussian(0.3, 0.5), RectifiedFlow()
    x = data.draw(9)
    found = log_likelihood(
        data.denoiser(schedule),
        Gaussian(schedule, "x0"),
        x,
        trace="hutchinson",
        least_noise=3e-4,
        **TIGHT,
    )
    torch.testing.assert_close(found, data.log_prob(x), rtol=0, atol=1e-4)

    x = mixture.draw(1).expand(400, 2)
    estimates = log_likelihood(
        mixture.denoiser(schedule),
        Gaussian(schedule, "x0"),
        x,
        trace="hutchinson",
        probes=2,
        generator=torch.Generator().manual_seed(0),
    )
    error = float(estimates.std()) / math.sqrt(400)
    assert error > 0
    assert abs(float(estimates.mean() - mixture.log_prob(x[:1])[0])) < 4 * error + 1e-3


def test_many_probes_come_near_the_trace(mixture):
    """Many probes come near the trace; other generators give others."""
    schedule = RectifiedFlow()
    process, x = Gaussian(schedule, "x0"), mixture.draw(3)
    exact = log_likelihood(mixture.denoiser(schedule), process, x)
    estimates = [
        log_likelihood(
            mixture.denoiser(schedule),
            process,
            x,
            trace="hutchinson",
            probes=8,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 1)
    ]
    assert not torch.equal(*estimates)
    torch.testing.assert_close(sum(estimates) / 2, exact, rtol=0, atol=0.4)


def test_the_density_integrates_to_one_over_a_poisson_flow(gaussian):
    """One number, D = 6: the density of whatever a model draws, summed over the line."""
    schedule = RectifiedFlow()
    process = PoissonFlow(6, schedule, "x0")
    line = torch.linspace(-12, 12, 801, dtype=torch.float64)[:, None]
    model = gaussian(0.5, 0.3).denoiser(schedule)
    density = log_likelihood(model, process, line, rtol=1e-6, atol=1e-6).exp()
    torch.testing.assert_close(torch.trapezoid(density, line[:, 0]).item(), 1.0, rtol=0, atol=2e-3)


@pytest.mark.parametrize("added", [3, 50, math.inf])
def test_priors_have_the_density_that_they_are_drawn_from(added):
    schedule = Karras(0.01, 3.0)
    process = PoissonFlow(added, schedule, "x0")
    x = process.prior((5, 2, 2), dtype=torch.float64)
    found = prior_log_density(process, x)
    if math.isinf(added):
        expected = torch.distributions.Normal(0, 3.0).log_prob(x).flatten(1).sum(1)
    else:
        from scipy.stats import multivariate_t

        law = multivariate_t(torch.zeros(4).numpy(), 9 * torch.eye(4).numpy(), df=added)
        expected = torch.from_numpy(law.logpdf(x.flatten(1).numpy()))
    torch.testing.assert_close(found, expected.to(found), rtol=1e-6, atol=1e-9)


def test_modules_keep_their_dtype_mode_and_gradients():
    layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    layer.train()

    def forward(x, t, y):
        return layer(x)

    process, x0 = Gaussian(Cosine(), "v"), torch.randn(4, 3, dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t, y):
            assert x.dtype == t.dtype == torch.float32
            return self.layer(x)

    model = Model()
    first, second = (log_likelihood(model, process, x0, rtol=1e-3, atol=1e-3) for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert first.dtype == torch.float64
    assert not first.requires_grad
    assert layer[1].training
    assert all(p.grad is None for p in model.parameters())
    half = sample_ode(model, process, (2, 3), dtype=torch.bfloat16, rtol=1e-3, atol=1e-3)
    assert half.dtype == torch.bfloat16
    assert sample_ode(model, process, (0, 3)).shape == (0, 3)
    assert log_likelihood(model, process, x0[:0]).shape == (0,)


def never(x, t, y):
    raise AssertionError("the model ran")


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        (Mask(3, Cosine()), {}, "probability flow"),
        (Cold("fade", Cosine()), {}, "probability flow"),
        (Gaussian(Cosine(), "v"), {"coordinate": "sigma"}, "infinite where"),
        (Gaussian(Cosine(), "v"), {"coordinate": "time"}, "expected one of"),
        (Gaussian(Cosine(), "v"), {"rtol": 0.0}, "rtol"),
        (Gaussian(Cosine(), "v"), {"least_noise": 0.0}, "least_noise"),
        (Gaussian(Karras(), "x0"), {"least_noise": 80.0}, "less than .* at t = 1, 80, got"),
        (Gaussian(Cosine(), "v"), {"solver": "rk99"}, "dopri5, .*scipy_solver, got .rk99"),
        (Gaussian(Cosine(), "v"), {"condition": torch.zeros(3)}, "expected one for each of 2"),
    ],
    ids=[
        "mask",
        "cold",
        "sigma",
        "coordinate",
        "rtol",
        "noise",
        "all noise",
        "solver",
        "condition",
    ],
)
def test_refuses_before_the_model_runs(process, options, message):
    with pytest.raises(ValueError, match=message):
        sample_ode(never, process, (2, 4), **options)
    with pytest.raises(ValueError, match=message):
        log_likelihood(never, process, torch.randn(2, 4), **options)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_likelihoods_within_inference_mode(trace):
    def run():
        return log_likelihood(
            lambda x, t, y: 0.5 * torch.tanh(x),
            Gaussian(Cosine(), "x0"),
            torch.full((2, 3), 0.3),
            trace=trace,
            generator=torch.Generator().manual_seed(0),
        )

    expected = run()
    with torch.inference_mode():
        assert torch.equal(run(), expected)


def test_all_methods_of_the_library_have_a_name():
    assert set(METHODS) == set(import_module("torchdiffeq._impl.odeint").SOLVERS)
    with pytest.raises(TypeError, match="got Heun; the solvers of `sample`"):
        sample_ode(never, Gaussian(Cosine(), "v"), (2, 4), solver=Heun())


def test_refuses_an_unknown_trace():
    with pytest.raises(ValueError, match="'exact' or 'hutchinson'"):
        log_likelihood(never, Gaussian(Cosine(), "v"), torch.randn(2, 4), trace="full")
    with pytest.raises(TypeError, match="floating-point"):
        log_likelihood(never, Gaussian(Cosine(), "v"), torch.zeros(2, 4).long())


def test_torchdiffeq_is_imported_when_it_is_needed_and_missed_by_name():
    program = """
import sys
sys.modules["torchdiffeq"] = None
import torch
from ropewalk.blocks.diffusion import Cosine, Gaussian
from ropewalk.blocks.diffusion.ode import sample_ode
import ropewalk.blocks.diffusion.sampler, ropewalk.blocks.diffusion.train
import ropewalk.blocks.diffusion.diffusers_adapter
assert "diffusers" not in sys.modules and "rich" not in sys.modules
try:
    sample_ode(lambda x, t, y: x, Gaussian(Cosine(), "v"), (2, 2))
except ImportError as error:
    assert "pip install 'ropewalk[diffusion]'" in str(error), error
else:
    raise SystemExit("no ImportError")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
