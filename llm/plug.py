"""`plug`: rotary variants in somebody else's model, without patching its files.

    with plug(model, distance=ReRoPE(window=1024), frequency=NTKAware(factor=4), log_n_length=4096):
        model.generate(**inputs)

A frequency rule alone only changes the model's inverse frequencies (`frequencies`). A distance
rule, log n scaling or a frequency rule that depends on the length takes the rotation out of the
model (`rotary_wrapper`) and into the attention function (`attention_interface`); the cache then
holds unrotated keys. All state lies in the model, none in this library, so several models can be
plugged differently at once and a copy of a plugged model is plugged.

What cannot be plugged is refused before anything is changed (`refusals`, `probe`), and unplugging
puts the very objects back that were there.

Under a frequency rule that depends on the length, the frequencies follow the longest row of the
batch and the current call: stepwise decoding computes each token at the length it had then, as
everywhere else with these rules.
"""

from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ropewalk.blocks.rotary import FrequencyRule, LogN, Plain
from ropewalk.kernels.rotary_attention import Backend
from ropewalk.kernels.rotary_attention.protocols import DistanceRule
from ropewalk.llm import attention_interface
from ropewalk.llm.attention_interface import LayerPlug
from ropewalk.llm.config_note import make_note, put_note, variant_text
from ropewalk.llm.frequencies import (
    base_of,
    extended_slots,
    put_frequencies,
    put_logit_scale,
    write_rope_parameters,
)
from ropewalk.llm.journal import MARK, Journal
from ropewalk.llm.layer_rotary import layer_rotary
from ropewalk.llm.model_config import (
    ConfigCopies,
    entry_of,
    length_to_note,
    rope_parameters_of,
    text_config,
    trained_length,
)
from ropewalk.llm.native_rotary import RotarySlot
from ropewalk.llm.probe import LayerRotation, probe
from ropewalk.llm.refusals import is_plugged, refuse_backend, refuse_model, refuse_rules
from ropewalk.llm.rotary_wrapper import RotaryFormat, UnitRotary

_ORIGINAL = "original_max_position_embeddings"


class PlugHandle:
    """A plugged model; a context manager that unplugs it on leaving, exceptions included.

    Attributes:
        model: the plugged model.
        frequency: the rule that replaces the model's own, if any.
        distance: the distance rule, if any.
        log_n: the log n scaling, if any.
        backend: who computes the attention.
        trained_length: the model's, which a replaced frequency rule may no longer show.
    """

    def __init__(
        self,
        model: nn.Module,
        frequency: FrequencyRule | None,
        distance: DistanceRule | None,
        log_n: LogN | None,
        backend: Backend = "auto",
    ) -> None:
        self.model = model
        self.frequency = frequency
        self.distance = distance
        self.log_n = log_n
        self.backend: Backend = backend
        self.trained_length: int | None = None
        self._journal = Journal()
        self._configs: ConfigCopies | None = None

    def unplug(self) -> None:
        """Puts the model back as it was; does nothing if that has been done.

        What was changed in `model.config` meanwhile stays changed.
        """
        self._journal.undo()
        if self._configs is not None:
            self._configs.hand_over()
            self._configs = None

    def __enter__(self) -> "PlugHandle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unplug()

    def __repr__(self) -> str:
        rules = {"frequency": self.frequency, "distance": self.distance, "log_n": self.log_n}
        given = ", ".join(f"{name}={rule}" for name, rule in rules.items() if rule is not None)
        if self.backend != "auto":
            given += f", backend={self.backend!r}"
        state = "unplugged from" if self._configs is None else "plugged into"
        return f"PlugHandle({given or 'nothing'}; {state} {type(self.model).__name__})"


def plug(
    model: nn.Module,
    *,
    frequency: FrequencyRule | None = None,
    distance: DistanceRule | None = None,
    log_n_length: int | LogN | None = None,
    backend: Backend = "auto",
) -> PlugHandle:
    """Plugs rules into a transformers v5 model.

    Distance rules, log n scaling and rules that depend on the length are tried out on the model
    first (`probe`), which runs it three times on five tokens, its forward hooks included. They also
    change what the cache holds: one filled while plugged must not be used after unplugging, nor one
    filled before or under other rules while plugged.

    Under torch.compile, what is wrong with the values of an input cannot be seen, and goes
    unrefused: positions that restart within a row, and later keys in a (batch, 1, query, key) mask
    of one's own.

    `save_pretrained` of a plugged model writes the rules as far as a configuration can say them and
    notes the others; `export` also writes the lengths and what other readers look for.

    Args:
        model: a decoder-only transformers model with rotary position. One whose attention goes
            through transformers' attention interface takes everything; others take frequency rules
            that do not depend on the length.
        frequency: replaces the model's own frequency rule, scaling included; None keeps it.
        distance: which relative position a score sees; None is the distance itself.
        log_n_length: scales query i by max(1, ln(i + 1) / ln L) for this trained length L; a `LogN`
            where the model was trained with the scaling (clamp=False).
        backend: who computes the attention of a model whose rotation is taken over, with the same
            result; as in `rotary_attention`, which also says when the model runs that a backend
            cannot take part there. "triton" wants the model on a GPU already.

    Returns:
        A handle: `handle.unplug()`, or use it in `with`.

    Raises:
        TypeError: something of the wrong kind was passed.
        ValueError: no rule was passed, the backend is unknown or would have nothing to compute, or
            the model cannot be plugged so; nothing has been changed then.
    """
    refuse_rules(frequency, distance, log_n_length)
    slots = refuse_model(model)
    refuse_backend(model, backend)
    log_n = _log_n(log_n_length)
    handle = PlugHandle(model, frequency, distance, log_n, backend)
    if backend != "auto" and not _changes_attention(handle):
        raise ValueError(
            f"backend {backend!r} has nothing to compute: these rules leave the model's own "
            "attention in place and change its frequencies at most; leave backend out"
        )
    try:
        # Frequencies made in inference mode could not be used in training later.
        with torch.inference_mode(False):
            _plug(handle, slots)
    except BaseException:
        handle.unplug()
        raise
    return handle


def unplug(model: nn.Module) -> None:
    """Unplugs a model whose handle is not at hand, such as a copy of a plugged model.

    Raises:
        ValueError: the model is not plugged, or only as a part of another model.
    """
    handle = plug_of(model)
    if handle is None:
        raise ValueError(
            f"this {type(model).__name__} is not plugged"
            + (" as a whole; unplug the model that plug was given" if is_plugged(model) else "")
        )
    handle.unplug()


def plug_of(model: nn.Module) -> PlugHandle | None:
    """The handle of a plugged model, None if it is not plugged."""
    handle = getattr(model, MARK, None)
    return handle if isinstance(handle, PlugHandle) else None


def _plug(handle: PlugHandle, slots: list[RotarySlot]) -> None:
    model, journal, frequency = handle.model, handle._journal, handle.frequency
    handle._configs = ConfigCopies(model, journal)
    config = text_config(model)
    extended: list[RotarySlot] = []
    written: dict[str, Any] = {}
    if frequency is not None:
        extended = extended_slots(slots)
        handle.trained_length = trained_length(model)
        written = write_rope_parameters(config, extended, frequency, handle.trained_length)
    rotations: dict[nn.Module, LayerPlug] = {}
    formats: dict[str, dict[str | None, RotaryFormat]] = {}
    if _changes_attention(handle):
        found = probe(model, slots)
        formats = found.formats
        rotations = {
            module: _layer_plug(layer, extended, handle, config)
            for module, layer in found.layers.items()
        }

    journal.set(model, MARK, handle)
    if frequency is not None:
        native = rope_parameters_of(config, extended[0].layer_type)
        put_logit_scale(journal, model, native, entry_of(written, extended[0].layer_type))
    if rotations:
        _move_rotation(journal, model, rotations, formats, config)
        journal.set(config, "_attn_implementation_internal", attention_interface.NAME)
    elif frequency is not None:
        for slot in extended:
            journal.set(slot.module, MARK, True)
            put_frequencies(journal, slot, frequency, base_of(slot, config))
    if frequency is not None:
        journal.set(config, "rope_parameters", written)
        original = entry_of(written, extended[0].layer_type).get(_ORIGINAL)
        if original is not None and hasattr(config, _ORIGINAL):
            # Phi 3 takes the trained length from here, over what rope_parameters say.
            journal.set(config, _ORIGINAL, original)
    _put_note(handle)
    handle._configs.settle()


def _put_note(handle: PlugHandle) -> None:
    """Notes in the copied configuration what a plain `save_pretrained` could not say otherwise."""
    config = handle.model.config
    variant = variant_text(handle.distance, handle.log_n)
    put_note(config, make_note(variant, length_to_note(handle.model)))


def _log_n(length: int | LogN | None) -> LogN | None:
    # int() because numpy's integers are none of Python's.
    return length if length is None or isinstance(length, LogN) else LogN(int(length))


def _changes_attention(handle: PlugHandle) -> bool:
    """Whether the rotation has to happen in the attention function."""
    several_branches = handle.distance is not None and len(handle.distance.branches) > 1
    by_length = handle.frequency is not None and handle.frequency.depends_on_length
    return several_branches or by_length or handle.log_n is not None


def _layer_plug(
    layer: LayerRotation, extended: list[RotarySlot], handle: PlugHandle, config: PreTrainedConfig
) -> LayerPlug:
    if layer.slot is None:
        # A layer without positions sees no distance, but log n is about its softmax.
        return LayerPlug(
            None,
            log_n=handle.log_n,
            sliding_window=layer.sliding_window,
            backend=handle.backend,
        )
    rule = handle.frequency if layer.slot in extended else None
    return LayerPlug(
        layer_rotary(layer.slot, layer.layout, rule, config),
        trailing=layer.trailing,
        distance=handle.distance or Plain(),
        log_n=handle.log_n,
        sliding_window=layer.sliding_window,
        backend=handle.backend,
    )


def _move_rotation(
    journal: Journal,
    model: nn.Module,
    rotations: dict[nn.Module, LayerPlug],
    formats: dict[str, dict[str | None, RotaryFormat]],
    config: PreTrainedConfig,
) -> None:
    attention_interface.register()
    for module, layer in rotations.items():
        journal.set(module, attention_interface.LAYER_ATTRIBUTE, layer)
        journal.set(module, MARK, True)
    for path, form in formats.items():
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        journal.set(owner, name, UnitRotary(getattr(owner, name), form, config))
