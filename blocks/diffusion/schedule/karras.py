"""Karras' schedule (EDM): α = 1, and σ between its ends evenly spaced in the 1/ρ-th power.

    σ(t) = (σ_min^(1/ρ) + t(σ_max^(1/ρ) − σ_min^(1/ρ)))^ρ

The variance explodes: x₁ has a standard deviation near σ_max. σ(0) = σ_min, not 0, so that a
sampler's last step returns the prediction x̂₀ instead of x₀ + σ_min·ε.

Source: Karras et al., arXiv 2206.00364, equation 5, with t running the other way.
"""

from dataclasses import dataclass

import torch

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times


@dataclass(frozen=True)
class Karras(Schedule):
    """α = 1, σ from sigma_min to sigma_max.

    Attributes:
        sigma_min: σ at t = 0, above 0.
        sigma_max: σ at t = 1, above sigma_min.
        rho: how much denser the small σ lie; 1 spaces them evenly.

    Raises:
        TypeError: a field is not a number.
        ValueError: a field is not above 0, or sigma_max not above sigma_min.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        require_positive("Karras", sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"Karras.sigma_max: expected a number above sigma_min = {self.sigma_min}, got "
                f"{self.sigma_max!r}"
            )

    @property
    def _roots(self) -> tuple[float, float]:
        """The first root and the distance to the last."""
        first = self.sigma_min ** (1 / self.rho)
        return first, self.sigma_max ** (1 / self.rho) - first

    def _root(self, t: Times) -> Times:
        first, distance = self._roots
        return first + t * distance

    def _alpha(self, t: Times) -> Times:
        return torch.ones_like(t)

    def _sigma(self, t: Times) -> Times:
        return self._root(t) ** self.rho

    def _alpha_derivative(self, t: Times) -> Times:
        return torch.zeros_like(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return self.rho * self._roots[1] * self._root(t) ** (self.rho - 1)

    def _log_snr(self, t: Times) -> Times:
        return -2 * self.rho * self._root(t).log()

    def _time_at(self, log_snr: Times) -> Times:
        first, distance = self._roots
        return ((-log_snr / (2 * self.rho)).exp() - first) / distance
