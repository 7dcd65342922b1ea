"""Putting a frequency rule into a model's rotary modules and its configuration.

A rule that does not depend on the length of the context needs nothing else: the model's own code
rotates with other frequencies, at its own speed and with its own cache. The rule *replaces* the
model's own (a Llama 3 checkpoint's scaling, say) and starts from the model's `rope_theta`.

Where layers with full attention and with a sliding window have rotations of their own (Gemma 3),
only the former get the rule: within a sliding window no distance is beyond the trained length.
"""

import copy
import math
import sys
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ropewalk.blocks.rotary import Default, FrequencyRule, LongRoPE
from ropewalk.llm.journal import Journal
from ropewalk.llm.model_config import rope_parameters_of
from ropewalk.llm.native_rotary import RotarySlot

_SLIDING = "sliding_attention"


def extended_slots(slots: list[RotarySlot]) -> list[RotarySlot]:
    """The rotations that a frequency rule applies to."""
    full = [slot for slot in slots if slot.layer_type != _SLIDING]
    return full or slots


def base_of(slot: RotarySlot, config: PreTrainedConfig) -> float:
    """The model's `rope_theta`, before any scaling.

    Raises:
        ValueError: the configuration does not say.
    """
    base = rope_parameters_of(config, slot.layer_type).get("rope_theta")
    if base is None:
        raise ValueError(
            f"{type(config).__name__} has no rope_theta in its rope_parameters, which a frequency "
            "rule starts from; set it to the base the model was trained with"
        )
    return float(base)


def rope_parameters(
    slot: RotarySlot, rule: FrequencyRule, config: PreTrainedConfig, original_length: int
) -> dict[str, Any]:
    """The slot's entry of `rope_parameters` under the rule.

    Where the configuration class refuses the rule as such (Phi 3 knows LongRoPE only), a rule that
    does not depend on the length is written as LongRoPE factors instead.
    """
    native = rope_parameters_of(config, slot.layer_type)
    base, rotary_dim = base_of(slot, config), 2 * slot.frequencies.shape[0]
    kept = {key: native[key] for key in ("partial_rotary_factor",) if key in native}
    entry = kept | rule.to_rope_parameters(
        base=base, rotary_dim=rotary_dim, original_length=original_length
    )
    if rule.depends_on_length or slot.layer_type is not None or refusal(config, entry) is None:
        return entry
    return kept | _as_longrope(rule, rotary_dim, base).to_rope_parameters(
        base=base, original_length=getattr(rule, "original_length", None) or original_length
    )


def refusal(config: PreTrainedConfig, parameters: dict[str, Any]) -> str | None:
    """Why the configuration class refuses these `rope_parameters`; None if it accepts them."""
    validate = getattr(type(config), "validate_rope", None)
    if validate is None:
        return None
    tried = copy.deepcopy(config)
    tried.rope_parameters = copy.deepcopy(parameters)
    try:
        validate(tried)
    except Exception as error:
        # Each class has checks of its own, which raise whatever comes up.
        return str(error) or type(error).__name__
    return None


def _as_longrope(rule: FrequencyRule, rotary_dim: int, base: float) -> LongRoPE:
    """The rule's frequencies as stretches of the default ones, short and long alike."""
    default = Default().inverse_frequencies(rotary_dim, base).double()
    factors = (default / rule.inverse_frequencies(rotary_dim, base).double()).tolist()
    return LongRoPE(
        factors,
        factors,
        factor=float(getattr(rule, "factor", 1.0)),
        attention_scaling=float(rule.attention_factor()),
    )


def write_rope_parameters(
    config: PreTrainedConfig, slots: list[RotarySlot], rule: FrequencyRule, original_length: int
) -> dict[str, Any]:
    """The whole `rope_parameters` of a configuration with the rule in the given slots."""
    native = dict(getattr(config, "rope_parameters", None) or {})
    for slot in slots:
        entry = rope_parameters(slot, rule, config, original_length)
        if slot.layer_type is None:
            return entry
        native[slot.layer_type] = entry
    return native


def put_frequencies(journal: Journal, slot: RotarySlot, rule: FrequencyRule, base: float) -> None:
    """Replaces the frequencies of one rotation and stops transformers from recomputing them."""
    module, prefix = slot.module, slot.prefix
    buffer = getattr(module, f"{prefix}inv_freq")
    frequencies = rule.inverse_frequencies(2 * buffer.shape[0], base).to(buffer.device)
    journal.set(module, f"{prefix}inv_freq", frequencies)
    if hasattr(module, f"{prefix}original_inv_freq"):
        journal.set(module, f"{prefix}original_inv_freq", frequencies.clone())
    journal.set(module, f"{prefix}attention_scaling", float(rule.attention_factor()))
    kind = getattr(module, "rope_type", "default")
    settled = kind | {slot.layer_type: "default"} if isinstance(kind, dict) else "default"
    journal.set(module, "rope_type", settled)


def put_logit_scale(
    journal: Journal, model: nn.Module, native: dict[str, Any], written: dict[str, Any]
) -> None:
    """Moves the scale of DeepSeek's attention, which has YaRN's temperature folded into it.

    Its layers multiply the scale by (0.1·m·ln s + 1)² with m = `mscale_all_dim` once, when they are
    made, so a rule that is put in later must take the old factor out and its own in.
    """
    ratio = (_folded(written) / _folded(native)) ** 2
    if ratio == 1.0:
        return
    for module in model.modules():
        source = sys.modules.get(type(module).__module__)
        folds = hasattr(source, "yarn_apply_mscale") or hasattr(source, "yarn_get_mscale")
        if folds and isinstance(getattr(module, "scaling", None), float):
            journal.set(module, "scaling", module.scaling * ratio)  # type: ignore[operator]


def _folded(parameters: dict[str, Any]) -> float:
    all_dim, factor = parameters.get("mscale_all_dim"), parameters.get("factor")
    if parameters.get("rope_type", "default") == "default" or not all_dim or not factor:
        return 1.0
    return 0.1 * all_dim * math.log(factor) + 1.0 if factor > 1 else 1.0
