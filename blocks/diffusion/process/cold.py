"""The cold process: x_t is the data, degraded as far as t says, by anything that is no noise.

    F_t(x₀, ε) = D(x₀, severity(t)) + ε

with D(x, 0) = x. In training ε is 0. While sampling it is the residual x_t − D(x̂₀, t) that x̂₀ does
not explain, so the universal step is x_t − D(x̂₀, t) + D(x̂₀, s): cold diffusion's improved sampling.
It is exact for D(x, t) = x + t·e with any x̂₀, right or wrong, where D(x̂₀, s) alone would
follow every error of the model. Renewing the part ρ of a residual only forgets it: √(1 − ρ²)·ε.

The model's output is read by the parametrisation with the schedule's α and σ, as a change of
variables; "x0" is the natural one. The loss is the L1 distance of x̂₀ to the data.

Source: Bansal et al., arXiv 2208.09392, algorithm 2 and equation 3; Su, kexue.fm/archives/9262.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time, require_data, require_same_shape, time_rows
from ropewalk.blocks.diffusion.degradations import Degradation, degradation
from ropewalk.blocks.diffusion.parametrisation import Parametrisation, parametrisation
from ropewalk.blocks.diffusion.process.cold_start import FittedStart
from ropewalk.blocks.diffusion.process.process import (
    Continuous,
    check_rho,
    require_schedule,
    sample_mean,
)
from ropewalk.blocks.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Cold(Continuous):
    """x_t = D(x₀, severity(t)) + residual.

    Attributes:
        degradation: a name of `DEGRADATIONS`, or any function of (x₀, severity) that keeps the
            shape and does nothing at severity 0. It is given x₀ in float32 at least, and the
            severity in [0, 1], 0-d or shaped to multiply x₀.
        schedule: its severity is the clock; `RectifiedFlow` degrades evenly.
        parametrisation: how the model's output is read.
        start: draws the fully degraded x at t = 1: start(shape, *, generator, device, dtype). Given
            by `fit`, or one's own.

    Raises:
        TypeError: a field is of the wrong kind.
        ValueError: the degradation or the parametrisation is not known.

    Example:
        >>> process = Cold(Fade(), RectifiedFlow()).fit(torch.rand(10, 1, 8, 8))
        >>> process.prior((2, 1, 8, 8)).abs().max()
        tensor(0.)
    """

    kind: ClassVar[str] = "cold"
    degradation: str | Degradation
    schedule: Schedule
    parametrisation: str | Parametrisation = "x0"
    start: Callable[..., Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        degradation(self.degradation)
        require_schedule(self.schedule)
        parametrisation(self.parametrisation)
        if self.start is not None and not callable(self.start):
            raise TypeError(
                f"Cold.start: expected a function of (shape, *, generator, device, dtype), got "
                f"{type(self.start).__name__}; data is given with .fit(data)"
            )

    def fit(self, data: Float[Tensor, "examples ..."], *, law: str = "examples") -> "Cold":
        """The same process with a prior made of this data, degraded all the way.

        Args:
            data: examples of the data, which are kept, degraded; a few thousand are plenty.
            law: "examples" draws among them, "gaussian" from a Gaussian of their mean and
                covariance.

        Returns:
            A new process; this one stays as it is.

        Raises:
            TypeError: the data is not floating-point.
            ValueError: there is none, or the law is not known.
        """
        require_data("data", data)
        return replace(self, start=FittedStart(self._degraded(data, 1.0).to(data.dtype), law))

    def fresh(
        self, x0: Float[Tensor, "batch ..."], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Zeros: degraded data has no residual."""
        require_data("x0", x0)
        return torch.zeros_like(x0)

    def corrupt(
        self, x0: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], t: Time
    ) -> Float[Tensor, "batch ..."]:
        """D(x₀, severity(t)) + noise in x0's dtype, rounded once.

        Raises:
            TypeError: the data is not floating-point.
            ValueError: shapes differ, the degradation changes the shape, or t is no time for x0.
        """
        require_data("x0", x0)
        require_same_shape("noise", noise, "x0", x0)
        degraded = self._degraded(x0, t)
        return (degraded + noise.to(degraded.dtype)).to(x0.dtype)

    def noise(
        self,
        x_t: Float[Tensor, "batch ..."],
        x0: Float[Tensor, "batch ..."],
        t: Time,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """The residual x_t − D(x₀, severity(t)) in x_t's dtype."""
        require_data("x_t", x_t)
        require_data("x0", x0)
        require_same_shape("x0", x0, "x_t", x_t)
        degraded = self._degraded(x0, t)
        return (x_t.to(degraded.dtype) - degraded).to(x_t.dtype)

    def renew(
        self,
        noise: Float[Tensor, "batch ..."],
        rho: Time,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """√(1 − ρ²)·residual: ρ = 1 forgets what x̂₀ does not explain, as plain sampling does."""
        require_data("noise", noise)
        part = check_rho(rho, noise)
        if not isinstance(part, Tensor):
            return noise * ((1 - part) * (1 + part)) ** 0.5
        dtype = torch.promote_types(noise.dtype, torch.float32)
        part = part.to(dtype)
        return (noise.to(dtype) * ((1 - part) * (1 + part)).sqrt()).to(noise.dtype)

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """Fully degraded data, as `start` draws it.

        Raises:
            ValueError: there is no start, or it gives another shape.
        """
        if self.start is None:
            raise ValueError(
                "Cold: expected a start to sample from; make one of data with "
                "process = process.fit(data), or give Cold(…, start=function)"
            )
        x = self.start(tuple(shape), generator=generator, device=device, dtype=dtype)
        require_data("start", x)
        if x.shape != tuple(shape):
            raise ValueError(f"start: expected shape {tuple(shape)}, got {tuple(x.shape)}")
        return x

    def loss(
        self,
        output: Tensor,
        x0: Float[Tensor, "batch ..."],
        x_t: Float[Tensor, "batch ..."],
        noise: Float[Tensor, "batch ..."],
        t: Time,
    ) -> Float[Tensor, " batch"]:
        """The mean of |x̂₀ − x₀|.

        Raises:
            TypeError: a tensor is not floating-point.
            ValueError: shapes differ, or t is no time for them.
        """
        self._check_output(output, x_t)
        require_same_shape("x0", x0, "x_t", x_t)
        alpha, sigma = self.coefficients(x_t, t)
        read = self.reading.to_x0(output.to(alpha.dtype), x_t.to(alpha.dtype), alpha, sigma)
        return sample_mean((read - x0.to(alpha.dtype)).abs())

    def _degraded(self, x0: Float[Tensor, "batch ..."], t: Time) -> Float[Tensor, "batch ..."]:
        """D(x₀, severity(t)) in float32 at least."""
        dtype = torch.promote_types(x0.dtype, torch.float32)
        severity = self.schedule.severity(time_rows(t, x0)).to(x0.device, dtype)
        degraded = degradation(self.degradation)(x0.to(dtype), severity)
        require_same_shape("degradation", degraded, "x0", x0)
        return degraded
