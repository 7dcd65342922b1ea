"""Adding adapters to a weight, and what a state dict says of a layer where that was done."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.blocks.monarch.adapter.base_layer import is_wide
from ropewalk.blocks.monarch.adapter.branch import MonarchBranch
from ropewalk.blocks.monarch.conversion.dense import dense_layer, is_transposed
from ropewalk.blocks.monarch.conversion.replacement import take_over
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.kernels.dtypes import statistics_dtype


def weight_with(
    layer: nn.Module, weight: Tensor, parts: Sequence[tuple[MonarchBranch, float]]
) -> Tensor:
    """The weight of a layer plus weight · scaling · M of each adapter, differentiable.

    Args:
        layer: says how its weight lies.
        weight: its weight as it is.
        parts: adapters and the weights that they are active with.

    Returns:
        The sum in float32 (float64 of float64), not yet rounded.
    """
    total = weight.to(statistics_dtype(weight.dtype))
    for branch, factor in parts:
        delta = branch.delta(factor * branch.scaling)
        total = total + (delta.mT if is_transposed(layer) else delta).to(total.device)
    return total


@torch.inference_mode(False)  # under which the sum could never be trained again
@torch.no_grad()
def merged_weight(
    layer: nn.Module, original: Tensor, parts: Sequence[tuple[MonarchBranch, float]]
) -> nn.Parameter:
    """`weight_with` as a weight that a layer can hold.

    Args:
        layer: says how its weight lies.
        original: its weight without any adapter.
        parts: adapters and the weights that they are active with.

    Returns:
        A new, frozen parameter, rounded once to the dtype of the layer's weight.

    Raises:
        ValueError: a weight that cannot be added to, such as a quantised one; a sum that is not
            finite.
    """
    reason = unmergeable(layer)
    if reason is not None:
        raise ValueError(f"merge: expected a layer with a plain weight, but {reason}")
    dtype = layer.get_parameter("weight").dtype
    merged = weight_with(layer, original, parts).to(dtype)
    if not merged.is_meta and not bool(merged.isfinite().all()):
        raise ValueError(
            "merge: expected a sum of finite numbers, got NaN or infinite ones; look at the "
            f"weight, at the adapters' factors, and at the range of {dtype}"
        )
    return nn.Parameter(merged, requires_grad=False)


def is_factored(layer: nn.Module) -> bool:
    """Whether its weight is a product of factors, which a sum would have to be made dense for."""
    return type(layer) is MonarchLinear


@torch.inference_mode(False)
@torch.no_grad()
def dense_with_adapters(layer: Any) -> nn.Module:
    """The dense layer that computes what a `MonarchAdapter` around a `MonarchLinear` does.

    Returns:
        It has the bias, hooks and mode of the base layer, and learns if that did.

    Raises:
        ValueError: a sum that is not finite.
    """
    base: MonarchLinear = layer.base_layer
    made: Any = dense_layer(base)
    take_over(made, base)
    wide = copy.deepcopy(base).to(statistics_dtype(base.right.dtype)).weight
    parts = [(layer.branch(name), factor) for name, factor in layer.active.items()]
    weight = merged_weight(made, wide.mT if is_transposed(made) else wide, parts)
    made.weight = weight.requires_grad_(bool(layer.learned() & {base.right, base.left}))
    return made


def unmergeable(layer: nn.Module) -> str | None:
    """Why nothing can be added to the weight of a layer, or None."""
    kind = type(layer).__name__
    weight: Any = layer._parameters.get("weight")
    if isinstance(layer, MonarchLinear):
        return (
            f"{kind} has no weight that is a parameter, but factors; merge_adapters(model) makes "
            "it dense"
        )
    if weight is None:
        return (
            f"{kind} has no weight that is a parameter: it is computed (parametrized, or of "
            "factors) or quantised"
        )
    if is_sharded(weight):
        return "its weight is sharded; merge before fully_shard"
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or not is_wide(weight):
        return f"its weight is quantised ({type(weight).__name__} of {weight.dtype})"
    return None


def save_unmerged(module: Any, state: Any, prefix: str, _: Any) -> None:
    """A state dict holds the weight without adapters, whose factors are beside it."""
    key = f"{prefix}base_layer.weight"
    if module._unmerged and key in state:
        kept = module._unmerged[0]
        state[key] = kept if isinstance(state[key], nn.Parameter) else kept.detach()


def is_addable(weight: Any) -> bool:
    """Whether adapters can be added to this tensor, were it a parameter or computed."""
    return type(weight) in (Tensor, nn.Parameter) and is_wide(weight)


class Kept(NamedTuple):
    """A parameter of a merged layer while another state dict is loaded into it."""

    holder: nn.Module
    name: str
    parameter: nn.Parameter
    values: Tensor


def before_loading(module: Any, *_: Any) -> None:
    """What is loaded is a weight without adapters, so it goes where that is."""
    module._remerge = module._merged
    module.unmerge()
    if module._remerge:
        # A copy of one layer, for as long as it is loaded.
        module._kept = tuple(
            Kept(holder, name, parameter, parameter.detach().clone())
            for holder in module.modules()
            for name, parameter in holder._parameters.items()
            if parameter is not None
        )


@torch.no_grad()
def after_loading(module: Any, _: Any) -> None:
    """Merged again, of the weight and the factors that were loaded, or left as it was."""
    names, kept = module._remerge, module._kept
    module._remerge, module._kept = (), ()
    if not names:
        return
    try:
        module.merge(names)
    except ValueError:
        for holder, name, parameter, values in kept:
            parameter.copy_(values)
            holder._parameters[name] = parameter
        module.merge(names)
        raise
