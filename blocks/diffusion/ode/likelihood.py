"""`log_likelihood`: the density of the samples that the probability flow draws, at given data.

The flow is invertible, so its density follows the divergence of the slope on the way to the prior:

    log p(y at the data) = log p(y at t = 1) + ∫ div slope dτ

and x₀ = x_t/α = y·scale/α at the data's end, where t is just above 0. The divergence is the trace
of a Jacobian of N × N: "exact" takes N vector products, "hutchinson" the mean of eᵀJe over random
signs e, unbiased, drawn once for the whole path.

Source: Grathwohl et al., arXiv 1810.01367; Song et al., arXiv 2011.13456, §4.3.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.diffusion.checks import described, wide
from ropewalk.blocks.diffusion.ode.flow import (
    Flow,
    check_flow,
    check_method,
    integrate,
    solver_library,
)
from ropewalk.blocks.diffusion.predict import Model, Predictor
from ropewalk.blocks.diffusion.process import PoissonFlow, Process
from ropewalk.blocks.diffusion.sampler.calls import guided, not_training
from ropewalk.blocks.diffusion.sampler.checks import (
    check_condition,
    check_generator,
    check_guidance,
)
from ropewalk.blocks.diffusion.solvers.coordinates import Coordinate

Trace = Literal["exact", "hutchinson"]
Slope = Callable[[Tensor, Tensor], Tensor]


@torch.inference_mode(False)
@torch.no_grad()
def log_likelihood(
    model: Model,
    process: Process,
    x0: Float[Tensor, "batch ..."],
    *,
    trace: Trace = "exact",
    probes: int = 1,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    options: dict[str, Any] | None = None,
    coordinate: Coordinate = "flow",
    least_noise: float = 1e-3,
    guidance: Any = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """The logarithm of the density, in nats, that `sample_ode` has at x0.

    For bits per dimension divide by −N·ln 2. Images of integers want to be made continuous with
    uniform noise first.

    Args:
        model: `model(x_t, t, condition)`, differentiable in x_t.
        process: Gaussian or Poisson flow.
        x0: the data, of about unit size, as in [−1, 1].
        trace: "exact", or "hutchinson" for an unbiased estimate at the cost of `probes` products.
        probes: how many random directions "hutchinson" takes.
        solver: a method of torchdiffeq.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        options: of the method.
        coordinate: in which the flow is solved.
        least_noise: the level σ/α that the data is taken to have: what is returned is the density
            of the data with so much noise, which differs by terms of its square.
        guidance: as for `sample`.
        condition: as for `sample`.
        generator: of the directions.

    Returns:
        (batch,), nats, in x0's dtype but float32 at least.

    Raises:
        ValueError, TypeError: before the model runs, as for `sample_ode`; an unknown trace.
        ImportError: without torchdiffeq, which the extra `diffusion` has.
    """
    predictor = Predictor(model, process)
    check_flow(process, coordinate, least_noise)
    check_method(solver)
    require_positive("log_likelihood", rtol=rtol, atol=atol)
    require_integer("log_likelihood", 1, probes=probes)
    if trace not in ("exact", "hutchinson"):
        raise ValueError(f"trace: expected 'exact' or 'hutchinson', got {trace!r}")
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.ndim == 0:
        raise TypeError(f"x0: expected a floating-point tensor (batch, …), got {described(x0)}")
    check_condition(x0.shape, condition, model)
    predictor.shape = tuple(x0.shape)
    check_guidance(guidance, predictor, condition, process)
    check_generator(generator, x0.device)
    solver_library()
    predict = guided(predictor, guidance, condition)
    flow = Flow(process, lambda x, t: predict(x, t).data, coordinate, least_noise)

    x = x0.detach().to(wide(x0), copy=True)  # a tensor of inference mode has no gradient
    if x.shape[0] == 0:
        return x.new_zeros(0)
    signs = None if trace == "exact" else _signs(x, probes, generator)
    begin = flow.first_time
    end = torch.ones_like(begin)
    before, after, kept = flow.at(begin), flow.at(end), process.schedule.alpha(begin)

    def both(clock: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _slope_and_divergence(flow.slope, clock, state[0], signs)

    with not_training(model, guidance):
        y, grown = integrate(
            both,
            ((kept / before.scale).to(x) * x, x.new_zeros(x.shape[0])),
            (before.clock, after.clock),
            solver=solver,
            rtol=rtol,
            atol=atol,
            options=options,
            like=x,
        )
    stretched = after.scale.log() - before.scale.log() + kept.log()
    moved = math.prod(x.shape[1:]) * stretched.to(x)
    return prior_log_density(process, after.scale.to(x) * y) + grown + moved


def prior_log_density(process: Process, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """The log-density of `process.prior` at x, in nats: normal, or Student's t with D degrees."""
    size = math.prod(x.shape[1:])
    sigma = process.schedule.sigma(torch.ones((), dtype=torch.float64)).to(x)
    squared = (x / sigma).square().reshape(x.shape[0], -1).sum(1)
    if isinstance(process, PoissonFlow) and math.isfinite(process.D):
        degrees = process.D
        constant = math.lgamma((size + degrees) / 2) - math.lgamma(degrees / 2)
        constant -= 0.5 * size * math.log(math.pi * degrees)
        shape = -0.5 * (size + degrees) * (squared / degrees).log1p()
    else:
        constant = -0.5 * size * math.log(2 * math.pi)
        shape = -0.5 * squared
    return shape + constant - size * sigma.log()


def _signs(x: Tensor, probes: int, generator: torch.Generator | None) -> Tensor:
    """Random signs (probes, batch, …)."""
    shape = (probes, *x.shape)
    drawn = torch.randint(2, shape, generator=generator, device=x.device)
    return (2 * drawn - 1).to(x.dtype)


@torch.enable_grad()
def _slope_and_divergence(
    slope: Slope, clock: Tensor, y: Tensor, signs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The slope, and the trace of its Jacobian for each sample."""
    y = y.detach().requires_grad_()
    found = slope(clock, y)
    if not found.requires_grad:
        raise ValueError("log_likelihood: the model's output does not depend on x_t")
    if signs is None:
        size = math.prod(y.shape[1:])
        signs = torch.eye(size, dtype=y.dtype, device=y.device).reshape(size, 1, *y.shape[1:])
        signs, share = signs.expand(size, *y.shape), 1.0
    else:
        share = 1 / len(signs)
    total = torch.zeros(y.shape[0], dtype=y.dtype, device=y.device)
    for k, direction in enumerate(signs):
        (product,) = torch.autograd.grad(found, y, direction, retain_graph=k + 1 < len(signs))
        total = total + (product * direction).reshape(y.shape[0], -1).sum(1)
    return found.detach(), share * total
