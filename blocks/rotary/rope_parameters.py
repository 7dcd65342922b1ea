"""Reading frequency rules from the `rope_parameters` of a transformers v5 config.

The other direction is each rule's `to_rope_parameters`. What is read runs with the same frequencies
as in transformers at the dict's own `rope_theta`; rules that transformers knows by name come back
as themselves, the others as the rule they were written as. Entries that belong to the embedding
and not to the rule (`rope_theta`, `partial_rotary_factor`, `mrope_section`) are left to the caller.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ropewalk.blocks.rotary.frequency import Default, FrequencyRule, Linear
from ropewalk.blocks.rotary.llama3 import Llama3
from ropewalk.blocks.rotary.longrope import LongRoPE
from ropewalk.blocks.rotary.ntk import DynamicNTK, NTKAware, NTKFixed, NTKMixed
from ropewalk.blocks.rotary.yarn import YaRN

FREQUENCY_RULES: dict[str, type[FrequencyRule]] = {
    rule.name: rule
    for rule in (Default, Linear, NTKAware, NTKFixed, NTKMixed, DynamicNTK, YaRN, Llama3, LongRoPE)
}


def from_rope_parameters(
    parameters: Mapping[str, Any], *, max_position_embeddings: int | None = None
) -> FrequencyRule:
    """The frequency rule that a flat `rope_parameters` dict describes.

    Args:
        parameters: the dict, with `rope_type` (or the older `type`; neither means default).
        max_position_embeddings: the config's entry, from which transformers takes the trained
            length or the factor where the dict has none.

    Raises:
        ValueError: the rope type is unknown, an entry is missing, or the dict is nested by layer
            type.
    """
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(rope_type, str) or rope_type not in _READERS:
        raise ValueError(
            f"rope_type: expected one of {', '.join(sorted(_READERS))}, got {rope_type!r}"
        )
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise ValueError(
            "rope_parameters: expected one flat dict, got one nested under "
            f"{', '.join(parameters)}; pass the dict of one layer type"
        )
    return _READERS[rope_type](_Entries(parameters, rope_type, max_position_embeddings))


class _Entries:
    """Looks entries up as transformers does, and says what is missing."""

    def __init__(
        self, parameters: Mapping[str, Any], rope_type: str, max_position_embeddings: int | None
    ) -> None:
        self.parameters = parameters
        self.rope_type = rope_type
        self.max_position_embeddings = max_position_embeddings

    def __getitem__(self, key: str) -> Any:
        value = self.parameters.get(key)
        if value is None:
            raise ValueError(f"rope_parameters of rope_type {self.rope_type!r}: {key!r} is missing")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        value = self.parameters.get(key)
        return default if value is None else value

    def original_length(self) -> int:
        length = self.get("original_max_position_embeddings", self.max_position_embeddings)
        if length is None:
            raise ValueError(
                f"rope_parameters of rope_type {self.rope_type!r}: expected "
                "'original_max_position_embeddings', which is missing; pass the config's "
                "max_position_embeddings to take that instead"
            )
        return int(length)

    def factor(self) -> float:
        """The factor, or the ratio of lengths that transformers takes where there is none."""
        factor = self.get("factor")
        if factor is not None:
            return factor
        if self.max_position_embeddings is None:
            raise ValueError(
                f"rope_parameters of rope_type {self.rope_type!r}: expected 'factor', which is "
                "missing; pass the config's max_position_embeddings to infer it"
            )
        return self.max_position_embeddings / self.original_length()


def _read_ntk(entries: _Entries) -> FrequencyRule:
    exponent = entries.get("mixed_b")
    if exponent is None:
        return NTKFixed(entries["factor"])
    return NTKMixed(entries["factor"], exponent)


def _read_dynamic(entries: _Entries) -> FrequencyRule:
    return DynamicNTK(entries["factor"], entries.original_length())


def _read_yarn(entries: _Entries) -> FrequencyRule:
    return YaRN(
        entries.factor(),
        entries.original_length(),
        beta_fast=entries.get("beta_fast") or 32.0,
        beta_slow=entries.get("beta_slow") or 1.0,
        attention_scaling=entries.get("attention_factor"),
        mscale=entries.get("mscale"),
        mscale_all_dim=entries.get("mscale_all_dim"),
        truncate=entries.get("truncate", True),
    )


def _read_llama3(entries: _Entries) -> FrequencyRule:
    return Llama3(
        entries["factor"],
        entries["low_freq_factor"],
        entries["high_freq_factor"],
        entries.original_length(),
    )


def _read_longrope(entries: _Entries) -> FrequencyRule:
    short, long = entries["short_factor"], entries["long_factor"]
    scaling = entries.get("attention_factor")
    nothing_depends_on_length = list(short) == list(long) and scaling is not None
    length = entries.get("original_max_position_embeddings")
    if length is None and not nothing_depends_on_length:
        length = entries.original_length()
    # With the attention factor given, the factor says nothing more and may be absent (Phi-3).
    factor = entries.get("factor", 1.0) if scaling is not None else entries.factor()
    return LongRoPE(short, long, length, factor=factor, attention_scaling=scaling)


_READERS: dict[str, Callable[[_Entries], FrequencyRule]] = {
    "default": lambda entries: Default(),
    "linear": lambda entries: Linear(entries["factor"]),
    # vLLM's name for the fixed and mixed rules; transformers has none.
    "ntk": _read_ntk,
    "dynamic": _read_dynamic,
    "yarn": _read_yarn,
    "llama3": _read_llama3,
    "longrope": _read_longrope,
    # The name in older Phi-3 configs.
    "su": _read_longrope,
}
