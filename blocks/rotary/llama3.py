"""Llama 3.1's rule: keep short wavelengths, stretch long ones, blend between.

With wavelength λ = 2π/θ and trained length L:

    λ < L / high            θ
    λ > L / low             θ / f
    between                 (1 − t) θ / f + t θ,   t = (L/λ − low) / (high − low)

Source: Meta's Llama 3.1 reference (arXiv 2407.21783 gives only the base).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.rotary.frequency import FrequencyRule, default_frequencies


@dataclass(frozen=True)
class Llama3(FrequencyRule):
    """Llama 3.1 scaling; the defaults are that model's.

    Attributes:
        factor: f, by which long wavelengths are stretched.
        low_freq_factor: wavelengths above L / low_freq_factor are stretched in full.
        high_freq_factor: wavelengths below L / high_freq_factor are kept.
        original_length: L, the trained length before the extension.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    name: ClassVar[str] = "llama3"
    paper: ClassVar[str] = "The Llama 3 herd of models, arXiv 2407.21783, and its reference code"

    def __post_init__(self) -> None:
        require_positive(
            "Llama3",
            factor=self.factor,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
        )
        require_integer("Llama3", 1, original_length=self.original_length)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                "Llama3: expected high_freq_factor > low_freq_factor, got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        frequency = default_frequencies(rotary_dim, base)
        turns = self.original_length / (2 * math.pi / frequency)
        low, high = self.low_freq_factor, self.high_freq_factor
        # The clamp makes the blend exact at both ends: all stretched below, all kept above.
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "rope_theta": base,
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_length,
        }
