"""The bound of learned variances, in bits: against DDPM's tables and torch's own divergences."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.process import Mask
from ropewalk.blocks.diffusion.schedule import Cosine, RectifiedFlow, Tabulated
from ropewalk.blocks.diffusion.solvers.variance import posterior_log_variance
from ropewalk.blocks.diffusion.train import Knots, LearnedVariance, denoising_loss

STEPS = 50


@pytest.fixture
def table():
    """DDPM's betas and everything that its authors derive from them, in float64."""
    schedule = Tabulated.linear_beta(STEPS, 1e-3, 0.2)
    products = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    before = torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    betas = 1 - products / before
    variance = betas * (1 - before) / (1 - products)
    return {
        "schedule": schedule,
        "betas": betas,
        "variance": variance,
        "clipped": torch.cat([variance[1:2], variance[1:]]),
        "on_x0": betas * before.sqrt() / (1 - products),
        "on_x_t": (1 - before) * (products / before).sqrt() / (1 - products),
        "products": products,
    }


def test_ends_of_the_range_are_the_two_variances(table):
    k = torch.arange(1, STEPS)
    t, s = (k + 1).double() / STEPS, k.double() / STEPS
    for raw, expected in ((1.0, table["betas"]), (-1.0, table["variance"])):
        found = posterior_log_variance(
            torch.full((STEPS - 1,), raw).double(), table["schedule"], t, s
        )
        torch.testing.assert_close(found.exp(), expected[1:], rtol=1e-10, atol=0)


def test_bound_is_the_divergence_of_ddpms_posterior(table):
    k = torch.arange(1, STEPS)
    x0, predicted = torch.randn(2, STEPS - 1, 3, dtype=torch.float64)
    raw = torch.rand(STEPS - 1, 3, dtype=torch.float64) * 2 - 1
    x_t = torch.randn(STEPS - 1, 3, dtype=torch.float64)
    share = (raw + 1) / 2
    log_variance = (
        share * table["betas"][k].log()[:, None] + (1 - share) * table["clipped"][k].log()[:, None]
    )
    means = [
        table["on_x0"][k][:, None] * each + table["on_x_t"][k][:, None] * x_t
        for each in (x0, predicted)
    ]
    true = Normal(means[0], table["variance"][k].sqrt()[:, None])
    model = Normal(means[1], (0.5 * log_variance).exp())
    expected = kl_divergence(true, model).mean(-1) / math.log(2)
    found = LearnedVariance(STEPS).bound(
        raw, predicted, x0, table["schedule"], (k + 1).double() / STEPS
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    # The least variance and the true data: the posterior itself.
    exact = LearnedVariance(STEPS).bound(
        -torch.ones_like(x0), x0, x0, table["schedule"], (k + 1).double() / STEPS
    )
    torch.testing.assert_close(exact, torch.zeros_like(exact), rtol=0, atol=1e-12)


@pytest.mark.parametrize("raw", [-1.0, 0.3, 1.0])
def test_last_step_counts_a_distribution_over_the_levels(table, raw):
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    t = torch.full((256,), 1 / STEPS, dtype=torch.float64)
    for mean in (-1.0, -0.2, 0.97):
        bits = LearnedVariance(STEPS).bound(
            torch.full_like(levels, raw),
            torch.full_like(levels, mean),
            levels,
            table["schedule"],
            t,
        )
        kept = bits < 39  # what is rarer than 1e-12 is cut there
        torch.testing.assert_close((2 ** -bits[kept]).sum().item(), 1.0, rtol=0, atol=1e-9)


def test_last_step_of_continuous_data_counts_a_density(table):
    x0, predicted = torch.randn(2, 4, 3, dtype=torch.float64)
    raw = torch.rand(4, 3, dtype=torch.float64) * 2 - 1
    t = torch.full((4,), 1 / STEPS, dtype=torch.float64)
    share = (raw + 1) / 2
    log_variance = share * table["betas"][0].log() + (1 - share) * table["clipped"][0].log()
    expected = -Normal(predicted, (0.5 * log_variance).exp()).log_prob(x0).mean(-1) / math.log(2)
    found = LearnedVariance(STEPS, data_levels=None).bound(raw, predicted, x0, table["schedule"], t)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_times_in_float32_know_the_last_step(table):
    raw = torch.zeros(STEPS, 1)
    t = ((torch.arange(STEPS).double() + 1) / STEPS).float()
    bound = LearnedVariance(STEPS).bound(raw, raw, raw, table["schedule"], t)
    exact = LearnedVariance(STEPS).bound(
        raw.double(), raw.double(), raw.double(), table["schedule"], t.double()
    )
    assert bound.dtype == torch.float32
    torch.testing.assert_close(bound.double(), exact, rtol=1e-3, atol=1e-5)


def test_hybrid_loss_is_the_sum_and_the_bound_moves_the_variance_only():
    x0 = torch.rand(5, 2, 4, dtype=torch.float64) * 2 - 1
    mean = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    raw = torch.zeros(5, 2, 4, dtype=torch.float64, requires_grad=True)
    process = Gaussian(Tabulated.linear_beta(STEPS), "epsilon")

    def loss(learned, model):
        return denoising_loss(
            model,
            process,
            x0,
            times=Knots(STEPS),
            learned_variance=learned,
            generator=torch.Generator().manual_seed(1),
        )

    simple = loss(None, lambda x, t, y: mean)
    hybrid = loss(LearnedVariance(STEPS, weight=0.5), lambda x, t, y: torch.cat([mean, raw], 1))
    bound = loss(LearnedVariance(STEPS, weight=1.0), lambda x, t, y: torch.cat([mean, raw], 1))
    torch.testing.assert_close(hybrid - simple, (bound - simple) / 2)
    expected = torch.autograd.grad(simple.sum(), mean)[0]
    on_mean, on_raw = torch.autograd.grad(hybrid.sum(), (mean, raw))
    torch.testing.assert_close(on_mean, expected)
    assert on_raw.abs().min() > 0


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=str)
def test_schedules_without_a_table_have_a_finite_bound(schedule):
    t = (torch.arange(1000).double() + 1) / 1000
    x = torch.zeros(1000, 1)
    assert LearnedVariance().bound(x, x + 0.1, x, schedule, t).isfinite().all()


def test_refuses_what_does_not_go_together():
    x0, process = torch.randn(3, 2, 4), Gaussian(Cosine(), "v")
    with pytest.raises(ValueError, match=r"pass learned_variance=LearnedVariance\(\)"):
        denoising_loss(lambda x, t, y: torch.cat([x, x], 1), process, x0)
    with pytest.raises(ValueError, match="gives no variance"):
        denoising_loss(lambda x, t, y: x, process, x0, learned_variance=LearnedVariance())
    with pytest.raises(ValueError, match="no Gaussian posterior"):
        denoising_loss(
            lambda x, t, y: x,
            Mask(3, Cosine()),
            torch.zeros(2, 2, dtype=torch.long),
            learned_variance=LearnedVariance(),
        )
    for wrong in ({"steps": 1}, {"weight": 0.0}, {"data_levels": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LearnedVariance(**wrong)
