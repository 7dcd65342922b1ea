"""Any scheduler of diffusers drives a denoiser of ours.

Whatever schedule and parametrisation the denoiser was trained with: the state is carried to the
time of the same log-SNR, where it is a multiple of the scheduler's, and the answer to what the
scheduler asks for.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.diffusion.diffusers_adapter.configuration import (
    noise_levels,
    parametrisation_of,
    schedule_of,
)
from ropewalk.blocks.diffusion.predict import Model, Predictor
from ropewalk.blocks.diffusion.process import Affine
from ropewalk.blocks.diffusion.sampler.calls import guided, not_training
from ropewalk.blocks.diffusion.sampler.checks import check_condition, check_guidance, check_shape


@torch.no_grad()
def sample_with_scheduler(
    scheduler: Any,
    model: Model,
    process: Affine,
    shape: Sequence[int],
    *,
    steps: int,
    guidance: Any = None,
    condition: Any = None,
    start: Float[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "batch ..."]:
    """Samples of our denoiser by a scheduler of diffusers.

    Example:
        >>> scheduler = diffusers.UniPCMultistepScheduler(prediction_type="v_prediction")
        >>> images = sample_with_scheduler(scheduler, model, process, (4, 3, 32, 32), steps=20)

    Args:
        scheduler: any with set_timesteps, timesteps and step.
        model: `model(x_t, t, condition)`.
        process: with which it was trained; another schedule than the scheduler's will do.
        shape: (batch, …) of the samples.
        steps: of the scheduler.
        guidance: as for `sample`.
        condition: as for `sample`.
        start: standard normal noise; None draws it.
        generator: of everything that is drawn.
        dtype: of the states.
        device: of the states.

    Returns:
        Samples of `shape`.

    Raises:
        ValueError, TypeError: before the model runs, for a process without α and σ, a number out of
            its range, and what the guidance refuses.
    """
    require_integer("sample_with_scheduler", 1, steps=steps)
    if not isinstance(process, Affine):
        raise ValueError(
            f"process: expected x_t = αx₀ + σε, Gaussian or PoissonFlow, got {process!r}"
        )
    wanted, table = parametrisation_of(scheduler), schedule_of(scheduler)
    check_shape(shape, start)
    check_condition(shape, condition, model)
    predictor = Predictor(model, process)
    predictor.shape = tuple(shape)
    check_guidance(guidance, predictor, condition, process)
    predict = guided(predictor, guidance, condition)

    scheduler.set_timesteps(steps, device=device)
    if start is None:
        start = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
    x = start.to(device=device, dtype=dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    scale_input = getattr(scheduler, "scale_model_input", lambda x, timestep: x)
    options = (
        {"generator": generator}
        if "generator" in inspect.signature(scheduler.step).parameters
        else {}
    )
    with not_training(model, guidance):
        for timestep in scheduler.timesteps:
            alpha, sigma = noise_levels(scheduler, table, timestep)
            t = process.schedule.time_at(2 * (alpha.log() - sigma.log()))
            x_in = scale_input(x, timestep)
            ours = process.schedule.alpha(t), process.schedule.sigma(t)
            # At the same log-SNR our state is a multiple of theirs; of α and σ one may be 0.
            carried = ours[1] / sigma if sigma > alpha else ours[0] / alpha
            x0 = predict(carried.to(x_in) * x_in, t).data
            output = wanted.from_x0(x0, x_in, alpha.to(x_in), sigma.to(x_in))
            x = scheduler.step(output, timestep, x, **options).prev_sample
    return x
