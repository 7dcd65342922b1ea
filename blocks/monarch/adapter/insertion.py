"""Putting adapters around the layers of a model: around all that were chosen, or none."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ropewalk.blocks.monarch.adapter.freezing import freeze_rest, learned
from ropewalk.blocks.monarch.adapter.layer import MonarchAdapter
from ropewalk.blocks.monarch.conversion.replacement import replace


def insert(
    model: nn.Module,
    chosen: Sequence[tuple[str, nn.Module, dict[str, Any]]],
    name: str,
    *,
    freeze: bool,
) -> None:
    """Gives layers an adapter each, or leaves the model as it was.

    Args:
        model: changed in place.
        chosen: name, layer or `MonarchAdapter`, and what `MonarchAdapter` is told of it.
        name: of the adapter.
        freeze: all that is not an adapter's.

    Raises:
        ValueError: a layer that cannot have it; says which.
        TypeError: an argument of the wrong kind.
    """
    if not isinstance(freeze, bool):
        raise TypeError(f"freeze: expected True or False, got {freeze!r}")
    before = learned(model)
    new: dict[nn.Module, MonarchAdapter] = {}
    grown: list[MonarchAdapter] = []
    try:
        for path, module, options in chosen:
            if path == "" and not isinstance(module, MonarchAdapter):
                raise ValueError(
                    "model: expected one with layers inside of it, got a single layer; take "
                    "MonarchAdapter(layer)"
                )
            try:
                if isinstance(module, MonarchAdapter):
                    module.add(name, **options)
                    grown.append(module)
                else:
                    new[module] = MonarchAdapter(module, name=name, **options)
                    new[module].remember(before)
            except (ValueError, TypeError) as error:
                raise type(error)(f"{path or type(model).__name__}: {error}") from error
        replace(model, new)
    except BaseException:
        for adapter in grown:
            adapter.delete(name)
        for adapter in new.values():
            adapter.without_adapters()
        raise
    if freeze:
        freeze_rest(model)
