"""What every schedule is: how much data and how much noise x_t = α(t)·x₀ + σ(t)·ε holds.

Time runs from 0, the data, to 1, the noise, always. A subclass gives α, σ, their derivatives and
the time at which a log-SNR is reached; everything else follows:

    log-SNR    λ = 2·log(α/σ)                          falls with t; may be ±∞ at the ends
    severity   the share σ/(α + σ) of the noise, stretched to run from exactly 0 to exactly 1

The severity is what processes without a Gaussian use as their clock (how blurred, how many tokens
are masked). Where σ rises from zero like a square root, σ' is infinite at t = 0, and α' likewise at
t = 1; the subclasses say so.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.diffusion.checks import Time, as_time, described

Times = Float[Tensor, " *times"]
"""Any shape; float32 or float64."""


@dataclass(frozen=True)
class Schedule(ABC):
    """Base class of schedules; subclasses are frozen dataclasses of their parameters.

    Every method takes a number or a floating-point tensor of any shape and returns that shape, in
    float32 for half precision and for float32, in float64 for numbers and float64.
    Times outside [0, 1] raise a ValueError where they can be read (see `diffusion.checks`).
    """

    @final
    def alpha(self, t: Time) -> Times:
        """α(t), the factor on the data."""
        return self._alpha(as_time(t))

    @final
    def sigma(self, t: Time) -> Times:
        """σ(t), the factor on the noise."""
        return self._sigma(as_time(t))

    @final
    def alpha_derivative(self, t: Time) -> Times:
        """dα/dt."""
        return self._alpha_derivative(as_time(t))

    @final
    def sigma_derivative(self, t: Time) -> Times:
        """dσ/dt."""
        return self._sigma_derivative(as_time(t))

    @final
    def log_snr(self, t: Time) -> Times:
        """λ(t) = 2·log(α/σ), strictly falling."""
        return self._log_snr(as_time(t))

    @final
    def time_at(self, log_snr: Tensor | float) -> Times:
        """The time at which the log-SNR is λ; 0 or 1 for a λ that the schedule never reaches.

        Args:
            log_snr: a number or a floating-point tensor of any shape; may be infinite.

        Raises:
            TypeError: neither of these.
        """
        if not isinstance(log_snr, Tensor):
            if isinstance(log_snr, bool) or not isinstance(log_snr, int | float):
                raise TypeError(f"log_snr: expected a number or a tensor, got {described(log_snr)}")
            log_snr = torch.tensor(float(log_snr), dtype=torch.float64)
        if not log_snr.is_floating_point():
            raise TypeError(f"log_snr: expected a floating-point tensor, got {log_snr.dtype}")
        log_snr = log_snr.to(torch.promote_types(log_snr.dtype, torch.float32))
        return self._time_at(log_snr).clamp(0.0, 1.0)

    @final
    def severity(self, t: Time) -> Times:
        """How far the corruption has gone: 0 at t = 0 and 1 at t = 1, both exactly, rising."""
        t = as_time(t)
        first, last = self._ends(t)
        share = (self._share(t) - first) / (last - first)
        # A vectorised function may give another last bit at the ends than a scalar one.
        return torch.where(t <= 0, 0.0, torch.where(t >= 1, 1.0, share.clamp(0.0, 1.0)))

    @final
    def severity_derivative(self, t: Time) -> Times:
        """The derivative of the severity."""
        t = as_time(t)
        first, last = self._ends(t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        slope = self._sigma_derivative(t) * alpha - sigma * self._alpha_derivative(t)
        return slope / ((alpha + sigma).square() * (last - first))

    def times(self, steps: int) -> Float[Tensor, " knots"]:
        """The times of a sampler with so many steps, from 1 to 0: evenly spaced.

        Returns:
            float64 (steps + 1) on the CPU.

        Raises:
            TypeError, ValueError: `steps` is not an integer above 0.
        """
        require_integer(type(self).__name__, 1, steps=steps)
        return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)

    def model_time(self, t: Time) -> Times:
        """What a model is told at time t: t itself, but for schedules that only move the clock."""
        return as_time(t)

    @abstractmethod
    def _alpha(self, t: Times) -> Times:
        """α of checked times."""

    @abstractmethod
    def _sigma(self, t: Times) -> Times:
        """σ of checked times."""

    @abstractmethod
    def _alpha_derivative(self, t: Times) -> Times:
        """dα/dt at checked times."""

    @abstractmethod
    def _sigma_derivative(self, t: Times) -> Times:
        """dσ/dt at checked times."""

    @abstractmethod
    def _time_at(self, log_snr: Times) -> Times:
        """The inverse of the log-SNR, before it is cut to [0, 1]."""

    def _log_snr(self, t: Times) -> Times:
        """λ of checked times, from α and σ unless a subclass knows better."""
        return 2 * (self._alpha(t).log() - self._sigma(t).log())

    def _share(self, t: Times) -> Times:
        """σ/(α + σ)."""
        sigma = self._sigma(t)
        return sigma / (self._alpha(t) + sigma)

    def _ends(self, t: Times) -> tuple[Times, Times]:
        """The shares at t = 0 and t = 1, 0-d."""
        return self._share(t.new_zeros(())), self._share(t.new_ones(()))
