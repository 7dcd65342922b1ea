"""The sigmoid schedule: α² falls like a logistic curve, stretched to run from exactly 1 to 0.

With S the logistic function, z = start + t(end − start), all divided by the temperature,

    α² = (S(end) − S(z))/(S(end) − S(start))        σ² = 1 − α²

Differences of logistic functions are written as products, S(a) − S(b) = sinh((a − b)/2) /
(2 cosh(a/2) cosh(b/2)), so that both ends keep their digits. σ' is infinite at t = 0, α' at t = 1.

Source: Jabri, Fleet and Chen, arXiv 2212.11972; Chen, arXiv 2301.10972.
"""

import math
from dataclasses import dataclass

from ropewalk.blocks.checks import require_number, require_positive
from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times

WIDEST = 60.0
"""The largest (end − start)/temperature: beyond it float32 overflows."""


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """α² = (S(end) − S(z))/(S(end) − S(start)).

    Attributes:
        start: where on the logistic curve t = 0 lies.
        end: where t = 1 lies, above start.
        temperature: what both are divided by.

    Raises:
        TypeError: a field is not a number.
        ValueError: end is not above start, or the curve is too steep for float32.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_number("Sigmoid", start=self.start, end=self.end)
        require_positive("Sigmoid", temperature=self.temperature)
        first, last = self._limits
        if not (last > first and max(abs(first), abs(last), last - first) <= WIDEST):
            raise ValueError(
                f"Sigmoid: expected start < end, both at most {WIDEST:g} temperatures from 0 and "
                f"from each other, got start={self.start!r}, end={self.end!r}, "
                f"temperature={self.temperature!r}"
            )

    @property
    def _limits(self) -> tuple[float, float]:
        return self.start / self.temperature, self.end / self.temperature

    @property
    def _half(self) -> float:
        first, last = self._limits
        return (last - first) / 2

    def _z(self, t: Times) -> Times:
        return self._limits[0] + 2 * self._half * t

    def _alpha(self, t: Times) -> Times:
        scale = math.cosh(self._limits[0] / 2) / math.sinh(self._half)
        return (scale * (self._half * (1 - t)).sinh() / (self._z(t) / 2).cosh()).sqrt()

    def _sigma(self, t: Times) -> Times:
        scale = math.cosh(self._limits[1] / 2) / math.sinh(self._half)
        return (scale * (self._half * t).sinh() / (self._z(t) / 2).cosh()).sqrt()

    def _half_slope(self, t: Times) -> Times:
        """−½ dα²/dt = ½ dσ²/dt."""
        first, last = self._limits
        scale = self._half * math.cosh(first / 2) * math.cosh(last / 2) / math.sinh(self._half)
        return 0.5 * scale / (self._z(t) / 2).cosh().square()

    def _alpha_derivative(self, t: Times) -> Times:
        return -self._half_slope(t) / self._alpha(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return self._half_slope(t) / self._sigma(t)

    def _time_at(self, log_snr: Times) -> Times:
        # e^λ = c·sinh(h(1 − t))/sinh(ht), solved for t.
        first, last = self._limits
        offset = math.log(math.cosh(last / 2) / math.cosh(first / 2))
        ratio = (log_snr + offset).exp()
        rise = 2 * math.sinh(self._half) / (ratio + math.exp(-self._half))
        return rise.log1p() / (2 * self._half)
