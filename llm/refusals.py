"""What cannot be plugged, found out before anything is changed; each message says what to do.

These are the refusals that a look at the model is enough for; `probe` has those that take a run.
"""

from numbers import Integral
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ropewalk.blocks.rotary import FrequencyRule, LogN
from ropewalk.kernels.backends import triton_unavailable
from ropewalk.kernels.rotary_attention.backend import Backend, check_backend
from ropewalk.kernels.rotary_attention.protocols import DistanceRule
from ropewalk.llm.journal import MARK
from ropewalk.llm.model_config import text_config
from ropewalk.llm.native_rotary import RotarySlot, rotary_slots


def is_plugged(model: nn.Module) -> bool:
    """Whether the model, a part of it or a model it is part of, is plugged."""
    return any(hasattr(module, MARK) for module in model.modules())


def refuse_backend(model: nn.Module, backend: Backend) -> None:
    """A backend that does not exist, or Triton's kernels where there is no GPU for them.

    Raises:
        ValueError: says what was expected and what came.
    """
    check_backend(backend)
    device = next(model.parameters()).device
    # A model without memory may be put anywhere yet.
    if backend == "triton" and device.type != "meta":
        reason = triton_unavailable(torch.empty(0, device=device))
        if reason is not None:
            raise ValueError(f"backend 'triton' cannot run: {reason}")


def refuse_rules(frequency: object, distance: object, log_n: object) -> None:
    """Arguments of the wrong kind, or none.

    Raises:
        TypeError: says what was expected and what came.
        ValueError: there is no rule.
    """
    if frequency is None and distance is None and log_n is None:
        raise ValueError(
            "got nothing to plug; give at least one rule: frequency, distance or log_n_length"
        )
    for name, rule in (("frequency", frequency), ("distance", distance), ("log_n_length", log_n)):
        if isinstance(rule, type):
            raise TypeError(
                f"{name}: expected a rule with its parameters, got the class {rule.__name__}; "
                f"call it, such as {rule.__name__}(...)"
            )
    if frequency is not None and not isinstance(frequency, FrequencyRule):
        raise TypeError(
            f"frequency: expected a frequency rule such as NTKAware(factor=4), got {frequency!r}"
        )
    if distance is not None and not isinstance(distance, DistanceRule):
        raise TypeError(
            f"distance: expected a distance rule such as ReRoPE(window=1024), got {distance!r}"
        )
    integer = isinstance(log_n, Integral) and not isinstance(log_n, bool)
    if log_n is not None and not integer and not isinstance(log_n, LogN):
        raise TypeError(
            f"log_n_length: expected the trained length or a LogN(length), got {log_n!r}"
        )


def refuse_model(model: Any) -> list[RotarySlot]:
    """Models that nothing can be plugged into; returns the rotations of the others.

    Raises:
        TypeError: not a transformers model.
        ValueError: already plugged, without rotary position, with several position axes, with an
            encoder, or without weights.
    """
    if not isinstance(model, PreTrainedModel):
        hint = ""
        if hasattr(model, "_orig_mod"):
            hint = "; plug the model before torch.compile (it is model._orig_mod)"
        elif hasattr(model, "get_base_model"):
            hint = "; plug what model.get_base_model() returns"
        raise TypeError(f"expected a transformers model, got {type(model).__name__}{hint}")
    name = type(model).__name__
    if is_plugged(model):
        raise ValueError(
            f"this {name} is already plugged; unplug it first (handle.unplug(), or "
            "ropewalk.llm.unplug(model)) and give all rules in one call of plug"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} has an encoder; only decoder-only models can be plugged")
    config = text_config(model)
    if getattr(config, "is_causal", True) is False:
        raise ValueError(
            f"{name} is configured as not causal, and rules are defined for causal attention only"
        )
    if _position_axes(config):
        raise ValueError(
            f"{name} has positions on several axes (mRoPE), for which no rule here is defined; "
            "only models with one position per token can be plugged"
        )
    slots = rotary_slots(model)
    if not slots:
        raise ValueError(
            f"{name} has no rotary position embedding (no module with an `inv_freq` buffer), so "
            "there is nothing to plug into"
        )
    if any(slot.frequencies.is_meta for slot in slots):
        raise ValueError(f"{name} is on the meta device; load its weights before plugging")
    return slots


def _position_axes(config: Any) -> bool:
    parameters = getattr(config, "rope_parameters", None) or {}
    entries = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return any(entry.get("mrope_section") for entry in entries)
