"""Up to which length all rows of a batch are rotated as each would be alone.

Under dynamic NTK and LongRoPE the frequencies follow the length of the text, and a batch has one
length. Keys of a context that was read at one length, and rows of different lengths, then belong to
different frequencies, and what a query says of such a key is wrong without any error. Up to the
original length these rules change nothing, and neither does their temperature; beyond it, nothing
exact can be had from one batch, so that such rows are refused.
"""

from dataclasses import dataclass
from typing import Any

from ropewalk.blocks.rotary import FrequencyRule
from ropewalk.llm.frequencies import extended_slots
from ropewalk.llm.model_config import rope_parameters_of, text_config
from ropewalk.llm.native_rotary import RotarySlot, rotary_slots
from ropewalk.llm.plug import plug_of

_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class SharedRotation:
    """A rule that depends on the length of the text.

    Attributes:
        length: up to which it rotates everything alike; 0 if that is not known.
        rule: in words.
    """

    length: int
    rule: str

    def refusal(self, row: str) -> ValueError:
        """Why a row is refused, which has been described up to its number of tokens."""
        within = f"keep rows within {self.length} tokens, or " if self.length else ""
        beyond = f" beyond {self.length} tokens" if self.length else ""
        return ValueError(
            f"{row}, and under {self.rule} the frequencies follow the length of the text{beyond}: "
            "rows that are read together would be rotated by different frequencies than each "
            f"alone; {within}plug a rule whose frequencies do not follow the length, such as "
            "NTKAware, YaRN or, where the model's own do not, a distance rule (ropewalk.llm.plug)"
        )


def shared_rotation(model: Any) -> SharedRotation | None:
    """The rule that depends on the length, the one of least reach; None if there is none."""
    handle = plug_of(model)
    plugged = None if handle is None else handle.frequency
    rules: list[SharedRotation | None] = []
    if plugged is not None and plugged.depends_on_length:
        rules.append(_of_rule(plugged))
    slots = rotary_slots(model)
    replaced = [] if plugged is None else extended_slots(slots)
    rules += [_of_slot(model, slot) for slot in slots if slot not in replaced]
    return min(
        (rule for rule in rules if rule is not None), key=lambda rule: rule.length, default=None
    )


def _of_rule(rule: FrequencyRule) -> SharedRotation:
    length = getattr(rule, "original_length", None)
    # Not all of the rule, which may be long lists of factors.
    return SharedRotation(length if isinstance(length, int) else 0, type(rule).__name__)


def _of_slot(model: Any, slot: RotarySlot) -> SharedRotation | None:
    """The model's own rule."""
    if "dynamic" not in slot.rope_type and slot.rope_type != "longrope":
        return None
    config = text_config(model)
    parameters = rope_parameters_of(config, slot.layer_type)
    short, long = parameters.get("short_factor"), parameters.get("long_factor")
    if slot.rope_type == "longrope" and short is not None and list(short) == list(long or ()):
        return None
    # transformers takes one or the other, depending on the rule and on the model.
    stated = (
        parameters.get(_ORIGINAL),
        getattr(config, _ORIGINAL, None),
        getattr(config, "max_position_embeddings", None),
    )
    length = min((one for one in stated if isinstance(one, int)), default=0)
    return SharedRotation(length, f"rope_type {slot.rope_type!r} of this {type(model).__name__}")
