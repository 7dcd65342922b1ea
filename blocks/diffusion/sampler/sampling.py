"""`sample`: from noise to data, with any solver, process and guidance.

    x at times[0] from the prior, then for each pair of neighbouring times t > s
        x̂₀ = guided model(x, t)        x = solver's step(x, x̂₀, t → s)

A chain of steps is all there is: what differs between DDPM, DDIM, EDM, DPM-Solver, cold diffusion,
unmasking and Poisson flow are the process and the solver, both small objects. The solvers and their
equations are in `ropewalk.blocks.diffusion.solvers`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.diffusion.checks import require_data, require_tokens
from ropewalk.blocks.diffusion.predict import Model, Predictor, weight_of
from ropewalk.blocks.diffusion.process import Discrete, Process
from ropewalk.blocks.diffusion.sampler.calls import (
    guided,
    not_training,
)
from ropewalk.blocks.diffusion.sampler.checks import (
    check_calls,
    check_condition,
    check_generator,
    check_guidance,
    check_shape,
    checked_stochasticity,
    checked_temperature,
    checked_times,
)
from ropewalk.blocks.diffusion.solvers import Run, Solver, Span, named

Callback = Callable[[int, Tensor, Tensor, Tensor], Tensor | bool | np.bool_ | None]
"""callback(step, x, x0, t): None goes on, a tensor goes on from it, False stops."""
Progress = bool | Callable[[Iterable[int]], Iterable[int]]


@torch.no_grad()
def sample(
    model: Model,
    process: Process,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    solver: str | Solver = "euler",
    stochasticity: float | None = None,
    guidance: Any = None,
    condition: Any = None,
    times: Tensor | Sequence[float] | None = None,
    start: Num[Tensor, "batch ..."] | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: Progress = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Num[Tensor, "batch ..."]:
    """Samples of a diffusion model.

    Example:
        >>> process = Gaussian(RectifiedFlow(), "flow")
        >>> images = sample(model, process, (16, 3, 32, 32), steps=50, solver="heun")

    The model runs in evaluation mode and without gradients, in the dtype of its own parameters
    whatever `dtype` is; each of its modules is put back into the mode that it was in.

    Args:
        model: `model(x_t, t, condition)`.
        process: how the data was corrupted, and what the model's output means.
        shape: (batch, …) of the samples.
        steps: how many, ≥ 1, at the schedule's own times; may be left out where `times` is given.
        solver: a name of `SOLVERS`, with its defaults, or a `Solver`.
        stochasticity: in [0, 1]; what it means is the solver's to say. None takes the solver's
            default; solvers without one take none.
        guidance: an object of `ropewalk.blocks.diffusion.guidance`, or a function (predict, x_t, t,
            condition, process) → `Prediction`.
        condition: handed to the model; a tensor has one entry for each sample.
        times: falling times in [0, 1], steps + 1 of them. A run may begin below 1, from `start`,
            and end above 0, with what is still noisy; at 0 it ends on the prediction x̂₀. Where the
            schedule keeps noise at t = 0 (Karras) the last two times may both be 0: a step from
            σ_min to the data, as EDM's.
        start: x at the first time, e.g. `process.corrupt(x0, noise, 0.6)`; None draws the prior.
        temperature: of the draws of discrete processes, > 0.
        generator: of everything that is drawn; with it, and a model that draws nothing, samples are
            the same every time.
        callback: called after each step with (number of the step from 0, x, x̂₀, the time reached):
            it may return a tensor to go on from, or False to stop there.
        progress: True for a bar (of rich); or a function that wraps an iterable of steps, such as
            `rich.progress.track` or `tqdm`.
        dtype: of the states; None takes start's, or the model's but float32 at least. Tokens have
            their own.
        device: of the states; None takes start's, or the model's.

    Returns:
        Samples of `shape`.

    Raises:
        ValueError, TypeError: before the model runs, for a number out of its range, an unknown
            solver or one that the process does not define, times that do not fall, a condition of
            another batch, a guidance without what it needs; after its first call, for an output of
            another shape.
        ImportError: progress=True without rich.
    """
    predictor = Predictor(model, process)
    chosen = named(solver)
    knots = checked_times(process, steps, times)
    amount = checked_stochasticity(chosen, stochasticity)
    chosen.refuse(process, knots, amount)
    if temperature != 1 and not process.discrete:
        raise ValueError(
            f"temperature: expected 1 for the process {process.kind!r}, which draws no tokens, "
            f"got {temperature!r}"
        )
    check_shape(shape, start)
    check_calls(callback, progress)
    check_condition(shape, condition, model)
    predictor.shape = tuple(shape)
    check_guidance(guidance, predictor, condition, process)
    run = Run(
        process,
        guided(predictor, guidance, condition),
        amount,
        checked_temperature(temperature),
        generator,
    )
    bar = _bar(progress)
    x = first_state(process, model, shape, start, generator, dtype, device)

    memory: Any = None
    with not_training(model, guidance):
        for step in bar(range(len(knots) - 1)):
            s = knots[step + 1]
            span = Span(knots[step], s, lands=step + 2 == len(knots) and float(s) == 0)
            x, x0, memory = chosen.step(run, x, span, memory)
            if callback is None:
                continue
            answer = callback(step, x, x0, s)
            if isinstance(answer, Tensor):
                x = _edited(answer, x)
            elif isinstance(answer, bool | np.bool_) and not answer:
                break
    return x


def first_state(
    process: Process,
    model: Model,
    shape: Sequence[int],
    start: Tensor | None,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """The state at the first time."""
    weight = weight_of(model)
    if start is not None:
        x = start.to(start.device if device is None else device, dtype or start.dtype)
        if isinstance(process, Discrete):
            require_tokens("start", x, process.states)
        else:
            require_data("start", x)
        check_generator(generator, x.device)
        return x
    if weight is not None:
        device = weight.device if device is None else device
        if dtype is None and not process.discrete:
            dtype = torch.promote_types(weight.dtype, torch.float32)
    device = torch.get_default_device() if device is None else torch.device(device)
    check_generator(generator, device)
    return process.prior(tuple(shape), generator=generator, device=device, dtype=dtype)


def _edited(answer: Float[Tensor, "batch ..."], x: Tensor) -> Tensor:
    if answer.shape != x.shape:
        raise ValueError(
            f"callback: expected a state of shape {tuple(x.shape)}, got {tuple(answer.shape)}"
        )
    return answer.to(x)


def _bar(progress: Progress) -> Callable[[Iterable[int]], Iterable[int]]:
    if callable(progress):
        return progress
    if not progress:
        return lambda steps: steps
    try:
        from rich.progress import track
    except ImportError as error:
        raise ImportError(
            "progress=True shows a bar of rich: pip install 'ropewalk[diffusion]', or pass a "
            "function that wraps an iterable, such as tqdm"
        ) from error
    return lambda steps: track(steps, description="sampling", transient=True)
