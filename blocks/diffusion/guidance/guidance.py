"""What a guidance is: a function of the model's predictions that steers them.

    guidance(predict, x_t, t, condition, process) -> Prediction

where predict(x_t, t, condition, model=None) runs the model (or another one) and returns a
`Prediction`. Guidances act on x̂₀: an output is an affine function of x̂₀ given x_t, so that mixing
predictions gives the same in every parametrisation. For tokens they act on log-probabilities.

`Compose` puts one around another: the outer one sees the inner one's predictions as the model's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import Time, described
from ropewalk.blocks.diffusion.predict import Model, Prediction
from ropewalk.blocks.diffusion.process import Process


class Predict(Protocol):
    """The model, possibly guided already; `Predictor` is one."""

    @property
    def null_condition(self) -> Any:
        """What stands for "no condition"; None if the model has nothing for it."""
        ...

    def __call__(
        self, x_t: Tensor, t: Time, condition: Any = None, model: Model | None = None
    ) -> Prediction:
        """The prediction for x_t."""
        ...


@dataclass(frozen=True)
class Guidance(ABC):
    """Base class of guidances; subclasses are frozen dataclasses of their parameters."""

    def check(self, predict: Predict, condition: Any, process: Process) -> None:  # noqa: B027 - may be left
        """Raises where this guidance cannot work, before the model has run.

        Args:
            predict: the model.
            condition: what will be handed to it.
            process: how the data was corrupted.

        Raises:
            ValueError, TypeError: something that the guidance needs is missing or of a wrong kind.
        """

    @abstractmethod
    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """The guided prediction for x_t.

        Args:
            predict: the model.
            x_t: the state.
            t: a number, 0-d or (batch,).
            condition: handed to the model.
            process: how the data was corrupted.

        Returns:
            A prediction like the model's; its variance is the model's own.
        """


Steering = Guidance | Callable[..., Prediction]
"""A `Guidance`, or any function with its signature."""


class _Replaced:
    """A `Predict` with another model in place of its own."""

    def __init__(self, predict: Predict, model: Model) -> None:
        self.predict, self.model = predict, model

    @property
    def null_condition(self) -> Any:
        return self.predict.null_condition

    def __call__(
        self, x_t: Tensor, t: Time, condition: Any = None, model: Model | None = None
    ) -> Prediction:
        return self.predict(x_t, t, condition, self.model if model is None else model)


class Guided:
    """A model under a guidance, as the next guidance sees it: again a `Predict`.

    Args:
        guidance: how its predictions are steered.
        predict: the model.
        process: how the data was corrupted.
    """

    def __init__(self, guidance: Steering, predict: Predict, process: Process) -> None:
        self.guidance, self.predict, self.process = guidance, predict, process

    @property
    def null_condition(self) -> Any:
        """The model's "no condition"."""
        return getattr(self.predict, "null_condition", None)

    def __call__(
        self, x_t: Tensor, t: Time, condition: Any = None, model: Model | None = None
    ) -> Prediction:
        """The guided prediction, of another model if one is given."""
        predict = self.predict if model is None else _Replaced(self.predict, model)
        return self.guidance(predict, x_t, t, condition, self.process)


@dataclass(frozen=True)
class Compose(Guidance):
    """One guidance around another.

    Attributes:
        inner: acts on the model.
        outer: acts on what the inner one gives; another `Compose` makes longer chains.

    Raises:
        TypeError: one of them is not callable.

    Example:
        >>> guidance = Compose(ClassifierFree(2.0), Interval(AutoGuidance(small, 0.5), 0.2, 0.8))
    """

    inner: Steering
    outer: Steering

    def __post_init__(self) -> None:
        require_callable("Compose", inner=self.inner, outer=self.outer)

    def check(self, predict: Predict, condition: Any, process: Process) -> None:
        """Raises what either of them raises."""
        for each in (self.inner, self.outer):
            check_guidance(each, predict, condition, process)

    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """The outer guidance of the inner one's predictions."""
        return self.outer(Guided(self.inner, predict, process), x_t, t, condition, process)


def check_guidance(guidance: Steering, predict: Predict, condition: Any, process: Process) -> None:
    """Calls the guidance's own `check`; functions have none."""
    if isinstance(guidance, Guidance):
        guidance.check(predict, condition, process)


def require_callable(owner: str, **fields: object) -> None:
    """Raises unless every field can be called.

    Raises:
        TypeError: one cannot.
    """
    for name, value in fields.items():
        if not callable(value):
            raise TypeError(f"{owner}.{name}: expected a callable, got {described(value)}")


def require_scale(owner: str, scale: float) -> None:
    """Raises unless a guidance's scale is a finite number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is infinite or NaN.
    """
    require_number(owner, scale=scale)
    if not math.isfinite(scale):
        raise ValueError(f"{owner}.scale: expected a finite number, got {scale!r}")


def away_from(
    prediction: Float[Tensor, "batch ..."],
    other: Float[Tensor, "batch ..."],
    scale: float,
    process: Process,
) -> Float[Tensor, "batch ..."]:
    """(1 + scale)·prediction − scale·other; of log-probabilities, normalised.

    What the prediction holds impossible stays so; what only the other does keeps its own weight.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    kept, left = prediction.to(dtype), other.to(dtype)
    if not process.discrete:
        return ((1 + scale) * kept - scale * left).to(prediction.dtype)
    finite = kept.isfinite() & left.isfinite()
    # Differences of infinities are never formed, not even to be thrown away: gradients stay finite.
    difference = torch.where(finite, kept, 0.0) - torch.where(finite, left, 0.0)
    return (kept + scale * difference).log_softmax(-1).to(prediction.dtype)


def tilted(
    data: Float[Tensor, "batch ..."],
    gradient: Float[Tensor, "batch ..."],
    strength: Tensor | float,
    process: Process,
) -> Float[Tensor, "batch ..."]:
    """Data + strength·gradient; of log-probabilities, normalised."""
    dtype = torch.promote_types(data.dtype, torch.float32)
    result = data.to(dtype) + strength * gradient.to(dtype)
    return (result.log_softmax(-1) if process.discrete else result).to(data.dtype)


def gradient_of(
    function: Callable[[Tensor], Float[Tensor, " batch"]], x: Float[Tensor, "batch ..."], name: str
) -> Float[Tensor, "batch ..."]:
    """The gradient of each sample's value, also where gradients are switched off around it.

    Raises:
        ValueError: the function does not give one value per sample, or some that do not depend on
            x.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        values = function(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(f"{name}: expected one value per sample, ({len(x)},), got {got}")
        if not values.requires_grad:
            raise ValueError(
                f"{name}: expected values that depend on x by differentiable operations, got some "
                "without a gradient; look for .detach(), torch.no_grad() or .item() in it"
            )
        (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        if gradient is None:
            raise ValueError(
                f"{name}: expected values that depend on x by differentiable operations, got some "
                "whose gradient does not reach x; look for .detach() or torch.tensor(x) in it"
            )
        return gradient
