"""Finding a model's rotary modules and reading the frequencies they run with.

transformers keeps the inverse frequencies in a buffer `inv_freq` and the factor on cos and sin (the
temperature of YaRN and LongRoPE) in `attention_scaling`; a model with several rotations in one
module (Gemma 3) prefixes both with the layer type.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ropewalk.blocks.rotary import FrequencyRule, from_rope_parameters
from ropewalk.llm.model_config import rope_parameters_of, text_config

_BUFFER = "inv_freq"


@dataclass(frozen=True)
class RotarySlot:
    """One rotation of one rotary module.

    Attributes:
        path: of the module in the model.
        module: the rotary module itself.
        layer_type: which of its rotations; None if it has only one.
    """

    path: str
    module: nn.Module
    layer_type: str | None = None

    @property
    def prefix(self) -> str:
        """Of the attributes' names."""
        return "" if self.layer_type is None else f"{self.layer_type}_"

    @property
    def frequencies(self) -> Tensor:
        """Inverse frequencies as they are now, float32 (rotary_dim / 2)."""
        return getattr(self.module, self.prefix + _BUFFER).detach().to(torch.float32)

    @property
    def factor(self) -> float:
        """Factor on cos and sin."""
        return float(getattr(self.module, f"{self.prefix}attention_scaling", 1.0))

    @property
    def rope_type(self) -> str:
        """The name of the native frequency rule."""
        kind = getattr(self.module, "rope_type", "default")
        return kind.get(self.layer_type, "default") if isinstance(kind, dict) else kind

    def of(self, module: nn.Module) -> "RotarySlot":
        """The same rotation of another module, such as a copy."""
        return RotarySlot(self.path, module, self.layer_type)


def rotary_slots(model: nn.Module) -> list[RotarySlot]:
    """Every rotation of the model's text decoder, in the order of its modules.

    The rotations of a vision or audio tower, which have a configuration of their own or none, are
    left out: their positions are no text positions.
    """
    config = text_config(model)
    alone = config is model.config
    return [
        slot
        for slot in _slots(model)
        if isinstance(getattr(slot.module, "config", None), type(config)) or alone
    ]


def _slots(model: nn.Module) -> Iterator[RotarySlot]:
    for path, module in model.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            if name == _BUFFER:
                yield RotarySlot(path, module)
            elif name.endswith(f"_{_BUFFER}") and not name.endswith(f"original_{_BUFFER}"):
                yield RotarySlot(path, module, name.removesuffix(f"_{_BUFFER}"))


def native_rule(slot: RotarySlot, config: PreTrainedConfig) -> FrequencyRule | None:
    """The slot's rule if it depends on the length of the context; None if its buffer says it all.

    Raises:
        ValueError: the rule depends on the length and is not one this library knows.
    """
    if "dynamic" not in slot.rope_type and slot.rope_type != "longrope":
        return None
    parameters = rope_parameters_of(config, slot.layer_type)
    rule = from_rope_parameters(
        parameters, max_position_embeddings=getattr(config, "max_position_embeddings", None)
    )
    native = getattr(slot.module, f"{slot.prefix}original_inv_freq", slot.frequencies)
    ours = rule.inverse_frequencies(2 * native.shape[0], parameters["rope_theta"])
    if not torch.allclose(
        ours, native.detach().float().cpu(), rtol=2e-2 if _halved(native) else 1e-5
    ):
        raise ValueError(
            f"{type(slot.module).__name__} of rope_type {slot.rope_type!r} runs with other "
            "frequencies than its configuration says, and they depend on the length of the "
            "context; only a frequency rule that replaces them can be plugged"
        )
    return rule


def _halved(x: Tensor) -> bool:
    return x.dtype in (torch.bfloat16, torch.float16)
