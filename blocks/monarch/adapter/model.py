"""Adapters of a whole model: put in, chosen, frozen around, taken out, merged.

Every function here looks and makes first and changes last, so that a model is left as it was when
one of its layers is refused.
"""

from typing import Any

import torch
from torch import nn

from ropewalk.blocks.monarch.adapter.freezing import keep_frozen, thaw_rest
from ropewalk.blocks.monarch.adapter.insertion import insert
from ropewalk.blocks.monarch.adapter.layer import MonarchAdapter
from ropewalk.blocks.monarch.adapter.lookup import (
    adapted_layers,
    adapters_of,
    check_model,
    layers_with,
    refuse_shared,
)
from ropewalk.blocks.monarch.adapter.merging import (
    dense_with_adapters,
    is_factored,
    unmergeable,
)
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
    freeze: bool = True,
) -> list[str]:
    """Gives linear layers of a model an adapter each, and freezes all else.

    The outputs do not change by it. A layer that has adapters already gets another one, which is
    not active there yet; see `activate_adapters`.

    transformers' `save_pretrained` would save wrapped layers by other names, and refuses tied ones:
    save `adapter_state_dict`, or the model after `merge_adapters` or `remove_adapters`.

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
        freeze: whether every parameter that is not an adapter's is frozen, embeddings and norms
            too. `remove_adapters` and `merge_adapters` of this same model make them as trainable as
            they were. Without it, only what is wrapped is frozen.

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
    insert(model, [(found.name, found.module, options) for found in chosen], name, freeze=freeze)
    return [found.name for found in chosen]


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


def remove_adapters(model: nn.Module, *, name: str | None = None) -> list[str]:
    """Takes adapters out, unmerging them first; a layer without any is the plain one it was.

    What was frozen with them is trainable again when the last one is gone.

    Args:
        model: with adapters.
        name: of the adapter to be taken out; all of them if None.

    Returns:
        The names of the layers that are plain now.

    Raises:
        KeyError: an adapter that no layer has.
        ValueError: no adapters at all; the model is itself a `MonarchAdapter`, which cannot be
            replaced from within; others that were merged with it cannot be merged anew. Nothing
            has been changed then.
    """
    layers = adapted_layers(model)
    _refuse_root(model, "take its without_adapters()")
    chosen = layers if name is None else layers_with(layers, name)
    bare = {
        path: layer
        for path, layer in chosen.items()
        if name is None or list(layer.adapters) == [name]
    }
    # Those that were merged together with it are merged anew: all sums first.
    others = {
        layer: tuple(other for other in layer.merged if other != name)
        for path, layer in chosen.items()
        if path not in bare
    }
    sums = {layer: layer.summed(kept) for layer, kept in others.items() if name in layer.merged}
    replace(model, {layer: layer.base_layer for layer in bare.values()})
    for layer, kept in others.items():
        if layer in sums:
            layer.put_merged(kept, sums[layer])
        layer.delete(str(name))
    for layer in bare.values():
        layer.without_adapters()
    keep_frozen(model, [layer for path, layer in layers.items() if path not in bare])
    return list(bare)


def merge_adapters(model: nn.Module) -> list[str]:
    """Makes plain layers of adapted ones, the active adapters added to their weights for good.

    A `MonarchLinear` with active adapters, of a model that was monarchized, becomes dense: the sum
    of two Monarch matrices is none. Holds all weights twice until it is done, so that it can go
    back. What is not active is forgotten; what was frozen is trainable again. To merge and unmerge
    a layer, see `MonarchAdapter.merge`.

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
        reason = None if is_factored(layer.base_layer) else unmergeable(layer.base_layer)
        if reason is not None:
            raise ValueError(
                f"{path}: expected a layer with a plain weight, but {reason}; take "
                "remove_adapters, or merge into the model before it is quantised"
            )
    before = {path: layer.merged for path, layer in merging.items()}
    plain: dict[nn.Module, nn.Module] = {layer: layer.base_layer for layer in layers.values()}
    try:
        for path, layer in merging.items():
            try:
                if is_factored(layer.base_layer):
                    plain[layer] = dense_with_adapters(layer)
                else:
                    layer.merge()
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        replace(model, plain)
    except BaseException:
        for path, layer in merging.items():
            if layer.merged != before[path]:
                layer.unmerge()
                layer.merge(before[path])
        raise
    for layer in layers.values():
        layer.merged_layer()
    thaw_rest(model)
    return list(layers)


def _refuse_root(model: nn.Module, mend: str) -> None:
    if isinstance(model, MonarchAdapter):
        raise ValueError(f"model: expected one with adapted layers inside of it, got one; {mend}")
