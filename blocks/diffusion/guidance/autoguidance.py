"""Autoguidance: away from what a worse version of the model says.

    x̂₀ = (1 + w)·x̂₀ − w·x̂₀(worse model)

The worse model is smaller or less trained, but sees the same condition, so that quality is pushed
and variety kept.

Source: Karras et al., arXiv 2406.02507, whose w counts from 1.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Num
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time
from ropewalk.blocks.diffusion.guidance.guidance import (
    Guidance,
    Predict,
    away_from,
    require_callable,
    require_scale,
)
from ropewalk.blocks.diffusion.predict import Model, Prediction
from ropewalk.blocks.diffusion.process import Process


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """(1 + scale)·model − scale·worse model.

    Attributes:
        model: the worse model, called as the other is and read alike.
        scale: w; 0 does not call it at all.

    Raises:
        TypeError: the model is not callable, or the scale not a number.
        ValueError: the scale is not finite.
    """

    model: Model
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_callable("AutoGuidance", model=self.model)
        require_scale("AutoGuidance", self.scale)

    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """One call of each model."""
        good = predict(x_t, t, condition)
        if self.scale == 0:
            return good
        worse = predict(x_t, t, condition, self.model)
        return good._replace(data=away_from(good.data, worse.data, self.scale, process))
