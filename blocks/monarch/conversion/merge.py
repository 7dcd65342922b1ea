"""`merge`: the Monarch layers of a model become dense layers again, which compute the same."""

import torch
from torch import nn

from ropewalk.blocks.monarch.conversion.dense import dense_layer
from ropewalk.blocks.monarch.conversion.obstacles import Surroundings, attached, check_model, inside
from ropewalk.blocks.monarch.conversion.replacement import replace, take_over
from ropewalk.blocks.monarch.conversion.report import LayerReport, MonarchReport
from ropewalk.blocks.monarch.linear import MonarchLinear


@torch.no_grad()
def merge(model: nn.Module) -> MonarchReport:
    """Replaces every `MonarchLinear` of a model by the dense layer that computes the same.

    In place. The dense weight is the product of the factors in float32, rounded once. Layers that
    `monarchize` found as transformers' `Conv1D` become that again; all others `nn.Linear`, also
    those that were of a subclass. All weights are computed before the first layer is replaced. What
    was lost in projecting does not come back.

    Args:
        model: any module. It is changed; one without Monarch layers is not.

    Returns:
        A table of the layers, with parameters before and after.

    Raises:
        ValueError: the model is a layer itself, or a layer has no values (meta device).
        TypeError: no module, or a scripted one.
    """
    check_model(model)
    if isinstance(model, MonarchLinear):
        raise ValueError(
            "model: expected a model that has layers, got a layer, MonarchLinear, which cannot be "
            "replaced in place; use layer.to_linear()"
        )
    found = {
        module: name for name, module in model.named_modules() if isinstance(module, MonarchLinear)
    }
    around = Surroundings(model)
    obstacles = {layer: _obstacle(layer, around) for layer in found}
    for layer, name in found.items():
        if obstacles[layer] is None and (layer.right.is_meta or layer.left.is_meta):
            raise ValueError(
                f"{name}: expected factors with values, got the meta device; load them first"
            )
    before = sum(parameter.numel() for parameter in model.parameters())
    replacements: dict[nn.Module, nn.Module] = {}
    rows = []
    for layer, name in found.items():
        merged = obstacles[layer] is None
        if merged:
            dense = dense_layer(layer)
            take_over(dense, layer)
            replacements[layer] = dense
        shape = layer.shape
        rows.append(
            LayerReport(
                name=name,
                kind=type(layer).__name__,
                in_features=shape.in_features,
                out_features=shape.out_features,
                nblocks=shape.nblocks,
                rank=shape.rank,
                parameters_before=shape.parameters,
                parameters_after=shape.dense_parameters if merged else shape.parameters,
                flops_before=shape.flops,
                flops_after=shape.dense_flops if merged else shape.flops,
                skipped=obstacles[layer],
            )
        )
    replace(model, replacements)
    after = sum(parameter.numel() for parameter in model.parameters())
    return MonarchReport(tuple(rows), before, after)


def _obstacle(layer: MonarchLinear, around: Surroundings) -> str | None:
    """Why a layer stays Monarch."""
    if type(layer) is not MonarchLinear:
        return (
            f"{type(layer).__name__} is more than a MonarchLinear; merge or remove adapters first"
        )
    return inside(around.above(layer)) or attached(layer, {"right", "left", "bias"})
