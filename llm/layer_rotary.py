"""What a layer rotates by, once its rotation was taken out of the model."""

from transformers import PreTrainedConfig

from ropewalk.blocks.rotary import FrequencyRule, RotaryEmbedding
from ropewalk.kernels.rotary_attention.protocols import Layout, Rotary
from ropewalk.llm.attention_interface import FixedRotary
from ropewalk.llm.frequencies import base_of
from ropewalk.llm.native_rotary import RotarySlot, native_rule


def layer_rotary(
    slot: RotarySlot, layout: Layout, rule: FrequencyRule | None, config: PreTrainedConfig
) -> Rotary:
    """The rule's frequencies, or the model's own with their factor, in the layer's layout."""
    rule = rule or native_rule(slot, config)
    if rule is None:
        return FixedRotary(slot.frequencies.clone(), slot.factor, layout)
    rotary_dim, base = 2 * slot.frequencies.shape[0], base_of(slot, config)
    if rule.depends_on_length:
        return RotaryEmbedding(rotary_dim, base=base, frequency=rule, layout=layout)
    frequencies = rule.inverse_frequencies(rotary_dim, base).to(slot.frequencies.device)
    return FixedRotary(frequencies, float(rule.attention_factor()), layout)
