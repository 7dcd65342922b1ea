"""What learns in a model with adapters, and what learned before they came.

A layer remembers what of its own was trainable (`MonarchAdapter.learned`). The rest of the model
is remembered by name on the model that was frozen, and made trainable again when its last adapter
is gone.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ropewalk.blocks.monarch.adapter.layer import MonarchAdapter
from ropewalk.blocks.monarch.adapter.lookup import adapted_layers, adapters_of, layers_with

_FROZEN = "_frozen_beside_adapters"


def learned(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that are trainable, or were before an adapter was put around them."""
    found = {parameter for parameter in model.parameters() if parameter.requires_grad}
    return found.union(*(layer.learned() for _, layer in adapters_of(model)))


def freeze_rest(model: nn.Module) -> None:
    """Freezes all but adapters, and remembers what that was."""
    model = _uncompiled(model)
    layers = [layer for _, layer in adapters_of(model)]
    adapters = {parameter for layer in layers for parameter in layer.adapters.parameters()}
    names: set[str] = set(vars(model).get(_FROZEN, ()))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in adapters:
            parameter.requires_grad_(False)
            names.add(name)
    setattr(model, _FROZEN, frozenset(names))


def thaw_rest(model: nn.Module) -> None:
    """Makes trainable what `freeze_rest` has frozen, in a model without adapters left."""
    for module in model.modules():
        names = vars(module).get(_FROZEN)
        if names is None or any(adapters_of(module)):
            continue
        named = dict(module.named_parameters(remove_duplicate=False))
        for name in names & named.keys():
            named[name].requires_grad_(True)
        delattr(module, _FROZEN)


def keep_frozen(model: nn.Module, remaining: Sequence[MonarchAdapter]) -> None:
    """After adapters were taken out: what is frozen beside the remaining ones stays so."""
    thaw_rest(model)
    for module in list(model.modules()):
        if _FROZEN in vars(module):
            freeze_rest(module)
    for layer in remaining:  # a weight that they share with a layer that is plain now
        layer.base_layer.requires_grad_(False)


def mark_only_adapters_trainable(model: nn.Module, *, name: str | None = None) -> None:
    """Freezes every parameter of a model that is not an adapter's, as `add_adapters` does.

    `remove_adapters` and `merge_adapters` make all as trainable as it was.

    Args:
        model: with adapters.
        name: of the only adapter to be trained; all of them if None.

    Raises:
        KeyError: an adapter that no layer has.
        ValueError: no adapters at all.
    """
    layers = adapted_layers(model)
    chosen = layers if name is None else layers_with(layers, name)
    freeze_rest(model)
    for layer in layers.values():
        layer.adapters.requires_grad_(False)
    for layer in chosen.values():
        for key in layer.adapters if name is None else [name]:
            layer.branch(key).requires_grad_(True)


def _uncompiled(model: Any) -> nn.Module:
    """The model in torch.compile's wrapper, whose names have no prefix."""
    return getattr(model, "_orig_mod", model)
