"""Finding the adapted layers of a model, and what stands in the way of changing them."""

from collections.abc import Iterator

from torch import nn

from ropewalk.blocks.monarch.adapter.layer import MonarchAdapter


def adapters_of(model: nn.Module) -> Iterator[tuple[str, MonarchAdapter]]:
    """The adapted layers of a model and the names they have without `torch.compile`'s prefix."""
    for path, module in model.named_modules():
        if isinstance(module, MonarchAdapter):
            yield path.replace("_orig_mod.", ""), module


def refuse_shared(model: nn.Module, layers: dict[str, MonarchAdapter]) -> None:
    """Raises if a weight that adapters are to be added to is another module's, too.

    Raises:
        ValueError: it is; says whose.
    """
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((path, module))
    for path, layer in layers.items():
        # While merged the parameter that others may hold is the one set aside.
        weight = layer.unmerged_weight
        others = [
            other for other, module in holders.get(id(weight), []) if module is not layer.base_layer
        ]
        if others and layer.active:
            raise ValueError(
                f"{path}: expected a weight of its own, got one shared with {', '.join(others)}, "
                "which would not get the adapter; untie them first, or keep the adapter"
            )


def adapted_layers(model: nn.Module) -> dict[str, MonarchAdapter]:
    """The adapted layers of a model by name.

    Raises:
        ValueError: there are none.
        TypeError: not a module.
    """
    check_model(model)
    layers = dict(adapters_of(model))
    if not layers:
        raise ValueError(
            f"model: expected one with Monarch adapters, got a {type(model).__name__} without any; "
            "call add_adapters first"
        )
    return layers


def layers_with(layers: dict[str, MonarchAdapter], name: str) -> dict[str, MonarchAdapter]:
    """Those that have an adapter of this name.

    Raises:
        KeyError: there are none.
    """
    having = {path: layer for path, layer in layers.items() if name in layer.adapters}
    if not having:
        known = sorted({key for layer in layers.values() for key in layer.adapters})
        raise KeyError(f"name: expected one of {', '.join(known)}, got {name!r}")
    return having


def check_model(model: nn.Module) -> None:
    """Raises a TypeError unless this is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
