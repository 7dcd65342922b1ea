"""What `sample` refuses, before the model runs."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_number, require_positive
from ropewalk.blocks.diffusion.checks import described
from ropewalk.blocks.diffusion.predict import Predictor
from ropewalk.blocks.diffusion.process import Process
from ropewalk.blocks.diffusion.solvers import Solver


def checked_times(
    process: Process, steps: int | None, times: Tensor | Sequence[float] | None
) -> Float[Tensor, " knots"]:
    """The times of a run, float64 on the CPU.

    Raises:
        ValueError: too few steps, neither steps nor times or two that disagree, times that leave
            [0, 1] or do not fall.
        TypeError: `steps` is not an integer.
    """
    if steps is not None:
        require_integer("sample", 1, steps=steps)
    if times is None:
        if steps is None:
            raise ValueError("sample: expected steps or times, got neither")
        return process.schedule.times(steps).to(device="cpu", dtype=torch.float64)
    knots = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
    if knots.ndim != 1 or len(knots) < 2:
        raise ValueError(
            f"sample.times: expected at least two times in a row, got shape {tuple(knots.shape)}"
        )
    if steps is not None and steps != len(knots) - 1:
        raise ValueError(
            f"sample: expected steps + 1 times, got steps={steps} and {len(knots)} times; leave "
            "out one of the two"
        )
    if not bool(((knots >= 0) & (knots <= 1)).all()):
        raise ValueError(f"sample.times: expected times in [0, 1], got {knots.tolist()}")
    rising = knots[1:] >= knots[:-1]
    # From what noise a schedule keeps at t = 0 there is one more step, to the data.
    rising[-1] &= not (float(knots[-2]) == 0 and float(process.schedule.sigma(0.0)) > 0)
    if bool(rising.any()):
        at = int(rising.nonzero()[0, 0])
        raise ValueError(
            f"sample.times: expected falling times, got {float(knots[at]):g} before "
            f"{float(knots[at + 1]):g}"
        )
    return knots


def checked_stochasticity(solver: Solver, given: float | None) -> float:
    """The stochasticity that a solver runs with.

    Raises:
        ValueError: it is outside [0, 1], or the solver takes none.
        TypeError: it is not a number.
    """
    if given is None:
        return 0.0 if solver.stochasticity is None else solver.stochasticity
    require_number("sample", "a number in [0, 1]", stochasticity=given)
    if not 0 <= given <= 1:
        raise ValueError(f"sample.stochasticity: expected a number in [0, 1], got {given!r}")
    if solver.stochasticity is None:
        raise ValueError(
            f"sample.stochasticity: solver {solver.name!r} takes none, got {given!r}; leave it "
            "out, or take 'euler'"
        )
    return float(given)


def checked_temperature(temperature: float) -> float:
    """The temperature, a finite number above 0."""
    require_positive("sample", temperature=temperature)
    return float(temperature)


def check_shape(shape: Sequence[int], start: Tensor | None) -> None:
    """Raises unless the shape has a batch, and `start` is a tensor of it."""
    if not isinstance(shape, Sequence):
        raise TypeError(f"sample.shape: expected integers (batch, …), got {described(shape)}")
    for extent in shape:
        require_integer("sample", 0, shape=extent)
    if len(shape) == 0:
        raise ValueError("sample.shape: expected (batch, …), got ()")
    if start is not None and not isinstance(start, Tensor):
        raise TypeError(f"sample.start: expected a tensor, got {type(start).__name__}")
    if start is not None and start.shape != tuple(shape):
        raise ValueError(
            f"sample.start: expected the shape {tuple(shape)}, got {tuple(start.shape)}"
        )


def check_condition(shape: Sequence[int], condition: Any, model: Any) -> None:
    """Raises unless a condition that is a tensor has one entry for each sample.

    A model with a method `check_condition(condition, batch)` says itself what it does not take,
    on a device too, where its forward would rather not wait for the values.
    """
    if isinstance(condition, Tensor) and condition.shape[:1] != tuple(shape[:1]):
        raise ValueError(
            f"sample.condition: expected one for each of {shape[0]} samples, "
            f"got shape {tuple(condition.shape)}"
        )
    own = getattr(model, "check_condition", None)
    if callable(own):
        own(condition, shape[0])


def check_guidance(guidance: Any, predictor: Predictor, condition: Any, process: Process) -> None:
    """Lets a guidance say what it misses; functions without a `check` have none."""
    check = getattr(guidance, "check", None)
    if guidance is not None and not callable(guidance):
        raise TypeError(
            "guidance: expected None or a callable (predict, x_t, t, condition, process), got "
            f"{described(guidance)}"
        )
    if check is not None:
        check(predictor, condition, process)


def check_calls(callback: object, progress: object) -> None:
    """Raises unless what is called during a run can be called."""
    if callback is not None and not callable(callback):
        raise TypeError(
            "sample.callback: expected None or a callable (step, x, x0, t), got "
            f"{described(callback)}"
        )
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            "sample.progress: expected True, False or a function that wraps an iterable, got "
            f"{described(progress)}"
        )


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Raises unless the generator draws where the states are."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"sample.generator: expected a torch.Generator, got {described(generator)}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"sample.generator: expected a generator on {device.type!r}, where the samples are, "
            f"got one on {generator.device.type!r}; make it with torch.Generator({device.type!r})"
        )
