"""The cosine schedule: α = cos(πt/2), σ = sin(πt/2): variance preserving, with exact ends.

Source: Nichol and Dhariwal, arXiv 2102.09672, without their offset of .008, which kept the first
discrete step from being too small; the continuous form is Salimans and Ho's, arXiv 2202.00512.
"""

import math
from dataclasses import dataclass

from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times

HALF_PI = math.pi / 2


@dataclass(frozen=True)
class Cosine(Schedule):
    """α = cos(πt/2), σ = sin(πt/2)."""

    def _alpha(self, t: Times) -> Times:
        # The sine of the complement is exactly 0 at t = 1, and keeps its digits near it.
        return (HALF_PI * (1 - t)).sin()

    def _sigma(self, t: Times) -> Times:
        return (HALF_PI * t).sin()

    def _alpha_derivative(self, t: Times) -> Times:
        return -HALF_PI * self._sigma(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return HALF_PI * self._alpha(t)

    def _time_at(self, log_snr: Times) -> Times:
        return (-log_snr / 2).exp().atan() / HALF_PI
