"""A model's configuration: copies of its own while plugged, and what it says of lengths.

Two models built from one configuration object share it, so switching the attention in it would
switch both. A plugged model therefore gets copies, and the originals back when it is unplugged.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ropewalk.llm.config_note import noted_length
from ropewalk.llm.journal import MARK, Journal


class ConfigCopies:
    """Copies of every configuration object that a model's modules hold.

    Args:
        model: the model; its modules hold the copies afterwards.
        journal: remembers the originals.
    """

    def __init__(self, model: nn.Module, journal: Journal) -> None:
        copies: dict[int, PreTrainedConfig] = {}
        self._pairs: list[tuple[PreTrainedConfig, PreTrainedConfig]] = []
        self._taken: list[dict[str, Any]] = []
        for module in model.modules():
            config = vars(module).get("config")
            if not isinstance(config, PreTrainedConfig):
                continue
            if id(config) not in copies:
                pairs = list(_with_parts(config, copy.deepcopy(config)))
                self._pairs += pairs
                copies |= {id(original): copied for original, copied in pairs}
            journal.set(module, "config", copies[id(config)])

    def settle(self) -> None:
        """Notes the copies' values, after which changes count as the user's."""
        self._taken = [dict(vars(config)) for _, config in self._pairs]

    def hand_over(self) -> None:
        """Carries what the user changed since `settle` over to the originals."""
        if not self._taken:
            return
        for (original, config), taken in zip(self._pairs, self._taken, strict=True):
            for name, value in vars(config).items():
                if name not in taken or taken[name] is not value:
                    setattr(original, name, value)


def _with_parts(
    original: PreTrainedConfig, copied: PreTrainedConfig
) -> Iterator[tuple[PreTrainedConfig, PreTrainedConfig]]:
    """A configuration and its sub-configurations, each with its copy."""
    yield original, copied
    for name in original.sub_configs:
        part = getattr(original, name, None)
        if isinstance(part, PreTrainedConfig):
            yield from _with_parts(part, getattr(copied, name))


def text_config(model: nn.Module) -> PreTrainedConfig:
    """The configuration of the model's text decoder."""
    config: PreTrainedConfig = model.config  # type: ignore[assignment]
    return config.get_text_config(decoder=True)


def rope_parameters_of(config: PreTrainedConfig, layer_type: str | None) -> dict[str, Any]:
    """The `rope_parameters` that a layer type runs with; empty if there are none."""
    return entry_of(getattr(config, "rope_parameters", None) or {}, layer_type)


def entry_of(parameters: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """One layer type's entry of `rope_parameters`, which are flat in models with one rotation."""
    nested = parameters.get(layer_type) if layer_type is not None else None
    return nested if isinstance(nested, dict) else parameters


def trained_length(model: nn.Module) -> int:
    """How many tokens the model was trained to read, before any scaling of its rotary position.

    That is the length that an exported configuration notes for this library, otherwise
    `original_max_position_embeddings` where the configuration has it, and
    `max_position_embeddings` otherwise.

    Raises:
        ValueError: the configuration has neither.
    """
    known = getattr(getattr(model, MARK, None), "trained_length", None)
    if known is not None:
        return known
    return noted_length(model.config) or stated_length(text_config(model))


def length_to_note(model: nn.Module, changes: Mapping[str, Any] | None = None) -> int | None:
    """The trained length if the configuration of a plugged model would not say it.

    Args:
        model: plugged, the rule written into its configuration.
        changes: further entries of the text configuration.
    """
    known = getattr(getattr(model, MARK, None), "trained_length", None)
    if known is None:
        return noted_length(model.config)
    config = copy.copy(text_config(model))
    for name, value in (changes or {}).items():
        # Not setattr, which may convert or refuse old names.
        vars(config)[name] = value
    return None if stated_length(config) == known else known


def stated_length(config: PreTrainedConfig) -> int:
    """The trained length by the entries of a text configuration that every library knows.

    Raises:
        ValueError: the configuration has neither.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    found = [
        entry["original_max_position_embeddings"]
        for entry in (parameters, *nested)
        if entry.get("original_max_position_embeddings")
    ]
    lengths = (
        getattr(config, "original_max_position_embeddings", None),
        min(found, default=None),
        getattr(config, "max_position_embeddings", None),
    )
    for length in lengths:
        if isinstance(length, int) and length > 0:
            return length
    raise ValueError(
        f"{type(config).__name__}: expected max_position_embeddings, which is missing; "
        "set it to the length the model was trained at"
    )
