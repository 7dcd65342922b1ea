"""The model as a sampler sees it: x_t and a time in, a checked prediction of x₀ out.

A model is any callable `model(x_t, t, condition)` with t of shape (batch,) and a condition that may
be None. If it has an attribute `null_condition`, guidance finds there what stands for "no
condition"; if it has a method `check_condition(condition, batch)`, `sample` asks it before any work
whether it takes the condition. `Predictor` scales its input, tells it the time, checks the shape of
what it gives, and reads that as the process's parametrisation says.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from ropewalk.blocks.diffusion.checks import Time, as_time, described, per_sample, wide
from ropewalk.blocks.diffusion.process import Process

Model = Callable[[Tensor, Tensor, Any], Tensor]
"""model(x_t, t (batch,), condition or None) -> output."""


class Prediction(NamedTuple):
    """What a model predicts.

    Attributes:
        data: x̂₀ of x_t's shape, or for tokens log-probabilities (batch, *shape, vocabulary).
        variance: the other half of the channels of a model that learns its variance, as it gave
            them; None for other models.
    """

    data: Float[Tensor, "batch ..."]
    variance: Float[Tensor, "batch ..."] | None = None


def split_variance(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
    """An output of twice x_t's channels as prediction and variance; others as (output, None).

    Args:
        output: (batch, channels or 2·channels, …).
        x_t: (batch, channels, …).

    Raises:
        ValueError: the output has another shape than these.
    """
    if output.shape == x_t.shape:
        return output, None
    doubled = x_t.ndim > 1 and output.shape == (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:])
    if not doubled:
        raise ValueError(
            f"model: expected an output of x_t's shape {tuple(x_t.shape)}, or of twice its "
            f"channels (dimension 1) for a learned variance, got {tuple(output.shape)}"
        )
    prediction, variance = output.chunk(2, 1)
    return prediction, variance


def require_model(model: object) -> None:
    """Raises unless this can be called with (x_t, t, condition), as far as its signature shows.

    Raises:
        TypeError: it is not callable, or takes another number of arguments.
    """
    if not callable(model):
        raise TypeError(f"model: expected a callable (x_t, t, condition), got {described(model)}")
    if torch.compiler.is_compiling():
        return  # a compiled call of the model says it itself
    called = model.forward if isinstance(model, nn.Module) else model
    if not inspect.isroutine(called):
        called = called.__call__
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return  # it shows none
    try:
        signature.bind(None, None, None)
    except TypeError:
        names = ", ".join(signature.parameters)
        raise TypeError(
            f"model: expected a callable of three arguments (x_t, t, condition), got one of "
            f"({names}); wrap it, as in lambda x_t, t, condition: model(x_t, t)"
        ) from None


def weight_of(model: object) -> Tensor | None:
    """A floating-point parameter of the model; None if it has none to show."""
    if not isinstance(model, nn.Module):
        return None
    return next((p for p in model.parameters() if p.is_floating_point()), None)


class Predictor:
    """A model and a process as one function from x_t to a prediction.

    A module, also one that a guidance brings, is given its own dtype whatever the state's; times
    keep float32 at least.

    Args:
        model: any `model(x_t, t, condition)`.
        process: how the data was corrupted, and what the output means.
        model_time: what the model is told at the times (batch,). By default the time itself, or for
            a shifted schedule that of the schedule which it shifts.

    Attributes:
        shape: (batch, …) of the states that it will be called with, which guidances check what
            they have against; None where it is not known.

    Raises:
        TypeError: the model cannot be called like this, or the process is not a `Process`.

    Example:
        >>> predict = Predictor(lambda x, t, y: torch.zeros_like(x), Gaussian(RectifiedFlow(), "v"))
        >>> predict(torch.randn(2, 1, 8, 8), 0.5).data.shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        model: Model,
        process: Process,
        *,
        model_time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        require_model(model)
        if not isinstance(process, Process):
            raise TypeError(f"process: expected a Process, got {described(process)}")
        self.model = model
        self.process = process
        self.model_time = process.schedule.model_time if model_time is None else model_time
        self.shape: tuple[int, ...] | None = None

    @property
    def null_condition(self) -> Any:
        """The model's "no condition", None if it has none."""
        return getattr(self.model, "null_condition", None)

    def check_condition(self, condition: Any, batch: int) -> None:
        """Lets the model say, before it runs, what it does not take; others take everything.

        Raises:
            TypeError, ValueError: as the model says.
        """
        own = getattr(self.model, "check_condition", None)
        if callable(own):
            own(condition, batch)

    def output(
        self,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any = None,
        model: Model | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The model's output before it is read, and the variance if it gives one.

        Raises:
            TypeError: the model gives no floating-point tensor.
            ValueError: the output's shape is not what the process reads, or t is no time for x_t.
        """
        # Full precision before any rounding: a shifted clock is read most closely near its ends.
        times = self.model_time(per_sample(as_time(t), x_t, "t").flatten())
        times = times.to(x_t.device, wide(x_t) if x_t.is_floating_point() else torch.float32)
        model = self.model if model is None else model
        seen, weight = self.process.model_input(x_t, t), weight_of(model)
        if weight is not None and seen.is_floating_point():
            seen = seen.to(weight.dtype)
            times = times.to(torch.promote_types(weight.dtype, torch.float32))
        output = model(seen, times.expand(x_t.shape[0]), condition)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"model: expected a floating-point tensor as output, got {got}")
        if self.process.discrete:
            return output, None  # `predict` checks the shape
        return split_variance(output, x_t)

    def __call__(
        self,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any = None,
        model: Model | None = None,
    ) -> Prediction:
        """What the model predicts for x_t.

        Args:
            x_t: the state.
            t: a number, 0-d or (batch,).
            condition: handed to the model as it is.
            model: another model in place of this one's.

        Returns:
            The prediction; its data is in x_t's dtype, log-probabilities in float32 at least.

        Raises:
            TypeError, ValueError: see `output`.
        """
        output, variance = self.output(x_t, t, condition, model)
        return Prediction(self.process.predict(output, x_t, t), variance)
