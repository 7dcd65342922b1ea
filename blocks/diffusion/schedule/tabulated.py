"""A schedule given by its values at T steps: what discrete-time models were trained with.

A table holds the products ᾱ_k of a discrete model, k = 0 … T − 1 (`alphas_cumprod`); our α is √ᾱ.
Step k is the time (k + 1)/T, and t = 0 is the data, ᾱ = 1. At these knots α and σ are the table's;
between them ᾱ is interpolated linearly. (DDPM's α and β are squares; Su's are not.)

σ rises from 0 like √t, so σ' is infinite at t = 0; derivatives have a jump at every knot, where
they are those of the interval below. Samplers should stay on the knots, and `times` does.

Source: Ho, Jain and Abbeel, arXiv 2006.11239, §4, for the linear table.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times


@dataclass(frozen=True)
class Tabulated(Schedule):
    """α² = ᾱ from a table.

    Attributes:
        alphas_cumprod: ᾱ of each step, strictly falling from below 1 to at least 0.

    Raises:
        TypeError: the table is not a tuple of numbers.
        ValueError: it is empty, or does not fall from below 1 to at least 0.

    Example:
        >>> Tabulated.linear_beta(1000).times(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if not isinstance(table, tuple) or not all(isinstance(each, float) for each in table):
            raise TypeError(
                "Tabulated.alphas_cumprod: expected a tuple of floats, got "
                f"{type(table).__name__}; convert a tensor or an array with tuple(….tolist())"
            )
        if not table:
            raise ValueError("Tabulated.alphas_cumprod: expected at least one step, got none")
        knots = torch.tensor((1.0, *table), dtype=torch.float64)
        if not (bool((knots.diff() < 0).all()) and table[-1] >= 0):
            raise ValueError(
                "Tabulated.alphas_cumprod: expected products that fall strictly from below 1 to at "
                f"least 0, got {len(table)} from {table[0]!r} to {table[-1]!r}; make one of "
                "betas by taking the running product of 1 − β"
            )
        # Kept as tensors: a thousand numbers are not to be converted, or traced, at every call.
        object.__setattr__(self, "_knots", knots)
        object.__setattr__(self, "_variances", 1 - knots)

    def __repr__(self) -> str:
        """Without the table's thousand numbers."""
        first, last = self.alphas_cumprod[0], self.alphas_cumprod[-1]
        return f"Tabulated({self.steps} steps from {first:.6g} to {last:.6g})"

    @classmethod
    def linear_beta(cls, steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> "Tabulated":
        """DDPM's and DiT's table: β evenly spaced, ᾱ the running product of 1 − β.

        Args:
            steps: T.
            start: the first β, in (0, 1).
            end: the last β, in (0, 1).

        Raises:
            TypeError, ValueError: a number is of the wrong kind or out of range.
        """
        require_integer("Tabulated.linear_beta", 1, steps=steps)
        require_positive("Tabulated.linear_beta", start=start, end=end)
        if max(start, end) >= 1:
            raise ValueError(
                f"Tabulated.linear_beta: expected start and end below 1, got {start!r} and {end!r}"
            )
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
        return cls(tuple((1 - betas).cumprod(0).tolist()))

    @property
    def steps(self) -> int:
        """T, the number of steps in the table."""
        return len(self.alphas_cumprod)

    def times(self, steps: int) -> Float[Tensor, " knots"]:
        """Evenly spaced times, each moved to the nearest step of the table; from 1 to 0.

        More steps than the table has are left where they are.
        """
        times = super().times(steps)
        return times if steps > self.steps else (times * self.steps).round() / self.steps

    def _table(self, name: str, like: Times) -> Float[Tensor, " knots"]:
        return getattr(self, name).to(like)

    def _interpolate(self, name: str, t: Times) -> Times:
        table, position = self._table(name, t), t * self.steps
        below = self._interval(t)
        weight = position - below
        # `take`, because indexing with a 0-d tensor reads its value, which graphs cannot.
        return table.take(below) * (1 - weight) + table.take(below + 1) * weight

    def _interval(self, t: Times) -> Tensor:
        """The index of the knot below, or of the one before at a knot."""
        return ((t * self.steps).ceil().long() - 1).clamp(0, self.steps - 1)

    def _half_slope(self, t: Times) -> Times:
        """−½ dᾱ/dt, constant in each interval."""
        table, below = self._table("_variances", t), self._interval(t)
        return 0.5 * self.steps * (table.take(below + 1) - table.take(below))

    def _alpha(self, t: Times) -> Times:
        return self._interpolate("_knots", t).sqrt()

    def _sigma(self, t: Times) -> Times:
        return self._interpolate("_variances", t).sqrt()

    def _alpha_derivative(self, t: Times) -> Times:
        return -self._half_slope(t) / self._alpha(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return self._half_slope(t) / self._sigma(t)

    def _time_at(self, log_snr: Times) -> Times:
        # σ² = S(−λ) while it is the smaller one, ᾱ = S(λ) beyond: whichever has the digits.
        variances, knots = self._table("_variances", log_snr), self._table("_knots", log_snr)
        variance, squared = (-log_snr).sigmoid(), log_snr.sigmoid()
        above = torch.searchsorted(variances, variance.contiguous()).clamp(1, self.steps)
        noisier, cleaner = variances.take(above), variances.take(above - 1)
        by_variance = (variance - cleaner) / (noisier - cleaner)
        noisier, cleaner = knots.take(above), knots.take(above - 1)
        by_square = (cleaner - squared) / (cleaner - noisier)
        weight = torch.where(log_snr > 0, by_variance, by_square)
        return (above - 1 + weight) / self.steps
