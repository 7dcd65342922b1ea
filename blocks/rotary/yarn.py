"""YaRN: interpolate slow planes, keep fast ones, a linear ramp between them, and a temperature.

    θ'_i = (1 − γ_i) θ_i / s + γ_i θ_i,    γ_i = 1 − clip((i − low) / (high − low), 0, 1)
    low, high = the plane that turns β times within L, at β = beta_fast and beta_slow:
                d ln(L / 2πβ) / (2 ln b)
    cos and sin × (0.1 ln s + 1), so that the logits get its square

(arXiv 2309.00071, §3.2 and §3.4.) Note that the ramp runs over the index of the plane, and that its
ends are rounded outwards unless `truncate` is off (GPT-OSS). DeepSeek writes the temperature as a
ratio (0.1 mscale ln s + 1) / (0.1 mscale_all_dim ln s + 1).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.rotary.frequency import FrequencyRule


@dataclass(frozen=True)
class YaRN(FrequencyRule):
    """YaRN scaling. Static: it also changes contexts within the trained length.

    Attributes:
        factor: s, target length / trained length.
        original_length: L, the trained length.
        beta_fast: planes that turn more often than this within L keep their frequency.
        beta_slow: planes that turn less often than this within L are interpolated by `factor`.
        attention_scaling: the attention factor itself, if it is not to follow from `factor`; the
            entry `attention_factor` of rope parameters.
        mscale: numerator's coefficient of DeepSeek's temperature; used with `mscale_all_dim`.
        mscale_all_dim: its denominator's coefficient.
        truncate: whether the ends of the ramp are rounded to whole planes.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_scaling: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    name: ClassVar[str] = "yarn"
    paper: ClassVar[str] = "YaRN, arXiv 2309.00071"

    def __post_init__(self) -> None:
        require_positive(
            "YaRN", factor=self.factor, beta_fast=self.beta_fast, beta_slow=self.beta_slow
        )
        require_integer("YaRN", 1, original_length=self.original_length)
        if self.attention_scaling is not None:
            require_positive("YaRN", attention_scaling=self.attention_scaling)
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"YaRN: expected beta_fast ≥ beta_slow, got {self.beta_fast} < {self.beta_slow}; "
                "they count turns within the trained length, and fast planes turn more often"
            )

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        exponents = torch.arange(0, rotary_dim, 2, device="cpu").to(torch.float32) / rotary_dim
        wavelengths = base**exponents
        low, high = self._ramp_ends(rotary_dim, base)
        plane = torch.arange(rotary_dim // 2, dtype=torch.float32, device="cpu")
        kept = 1 - ((plane - low) / (high - low)).clamp(0, 1)
        return (1.0 / (self.factor * wavelengths)) * (1 - kept) + (1.0 / wavelengths) * kept

    def _ramp_ends(self, rotary_dim: int, base: float) -> tuple[float, float]:
        def plane_that_turns(times: float) -> float:
            turns = self.original_length / (2 * math.pi * times)
            return rotary_dim * math.log(turns) / (2 * math.log(base))

        low, high = plane_that_turns(self.beta_fast), plane_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        # A ramp of no width would divide by zero; published checkpoints widen it by this much.
        return low, high + 0.001 if low == high else high

    def attention_factor(self, length: int | Tensor | None = None) -> float:
        """0.1 ln s + 1, or DeepSeek's ratio, or the given one."""
        if self.attention_scaling is not None:
            return self.attention_scaling
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, coefficient: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * coefficient * math.log(self.factor) + 1.0

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "rope_type": "yarn",
            "rope_theta": base,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_length,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "truncate": self.truncate,
        }
        if self.mscale is not None:
            parameters["mscale"] = self.mscale
        if self.mscale_all_dim is not None:
            parameters["mscale_all_dim"] = self.mscale_all_dim
        if self.attention_scaling is not None:
            parameters["attention_factor"] = float(self.attention_scaling)
            # vLLM multiplies its own default by this instead of reading the factor itself.
            parameters["attn_factor"] = self.attention_scaling / self._temperature(1.0)
        return parameters
