"""Reflow: pairs on the flow, which an independent coupling does not have, and what they train."""

import pytest
import torch

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.process import Mask, PoissonFlow
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, LinearBeta, RectifiedFlow
from ropewalk.blocks.diffusion.train import denoising_loss, reflow_pairs

MEAN, DEVIATION = 0.7, 0.4


def exact(schedule):
    """E[x₀ | x_t] of N(0.7, 0.4²)."""

    def model(x, t, condition):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        spread = (alpha * DEVIATION).square() + sigma.square()
        return MEAN + alpha * DEVIATION**2 / spread * (x - alpha * MEAN)

    return model


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=str)
@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m", "sde"])
def test_pairs_lie_on_the_flow(schedule, solver):
    """Between Gaussians on the line the flow is x₀ = mean + deviation·ε."""
    pairs = reflow_pairs(
        exact(schedule),
        Gaussian(schedule, "x0"),
        (300, 1),
        steps=400,
        solver=solver,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    noise = torch.randn(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(pairs.noise, noise)
    torch.testing.assert_close(pairs.data, MEAN + DEVIATION * noise, rtol=0, atol=2e-2)


def test_a_flow_of_pairs_is_straight_and_needs_one_step():
    """x_t determines the pair, so that the loss of the right velocity is zero."""
    schedule = RectifiedFlow()
    process = Gaussian(schedule, "flow")
    noise = torch.randn(200, 1, dtype=torch.float64)
    data = MEAN + DEVIATION * noise

    def velocity(x, t, condition):
        t = t[:, None]
        epsilon = (x - (1 - t) * MEAN) / ((1 - t) * DEVIATION + t)
        return epsilon - (MEAN + DEVIATION * epsilon)

    paired = denoising_loss(velocity, process, data, noise=noise)
    torch.testing.assert_close(paired, torch.zeros_like(paired), rtol=0, atol=1e-20)
    independent = denoising_loss(velocity, process, data)
    assert independent.mean() > 0.1
    one_step = sample(velocity, process, (200, 1), steps=1, start=noise)
    torch.testing.assert_close(one_step, data, rtol=0, atol=1e-12)


def test_noise_begins_where_the_prior_does():
    """Also where α(1) is not 0, and where the noise is not normal."""
    for process in (Gaussian(LinearBeta(), "x0"), PoissonFlow(4, Cosine(), "x0")):
        seen = []

        def model(x, t, condition, seen=seen):
            seen.append(x)
            return torch.zeros_like(x)

        pairs = reflow_pairs(model, process, (5, 2), steps=3)
        start = process.corrupt(torch.zeros(5, 2), pairs.noise, 1.0)
        torch.testing.assert_close(seen[0], start)
        assert torch.equal(pairs.data, torch.zeros(5, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pairs_are_where_the_model_is_and_as_precise(dtype):
    class Model(torch.nn.Module):
        def __init__(self, device):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2, device=device, dtype=dtype)

        def forward(self, x, t, condition):
            return self.layer(x)

    process = Gaussian(Cosine(), "v")
    for device in ("cpu", "meta"):
        for each in reflow_pairs(Model(device), process, (3, 2), steps=2):
            assert each.device.type == device
            assert each.dtype == torch.promote_types(dtype, torch.float32)
    with pytest.raises(ValueError, match="expected a generator on 'meta'"):
        reflow_pairs(Model("meta"), process, (3, 2), steps=2, generator=torch.Generator())


@pytest.mark.parametrize(
    ("process", "solver", "message"),
    [
        (Mask(3, Cosine()), "euler", "with a probability flow"),
        (Gaussian(Cosine(), "v"), "ancestral", "follows the flow"),
        (Gaussian(Cosine(), "v"), "rk4", "expected one of"),
    ],
    ids=["mask", "ancestral", "unknown"],
)
def test_refuses_what_has_no_flow(process, solver, message):
    with pytest.raises(ValueError, match=message):
        reflow_pairs(lambda x, t, y: x, process, (2, 2), steps=3, solver=solver)
