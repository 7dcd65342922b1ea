"""Confidence intervals: Wilson's for a share, Student's for a mean and for a ratio of means.

Wilson's interval (Wilson 1927) of k successes in n trials, with z = 1.96,

    (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n),   p̂ = k/n,

stays inside [0, 1] and is honest at 0 % and 100 %, where retrieval tasks mostly end up. The
interval of a ratio Σa/Σb is that of the mean residual a − r·b (the delta method).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from statistics import fmean, stdev

Z = 1.959964
# 97.5 % quantiles of Student's t for 1 … 30 degrees of freedom.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval; the bounds are NaN where there is none.

    Attributes:
        value: the estimate.
        low: lower bound.
        high: upper bound.
        count: observations behind it.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the interval; NaN where there is none."""
        return (self.high - self.low) / 2


def student_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by its first-order expansion."""
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    return Z + (Z**3 + Z) / (4 * degrees)


def wilson(successes: int, trials: int) -> Estimate:
    """Share of successes with Wilson's interval."""
    if trials < 1:
        raise ValueError(f"expected at least one trial, got {trials}")
    share = successes / trials
    spread = Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z * sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # At 0 and 1 a bound equals the share; rounding must not put it on the wrong side.
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(share, min(low, share), max(high, share), trials)


def mean(values: Sequence[float]) -> Estimate:
    """Mean with Student's interval; without one for a single value or one that is not finite."""
    average = fmean(values)
    if len(values) < 2 or isnan(average):
        return Estimate(average, float("nan"), float("nan"), len(values))
    half = student_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    return Estimate(average, average - half, average + half, len(values))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of the sums with its interval."""
    value = sum(numerators) / sum(denominators)
    scale = fmean(denominators)
    residuals = [
        (above - value * below) / scale
        for above, below in zip(numerators, denominators, strict=True)
    ]
    spread = mean(residuals)
    return Estimate(value, value + spread.low, value + spread.high, spread.count)
