"""`sample_ode`: samples along the probability flow with adaptive steps."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.diffusion.checks import wide
from ropewalk.blocks.diffusion.ode.flow import (
    Flow,
    check_flow,
    check_method,
    integrate,
    solver_library,
)
from ropewalk.blocks.diffusion.predict import Model, Predictor
from ropewalk.blocks.diffusion.process import Process
from ropewalk.blocks.diffusion.sampler.calls import guided, not_training
from ropewalk.blocks.diffusion.sampler.checks import check_condition, check_guidance, check_shape
from ropewalk.blocks.diffusion.sampler.sampling import first_state
from ropewalk.blocks.diffusion.solvers.coordinates import Coordinate


@torch.no_grad()
def sample_ode(
    model: Model,
    process: Process,
    shape: Sequence[int],
    *,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    options: dict[str, Any] | None = None,
    coordinate: Coordinate = "flow",
    least_noise: float = 1e-3,
    guidance: Any = None,
    condition: Any = None,
    start: Float[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "batch ..."]:
    """Samples along the probability flow, solved to a tolerance instead of in a number of steps.

    Example:
        >>> images = sample_ode(model, Gaussian(Cosine(), "v"), (16, 3, 32, 32), rtol=1e-4)

    Args:
        model: `model(x_t, t, condition)`.
        process: Gaussian or Poisson flow.
        shape: (batch, …) of the samples.
        solver: a method of torchdiffeq: "dopri5", "dopri8", "bosh3", … or one of fixed steps.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step; the batch shares its steps.
        options: of the method, such as {"step_size": 0.02}.
        coordinate: in which the flow is solved; see `solvers.coordinates`.
        least_noise: the level σ/α at which the flow ends; there x̂₀ is what is returned.
        guidance: as for `sample`.
        condition: as for `sample`.
        start: x at t = 1; None draws the prior.
        generator: of the prior.
        dtype: of the states, as for `sample`; float32 at least within the solver.
        device: as for `sample`.

    Returns:
        Samples of `shape`.

    Raises:
        ValueError, TypeError: before the model runs, for a process without a flow, an unknown
            method or coordinate, a number out of its range, a condition of another batch.
        ImportError: without torchdiffeq, which the extra `diffusion` has.
    """
    predictor = Predictor(model, process)
    check_flow(process, coordinate, least_noise)
    check_method(solver)
    require_positive("sample_ode", rtol=rtol, atol=atol)
    check_shape(shape, start)
    check_condition(shape, condition, model)
    predictor.shape = tuple(shape)
    check_guidance(guidance, predictor, condition, process)
    solver_library()
    predict = guided(predictor, guidance, condition)
    flow = Flow(process, lambda x, t: predict(x, t).data, coordinate, least_noise)

    x = first_state(process, model, shape, start, generator, dtype, device)
    dtype, x = x.dtype, x.to(wide(x))
    end = flow.first_time
    begin = torch.ones_like(end)
    y = x / flow.at(begin).scale.to(x)
    with not_training(model, guidance):
        if y.numel() > 0:
            span = (flow.at(begin).clock, flow.at(end).clock)
            y = integrate(
                flow.slope, y, span, solver=solver, rtol=rtol, atol=atol, options=options, like=y
            )
        return flow.data(flow.at(end).scale.to(y) * y, end).to(dtype)
