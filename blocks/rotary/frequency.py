"""Frequency rules: which inverse frequencies θ'_i a rotary embedding turns its planes with.

The default is θ_i = b^(−2i/d), i = 0 … d/2 − 1, for base b and rotary dimension d (RoFormer, arXiv
2104.09864). Rules that extend the context slow some planes down, so that positions beyond the
trained length L turn no further than the model has seen. A frequency rule changes nothing else:
keys may be cached rotated and decoding is unchanged (unless the rule depends on the length).

This file holds the interface and the two simplest rules:

    default   θ_i
    linear    θ_i / s       position interpolation, arXiv 2306.15595; s = target length / L

Everything is computed in float32 in the order in which checkpoints were trained, so that the values
are bit-equal to those of transformers where a rule is shared; a float64 table would be "better" by
1e-7 and differ from the model by that times the position.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.rotary.checks import require_base, require_length, require_rotary_dim


def default_frequencies(
    rotary_dim: int, base: float | Tensor, *, device: torch.device | str = "cpu"
) -> Float[Tensor, " pairs"]:
    """θ_i = base^(−2i / rotary_dim) in float32, highest frequency first.

    Args:
        rotary_dim: number of rotated dimensions, even.
        base: the base b (`rope_theta`); a 0-d tensor where it depends on a traced length.
        device: where to put the result. The default does not follow `torch.device(...)` contexts,
            so that modules built on the meta device still know their frequencies.
    """
    exponents = torch.arange(0, rotary_dim, 2, device=device).to(torch.float32) / rotary_dim
    return 1.0 / (base**exponents)


@dataclass(frozen=True)
class FrequencyRule(ABC):
    """Base class of all frequency rules; subclasses are frozen dataclasses of their parameters.

    Attributes:
        name: the rule's name in `FREQUENCY_RULES` and in variant strings.
        paper: where the rule comes from.
        minimum_rotary_dim: the smallest rotary dimension for which the rule is defined.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    minimum_rotary_dim: ClassVar[int] = 2

    @property
    def depends_on_length(self) -> bool:
        """Whether frequencies change with the context, so that keys are best cached unrotated."""
        return False

    @final
    def inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None = None
    ) -> Float[Tensor, " pairs"]:
        """The rule's inverse frequencies.

        Args:
            rotary_dim: number of rotated dimensions, even.
            base: the model's base (`rope_theta`), before the rule changes anything.
            length: tokens in the context, for rules that depend on it; an integer or a 0-d tensor
                (which is never read back to the host, so that it may be traced). None means a
                context no longer than the trained one.

        Returns:
            Float32 (rotary_dim / 2), radians per position, highest frequency first; on the CPU, or
            on the device of a tensor `length` if the rule depends on it.

        Raises:
            TypeError: `rotary_dim` or `length` is not an integer or `base` is not a number.
            ValueError: `rotary_dim` is odd or too small, `base` is not above 1, `length` is below
                1, or the rule's numbers are so extreme that a frequency is not finite.
        """
        require_rotary_dim(rotary_dim, self.minimum_rotary_dim)
        require_base(base)
        require_length(length)
        frequencies = self._inverse_frequencies(rotary_dim, base, length)
        # Values can be read only where nothing is traced, fake or on another device.
        readable = not (torch.compiler.is_compiling() or isinstance(length, Tensor))
        if readable and type(frequencies) is Tensor and not frequencies.isfinite().all():
            raise ValueError(
                f"{self}: expected finite frequencies in float32, got {frequencies.tolist()}; its "
                "factors are too small or too large"
            )
        return frequencies

    @abstractmethod
    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        """What `inverse_frequencies` returns, for checked arguments."""

    def attention_factor(self, length: int | Tensor | None = None) -> float:
        """Factor on cos and sin; the logits get its square. 1 unless the rule says otherwise."""
        return 1.0

    @abstractmethod
    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        """The rule as `rope_parameters` of a transformers v5 config, which vLLM reads as well.

        Args:
            base: the model's base; goes into `rope_theta`.
            rotary_dim: number of rotated dimensions; needed by rules that those libraries do not
                know by name and that are therefore written as other rules with equal frequencies.
            original_length: the trained length, for rules whose written form has a place for it
                but that have none themselves. Left out, transformers takes the config's
                `max_position_embeddings`.

        Raises:
            ValueError: the rule needs `rotary_dim` and it is None.
        """

    @staticmethod
    def from_rope_parameters(
        parameters: dict[str, Any], *, max_position_embeddings: int | None = None
    ) -> "FrequencyRule":
        """The rule that `rope_parameters` describe; see `rope_parameters.from_rope_parameters`."""
        # Imported here because that module needs every rule and every rule needs this one.
        from ropewalk.blocks.rotary.rope_parameters import from_rope_parameters

        return from_rope_parameters(parameters, max_position_embeddings=max_position_embeddings)


@dataclass(frozen=True)
class Default(FrequencyRule):
    """θ_i, as trained."""

    name: ClassVar[str] = "default"
    paper: ClassVar[str] = "RoFormer, arXiv 2104.09864"

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        return default_frequencies(rotary_dim, base)

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": base}


@dataclass(frozen=True)
class Linear(FrequencyRule):
    """θ_i / factor: position interpolation. Needs some fine-tuning to work well.

    Attributes:
        factor: target length / trained length.
    """

    factor: float
    name: ClassVar[str] = "linear"
    paper: ClassVar[str] = "Position Interpolation, arXiv 2306.15595"

    def __post_init__(self) -> None:
        require_positive("Linear", factor=self.factor)

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | Tensor | None
    ) -> Float[Tensor, " pairs"]:
        return default_frequencies(rotary_dim, base) / self.factor

    def to_rope_parameters(
        self,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        original_length: int | None = None,
    ) -> dict[str, Any]:
        return {"rope_type": "linear", "rope_theta": base, "factor": self.factor}
