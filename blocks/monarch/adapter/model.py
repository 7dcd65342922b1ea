"""Adapters of a whole model: put in, chosen, frozen around, taken out, merged.

Every function here looks and makes first and changes last, so that a model is left as it was when
one of its layers is refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ropewalk.blocks.monarch.adapter.layer import MonarchAdapter
from ropewalk.blocks.monarch.adapter.lookup import (
    adapted_layers,
    adapters_of,
    check_model,
    layers_with,
    refuse_shared,
)
from ropewalk.blocks.monarch.adapter.merging import unmergeable
from ropewalk.blocks.monarch.adapter.names import Active, as_weights, check_name
from ropewalk.blocks.monarch.conversion.matching import Match, find
from ropewalk.blocks.monarch.conversion.replacement import replace
from ropewalk.blocks.monarch.shape import Blocks
from ropewalk.kernels.monarch import Backend


def add_adapters(
    model: nn.Module,
    *,
    match: Match,
    name: str = "default",
    nblocks: Blocks = 4,
    rank: int | None = 1,
    scaling: float = 1.0,
    dropout: float = 0.0,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Gives linear layers of a model an adapter each. The outputs do not change by it.

    A layer that has adapters already gets another one, which is not active there yet; see
    `activate_adapters`. Call `mark_only_adapters_trainable` to freeze the rest of the model.

    Args:
        model: any; it is changed in place.
        match: globs on the layers' names, such as "*.q_proj" or ["*.mlp.*", "*.o_proj"], or a
            function of name and module. Embeddings and the like that fit are left out.
        name: of the adapter.
        nblocks: see `MonarchAdapter`.
        rank: see `MonarchAdapter`.
        scaling: see `MonarchAdapter`.
        dropout: see `MonarchAdapter`.
        backend: see `MonarchAdapter`.
        dtype: see `MonarchAdapter`.

    Returns:
        The names of the layers, in the order of the model.

    Raises:
        ValueError: no layer fits; one of them has such an adapter, or cannot have one, or not with
            these numbers; says which. Nothing has been changed then.
        TypeError: an argument of the wrong kind.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        >>> add_adapters(model, match="*", nblocks=4, rank=2)
        ['0', '2']
        >>> mark_only_adapters_trainable(model)
        >>> save_file(adapter_state_dict(model), "adapter.safetensors")  # doctest: +SKIP
    """
    check_model(model)
    check_name(name)
    inside = {
        module
        for _, adapter in adapters_of(model)
        for module in adapter.modules()
        if module is not adapter
    }
    chosen = [
        found
        for found in find(model, match)
        if found.parameter is None and found.module not in inside
    ]
    if not chosen:
        raise ValueError(
            f"match: expected a pattern that fits a linear layer, got {match!r}, which fits only "
            "embeddings, or parts of adapters that are there"
        )
    options: dict[str, Any] = {
        "nblocks": nblocks, "rank": rank, "scaling": scaling, "dropout": dropout,
        "backend": backend, "dtype": dtype,
    }  # fmt: skip
    insert(model, [(found.name, found.module, options) for found in chosen], name)
    return [found.name for found in chosen]


def insert(
    model: nn.Module, chosen: Sequence[tuple[str, nn.Module, dict[str, Any]]], name: str
) -> None:
    """Gives layers an adapter each, or leaves the model as it was.

    Args:
        model: changed in place.
        chosen: name, layer or `MonarchAdapter`, and what `MonarchAdapter` is told of it.
        name: of the adapter.

    Raises:
        ValueError: a layer that cannot have it; says which.
        TypeError: an argument of the wrong kind.
    """
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
            except (ValueError, TypeError) as error:
                raise type(error)(f"{path or type(model).__name__}: {error}") from error
        replace(model, new)
    except BaseException:
        for adapter in grown:
            adapter.delete(name)
        for adapter in new.values():
            adapter.without_adapters()
        raise


def activate_adapters(model: nn.Module, names: Active) -> None:
    """Says which adapters count from now on, in every layer that has them.

    Args:
        model: with adapters.
        names: see `MonarchAdapter.activate`. A layer that has none of them computes as if bare.

    Raises:
        KeyError: an adapter that no layer has.
        ValueError: no adapters at all; a layer where adapters are merged; says which. Nothing has
            been changed then.
        TypeError: neither names nor weights.
    """
    layers = adapted_layers(model)
    weights = as_weights(names)
    for name in weights:
        layers_with(layers, name)
    for path, layer in layers.items():
        if layer.merged:
            raise ValueError(
                f"{path}: expected no merged adapters, got {', '.join(layer.merged)}; unmerge() "
                "first"
            )
    for layer in layers.values():
        layer.activate({name: w for name, w in weights.items() if name in layer.adapters})


def mark_only_adapters_trainable(model: nn.Module, *, name: str | None = None) -> None:
    """Freezes every parameter of a model that is not an adapter's.

    `remove_adapters` makes the wrapped layers as trainable as they were; what is frozen elsewhere
    stays so.

    Args:
        model: with adapters.
        name: of the only adapter to be trained; all of them if None.

    Raises:
        KeyError: an adapter that no layer has.
        ValueError: no adapters at all.
    """
    layers = adapted_layers(model)
    chosen = layers if name is None else layers_with(layers, name)
    model.requires_grad_(False)
    for layer in chosen.values():
        for key in layer.adapters if name is None else [name]:
            layer.branch(key).requires_grad_(True)


def remove_adapters(model: nn.Module, *, name: str | None = None) -> list[str]:
    """Takes adapters out, unmerging them first; a layer without any is the plain one it was.

    Args:
        model: with adapters.
        name: of the adapter to be taken out; all of them if None.

    Returns:
        The names of the layers that are plain now.

    Raises:
        KeyError: an adapter that no layer has.
        ValueError: no adapters at all; or the model is itself a `MonarchAdapter`, which cannot be
            replaced from within.
    """
    layers = adapted_layers(model)
    _refuse_root(model, "take its without_adapters()")
    chosen = layers if name is None else layers_with(layers, name)
    bare = {
        path: layer
        for path, layer in chosen.items()
        if name is None or list(layer.adapters) == [name]
    }
    for path, layer in chosen.items():
        if path not in bare and name is not None:
            merged = [other for other in layer.merged if other != name]
            layer.unmerge()
            layer.delete(name)
            layer.merge(merged)
    replace(model, {layer: layer.base_layer for layer in bare.values()})
    for layer in bare.values():
        layer.without_adapters()
    return list(bare)


def merge_adapters(model: nn.Module) -> list[str]:
    """Makes plain layers of adapted ones, the active adapters added to their weights for good.

    Holds all weights twice until it is done, so that it can go back. What is not active is
    forgotten. To merge and unmerge a layer, see `MonarchAdapter.merge`.

    Args:
        model: with adapters.

    Returns:
        The names of the layers that are plain now.

    Raises:
        ValueError: no adapters at all; a layer whose weight is quantised or shared with another
            module, which the sum would not reach; says which. Nothing has been changed then.
    """
    layers = adapted_layers(model)
    _refuse_root(model, "take its merge() and merged_layer()")
    refuse_shared(model, layers)
    merging = {path: layer for path, layer in layers.items() if layer.active}
    for path, layer in merging.items():
        reason = unmergeable(layer.base_layer)
        if reason is not None:
            raise ValueError(
                f"{path}: expected a layer with a plain weight, but {reason}; take "
                "remove_adapters, or merge into the model before it is quantised"
            )
    before = {path: layer.merged for path, layer in merging.items()}
    try:
        for layer in merging.values():
            layer.merge()
        replace(model, {layer: layer.base_layer for layer in layers.values()})
    except BaseException:
        for path, layer in merging.items():
            if layer.merged != before[path]:
                layer.unmerge()
                layer.merge(before[path])
        raise
    for layer in layers.values():
        layer.merged_layer()
    return list(layers)


def _refuse_root(model: nn.Module, mend: str) -> None:
    if isinstance(model, MonarchAdapter):
        raise ValueError(f"model: expected one with adapted layers inside of it, got one; {mend}")
