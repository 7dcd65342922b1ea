"""LongRoPE: one searched stretch per plane, one list up to the trained length and one beyond.

    θ_i / short_i  for contexts up to L,   θ_i / long_i  beyond
    cos and sin × √(1 + ln s / ln L),      s = target length / L

(arXiv 2402.13753; the temperature as in Phi-3.) Pitfall: a context that grows past L changes all
frequencies at once, so keys that were cached rotated become stale; cache them unrotated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.rotary.frequency import FrequencyRule


@dataclass(frozen=True)
class LongRoPE(FrequencyRule):
    """Divides each frequency by its own factor.

    Attributes:
        short_factor: one stretch per plane for contexts up to `original_length`.
        long_factor: one stretch per plane for longer contexts.
        original_length: L, the trained length; may be None only if nothing depends on it, that
            is, if the two lists are equal and the attention factor is given.
        factor: s, target length / L, from which the attention factor follows; 1 gives 1.
        attention_scaling: the attention factor itself, if it is not to follow from `factor`; the
            entry `attention_factor` of rope parameters.
    """

    short_factor: Sequence[float]
    long_factor: Sequence[float]
    original_length: int | None = None
    factor: float = 1.0
    attention_scaling: float | None = None
    name: ClassVar[str] = "longrope"
    paper: ClassVar[str] = "LongRoPE, arXiv 2402.13753"

    def __post_init__(self) -> None:
        for field in ("short_factor", "long_factor"):
            value = getattr(self, field)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value:
                raise TypeError(
                    f"LongRoPE.{field}: expected a list of numbers, one per pair of dimensions, "
                    f"got {value!r}"
                )
            require_positive("LongRoPE", **{f"{field}[{i}]": x for i, x in enumerate(value)})
            # A tuple makes the frozen rule hashable and protects it from a caller's later edits.
            object.__setattr__(self, field, tuple(float(x) for x in value))
        if len(self.short_factor) != len(self.long_factor):
            raise ValueError(
                "LongRoPE: expected short_factor and long_factor of equal length, got "
                f"{len(self.short_factor)} and {len(self.long_factor)} numbers"
            )
        require_positive("LongRoPE", factor=self.factor)
        if self.attention_scaling is not None:
            require_positive("LongRoPE", attention_scaling=self.attention_scaling)
        if self.original_length is not None:
            require_integer("LongRoPE", 1, original_length=self.original_length)
        elif self.depends_on_length or (self.attention_scaling is None and self.factor > 1):
            raise ValueError(
                "LongRoPE.original_length: expected the trained length, got None, which is allowed "
                "only if short_factor equals long_factor and attention_scaling is given"
            )

    @property
    def depends_on_length(self) -> bool:
        return self.short_factor != self.long_factor

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        if len(self.short_factor) != rotary_dim // 2:
            raise ValueError(
                f"LongRoPE: expected {rotary_dim // 2} factors, one per pair of the rotary_dim = "
                f"{rotary_dim} dimensions, got lists of {len(self.short_factor)}"
            )
        if self.original_length is None or length is None or not self.depends_on_length:
            return _stretched(self.short_factor, rotary_dim, base, "cpu")
        if isinstance(length, Tensor):
            long = _stretched(self.long_factor, rotary_dim, base, length.device)
            short = _stretched(self.short_factor, rotary_dim, base, length.device)
            return torch.where(length > self.original_length, long, short)
        factors = self.long_factor if length > self.original_length else self.short_factor
        return _stretched(factors, rotary_dim, base, "cpu")

    def attention_factor(self, length: int | Tensor | None = None) -> float:
        """√(1 + ln s / ln L), whatever the length, or the given one."""
        if self.attention_scaling is not None:
            return self.attention_scaling
        if self.factor <= 1 or self.original_length is None:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "rope_type": "longrope",
            "rope_theta": base,
            "short_factor": list(self.short_factor),
            "long_factor": list(self.long_factor),
            "factor": float(self.factor),
        }
        length = self.original_length if self.original_length is not None else original_length
        if length is not None:
            parameters["original_max_position_embeddings"] = length
        if self.attention_scaling is not None:
            parameters["attention_factor"] = float(self.attention_scaling)
            # vLLM reads the same factor under these names.
            parameters["short_mscale"] = parameters["long_mscale"] = float(self.attention_scaling)
        return parameters


def _stretched(
    factors: Sequence[float], rotary_dim: int, base: float, device: torch.device | str
) -> Float[Tensor, " pairs"]:
    exponents = torch.arange(0, rotary_dim, 2, device=device).to(torch.float32) / rotary_dim
    stretch = torch.tensor(factors, dtype=torch.float32, device=device)
    # One division of the product, as checkpoints were trained, not two divisions.
    return 1.0 / (stretch * base**exponents)
