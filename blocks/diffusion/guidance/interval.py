"""Guidance in an interval of times only.

At high noise guidance takes variety away, and at low noise it does next to nothing but cost time.

Source: Kynkäänniemi et al., arXiv 2404.07724.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import Time, as_time, per_sample
from ropewalk.blocks.diffusion.guidance.guidance import (
    Guidance,
    Predict,
    Steering,
    check_guidance,
    require_callable,
)
from ropewalk.blocks.diffusion.predict import Prediction
from ropewalk.blocks.diffusion.process import Process


@dataclass(frozen=True)
class Interval(Guidance):
    """A guidance while low ≤ t ≤ high, the model alone elsewhere.

    Attributes:
        guidance: what is used within.
        low: the smallest time with guidance.
        high: the largest.

    Raises:
        TypeError: the guidance is not callable, or a bound not a number.
        ValueError: the bounds are not 0 ≤ low ≤ high ≤ 1.
    """

    guidance: Steering
    low: float
    high: float

    def __post_init__(self) -> None:
        require_callable("Interval", guidance=self.guidance)
        require_number("Interval", "a time in [0, 1]", low=self.low, high=self.high)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"Interval: expected 0 ≤ low ≤ high ≤ 1, 0 data and 1 noise, got low={self.low!r} "
                f"and high={self.high!r}"
            )

    def check(self, predict: Predict, condition: Any, process: Process) -> None:
        """Raises what the guidance within raises."""
        check_guidance(self.guidance, predict, condition, process)

    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """The guided prediction for the samples whose time is within, the plain one for others."""
        times = per_sample(as_time(t), x_t, "t").flatten()
        within = (times >= self.low) & (times <= self.high)
        if bool(within.all()):
            return self.guidance(predict, x_t, t, condition, process)
        plain = predict(x_t, t, condition)
        if not bool(within.any()):
            return plain
        guided = self.guidance(predict, x_t, t, condition, process)
        rows = within.reshape(-1, *(1,) * (plain.data.ndim - 1))
        return plain._replace(data=torch.where(rows, guided.data, plain.data))
