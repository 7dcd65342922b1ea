"""NTK-aware rules: keep the fast planes, interpolate the slow ones, by one smooth law.

With s = target length / trained length, d = rotary dimension, m = i + 1 = 1 … d/2:

    ntk-aware    base → b·s^(d/(d−2))               lowest frequency as linear, highest unchanged
    ntk-fixed    θ_(m−1) · s^(−2m/d)                 = 1/(λ(βλ)^(m−1)), β = b^(2/d), λ = s^(2/d)
    ntk-mixed    θ_(m−1) · exp(−a m^c), a (d/2)^c = ln s     c = 1 is fixed, c = 0 is linear
    dynamic-ntk  base → b·(f·n/L − (f − 1))^(d/(d−2)) once the context n exceeds L

NTK-aware is bloc97's; fixed and mixed are Su Jianlin's (kexue.fm/archives/9706), who finds
c = 0.625 best; dynamic NTK is emozilla's. Pitfall of the dynamic rule: each length has other
frequencies, so keys that were cached rotated are stale once the context has grown; cache them
unrotated.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_number, require_positive
from ropewalk.blocks.rotary.checks import require_rotary_dim
from ropewalk.blocks.rotary.frequency import FrequencyRule, default_frequencies
from ropewalk.blocks.rotary.longrope import LongRoPE

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class NTKAware(FrequencyRule):
    """Enlarges the base so that the lowest frequency becomes that of linear interpolation.

    Attributes:
        factor: target length / trained length; the usable extension is somewhat less.
    """

    factor: float
    name: ClassVar[str] = "ntk-aware"
    paper: ClassVar[str] = "bloc97, NTK-aware scaled RoPE (2023); YaRN, arXiv 2309.00071 §3.1"
    minimum_rotary_dim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        require_positive("NTKAware", factor=self.factor)

    def scaled_base(self, rotary_dim: int, base: float) -> float:
        """The enlarged base, base·factor^(d/(d−2)).

        Raises:
            ValueError: it is beyond the greatest float.
        """
        return _scaled_base("NTKAware", rotary_dim, base, self.factor)

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        return default_frequencies(rotary_dim, self.scaled_base(rotary_dim, base))

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        """The default rule with the enlarged base, which every library can run."""
        rotary_dim = _needed(self, rotary_dim)
        return {"rope_type": "default", "rope_theta": self.scaled_base(rotary_dim, base)}


@dataclass(frozen=True)
class NTKMixed(FrequencyRule):
    """Stretches plane m by exp(a·m^exponent), from hardly at all to `factor` for the slowest.

    Attributes:
        factor: target length / trained length.
        exponent: c; 1 gives `NTKFixed`, 0 gives `Linear`, between them a mixture.
    """

    factor: float
    exponent: float = 0.625
    name: ClassVar[str] = "ntk-mixed"
    paper: ClassVar[str] = "Su Jianlin, kexue.fm/archives/9706"

    def __post_init__(self) -> None:
        require_positive("NTKMixed", factor=self.factor)
        # 0 is meaningful (linear), so this is the one parameter that need not be positive.
        require_number("NTKMixed", "a number ≥ 0", exponent=self.exponent)
        if not 0 <= self.exponent < math.inf:
            raise ValueError(
                f"NTKMixed.exponent: expected a finite number ≥ 0, got {self.exponent!r}"
            )

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        stretch = _mixed_stretch(rotary_dim, self.factor, self.exponent)
        return default_frequencies(rotary_dim, base) / stretch.to(torch.float32)

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        """LongRoPE with the stretches as factors, short and long alike, and no temperature."""
        stretch = _mixed_stretch(_needed(self, rotary_dim), self.factor, self.exponent)
        return _as_longrope(stretch, self.factor, original_length, base)


@dataclass(frozen=True)
class NTKFixed(FrequencyRule):
    """Stretches plane m by factor^(2m/d): the NTK law with the base kept for the fast planes.

    Attributes:
        factor: target length / trained length.
    """

    factor: float
    name: ClassVar[str] = "ntk-fixed"
    paper: ClassVar[str] = "Su Jianlin, kexue.fm/archives/9706"

    def __post_init__(self) -> None:
        require_positive("NTKFixed", factor=self.factor)

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        stretch = _mixed_stretch(rotary_dim, self.factor, exponent=1.0)
        return default_frequencies(rotary_dim, base) / stretch.to(torch.float32)

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        """LongRoPE with the stretches as factors, short and long alike, and no temperature."""
        stretch = _mixed_stretch(_needed(self, rotary_dim), self.factor, exponent=1.0)
        return _as_longrope(stretch, self.factor, original_length, base)


@dataclass(frozen=True)
class DynamicNTK(FrequencyRule):
    """NTK-aware with a factor that grows with the context, and nothing changed within L.

    Attributes:
        factor: f; how much faster than the context the scaling grows. 1 is proportional.
        original_length: L, the trained length.
    """

    factor: float
    original_length: int
    name: ClassVar[str] = "dynamic-ntk"
    paper: ClassVar[str] = "emozilla, dynamically scaled RoPE (2023); YaRN, arXiv 2309.00071 §3.3"
    minimum_rotary_dim: ClassVar[int] = 4

    def __post_init__(self) -> None:
        require_positive("DynamicNTK", factor=self.factor)
        require_integer("DynamicNTK", 1, original_length=self.original_length)

    @property
    def depends_on_length(self) -> bool:
        return True

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        if length is None:
            return default_frequencies(rotary_dim, base)
        if isinstance(length, Tensor):
            power = rotary_dim / (rotary_dim - 2)
            ratio = length.to(torch.float32).clamp(min=self.original_length) / self.original_length
            scale = 1 + self.factor * (ratio - 1)
            return default_frequencies(rotary_dim, base * scale**power, device=length.device)
        ratio = max(length, self.original_length) / self.original_length
        scale = 1 + self.factor * (ratio - 1)
        return default_frequencies(rotary_dim, _scaled_base("DynamicNTK", rotary_dim, base, scale))

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        """Transformers and vLLM take L from the config's `max_position_embeddings`.

        Leave that at the trained length. The entry for L is here for our own reading back;
        transformers logs that it does not use it.
        """
        return {
            "rope_type": "dynamic",
            "rope_theta": base,
            "factor": self.factor,
            "original_max_position_embeddings": self.original_length,
        }


def _scaled_base(owner: str, rotary_dim: int, base: float, scale: float) -> float:
    """base·scale^(d/(d−2))."""
    try:
        scaled = base * scale ** (rotary_dim / (rotary_dim - 2))
    except OverflowError:
        scaled = math.inf
    # Frequencies are float32, and a base beyond float32 would stop all planes but the first.
    if not scaled <= FLOAT32_MAX:
        raise ValueError(
            f"{owner}: expected a base that float32 can hold, but a factor of {scale!r} scales "
            f"base {base!r} beyond it at rotary_dim {rotary_dim}; choose a smaller factor"
        )
    return scaled


def _mixed_stretch(rotary_dim: int, factor: float, exponent: float) -> Float[Tensor, " pairs"]:
    """exp(a·m^c) in float64, m = 1 … d/2, a = ln factor / (d/2)^c: 1 < stretch ≤ factor."""
    pairs = rotary_dim // 2
    plane = torch.arange(1, pairs + 1, dtype=torch.float64, device="cpu")
    return torch.exp(math.log(factor) * (plane / pairs) ** exponent)


def _needed(rule: FrequencyRule, rotary_dim: int | None) -> int:
    if rotary_dim is None:
        raise ValueError(
            f"{type(rule).__name__}.to_rope_parameters: expected rotary_dim, got None; pass the "
            "model's head_dim × partial_rotary_factor, because the written form depends on it"
        )
    require_rotary_dim(rotary_dim, rule.minimum_rotary_dim)
    return rotary_dim


def _as_longrope(
    stretch: Tensor, factor: float, original_length: int | None, base: float
) -> dict[str, Any]:
    factors = tuple(stretch.tolist())
    rule = LongRoPE(factors, factors, original_length, factor=factor, attention_scaling=1.0)
    return rule.to_rope_parameters(base=base)
