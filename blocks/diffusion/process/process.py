"""What every process is: a corruption x_t = F_t(x₀, ε) of the data, with a noise one can solve for.

This is the unified diffusion model: whatever F is, a sampler solves for the noise given a predicted
x̂₀ and corrupts again, a little less (`ropewalk.blocks.diffusion.step`). A process says

    fresh     a noise ε for this data
    corrupt   x_t = F_t(x₀, ε)
    noise     ε from x_t and x₀; a draw from what is possible where many noises fit
    renew     ε with the part ρ of it replaced, so that its law stays what it was
    prior     x at t = 1
    predict   the model's output read as a prediction of x₀
    draw      an x̂₀ from the prediction
    loss      how wrong the output is, per sample

Source: Su, kexue.fm/archives/9262 (the unified model), 9271 and 9370.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.diffusion.checks import (
    Time,
    described,
    per_sample,
    readable,
    require_data,
    require_same_shape,
    time_rows,
)
from ropewalk.blocks.diffusion.parametrisation import Parametrisation, parametrisation
from ropewalk.blocks.diffusion.schedule import Schedule

Sample = Num[Tensor, "batch ..."]
Noise = TypeVar("Noise")


class Process(ABC, Generic[Noise]):
    """Base class of processes; subclasses are frozen dataclasses.

    Times are numbers, 0-d tensors or (batch,), in [0, 1]; 0 is data and 1 is noise.

    Attributes:
        schedule: α and σ over time, or the severity they give.
        discrete: whether the data are tokens (integers) rather than floating-point.
        kind: the name by which solvers say what they are defined for.
    """

    schedule: Schedule
    discrete: ClassVar[bool]
    kind: ClassVar[str]

    @abstractmethod
    def fresh(self, x0: Sample, *, generator: torch.Generator | None = None) -> Noise:
        """A noise for data of this shape, dtype and device.

        Schedules take continuous data to be of about unit size, as in [−1, 1].
        """

    @abstractmethod
    def corrupt(self, x0: Sample, noise: Noise, t: Time) -> Sample:
        """x_t = F_t(x₀, ε)."""

    @abstractmethod
    def noise(
        self, x_t: Sample, x0: Sample, t: Time, *, generator: torch.Generator | None = None
    ) -> Noise:
        """The noise that corrupts x0 to x_t, or a draw from the posterior where many do."""

    @abstractmethod
    def renew(self, noise: Noise, rho: Time, *, generator: torch.Generator | None = None) -> Noise:
        """The noise with the part ρ in [0, 1] of it replaced; 0 keeps it and 1 makes a fresh one.

        Its law is unchanged. ρ is a number, 0-d or one per sample.
        """

    @abstractmethod
    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Sample:
        """The state at t = 1, before anything is known."""

    @abstractmethod
    def model_input(self, x_t: Sample, t: Time) -> Sample:
        """What the network is given instead of x_t."""

    @abstractmethod
    def predict(self, output: Tensor, x_t: Sample, t: Time) -> Tensor:
        """The model's output read: x̂₀, or log-probabilities (…, vocabulary) for tokens."""

    @abstractmethod
    def draw(
        self,
        prediction: Tensor,
        x_t: Sample,
        t: Time,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Sample:
        """An x̂₀ from a prediction."""

    @abstractmethod
    def loss(
        self, output: Tensor, x0: Sample, x_t: Sample, noise: Noise, t: Time
    ) -> Float[Tensor, " batch"]:
        """The loss of every sample, the mean over its elements, in float32 or float64."""


class Continuous(Process[Tensor]):
    """Base class of processes on floating-point data, whose noise is a tensor of the data's shape.

    Attributes:
        parametrisation: what the model's output means, by name or as an object.
    """

    discrete: ClassVar[bool] = False
    parametrisation: str | Parametrisation

    @property
    def reading(self) -> Parametrisation:
        """The parametrisation as an object."""
        return parametrisation(self.parametrisation)

    def coefficients(self, x: Float[Tensor, "batch ..."], t: Time) -> tuple[Tensor, Tensor]:
        """α(t) and σ(t), 0-d or shaped to multiply x; float32 for half precision, else x's dtype.

        Raises:
            TypeError, ValueError: x is not a batch of floating-point data, or t is no time for it.
        """
        require_data("x", x)
        rows = time_rows(t, x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.schedule.alpha(rows).to(dtype), self.schedule.sigma(rows).to(dtype)

    def model_input(self, x_t: Float[Tensor, "batch ..."], t: Time) -> Tensor:
        """c_in·x_t for "edm", x_t for the others."""
        return self.reading.input(x_t, *self.coefficients(x_t, t))

    def predict(self, output: Tensor, x_t: Float[Tensor, "batch ..."], t: Time) -> Tensor:
        """x̂₀ in x_t's dtype.

        Raises:
            TypeError: the output or x_t is not floating-point.
            ValueError: the output has another shape than x_t, or t is no time for it.
        """
        self._check_output(output, x_t)
        return self.reading.to_x0(output, x_t, *self.coefficients(x_t, t)).to(x_t.dtype)

    def draw(
        self,
        prediction: Tensor,
        x_t: Tensor,
        t: Time,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The prediction itself: there is nothing to draw.

        Raises:
            ValueError: a temperature other than 1, which would change nothing.
        """
        if temperature != 1:
            raise ValueError(
                f"temperature: expected 1 for {self.kind!r}, which draws no tokens, got "
                f"{temperature!r}"
            )
        return prediction

    def _check_output(self, output: Tensor, x_t: Tensor) -> None:
        require_data("x_t", x_t)
        require_data("output", output)
        require_same_shape("output", output, "x_t", x_t)


def check_rho(rho: Time, x: Sample) -> Tensor | float:
    """ρ, checked, as a number or shaped to multiply x.

    Raises:
        TypeError: ρ is neither a number nor a floating-point tensor.
        ValueError: it is outside [0, 1], or neither 0-d nor (batch,).
    """
    expected = "rho: expected the replaced part of the noise, in [0, 1]"
    if not isinstance(rho, Tensor):
        if isinstance(rho, bool) or not isinstance(rho, int | float):
            raise TypeError(f"{expected}, got {described(rho)}")
        if not 0 <= rho <= 1:
            raise ValueError(f"{expected}, got {rho!r}")
        return float(rho)
    if not rho.is_floating_point():
        raise TypeError(f"{expected}, as a floating-point tensor, got {rho.dtype}")
    if readable(rho) and not bool(((rho >= 0) & (rho <= 1)).all()):
        low, high = float(rho.detach().min()), float(rho.detach().max())
        raise ValueError(f"{expected}, got values from {low:g} to {high:g}")
    return per_sample(rho, x, "rho")


def require_schedule(schedule: object) -> None:
    """Raises unless this is a schedule.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule: expected a Schedule, such as Cosine(), got {described(schedule)}"
        )


def sample_mean(errors: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """The mean over each sample's elements."""
    return errors.flatten(1).mean(1) if errors.ndim > 1 else errors
