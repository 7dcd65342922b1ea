"""Adding adapters to a weight, and what a state dict says of a layer where that was done."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.blocks.monarch.adapter.base_layer import is_wide
from ropewalk.blocks.monarch.adapter.branch import MonarchBranch
from ropewalk.blocks.monarch.conversion.dense import is_transposed
from ropewalk.kernels.dtypes import statistics_dtype


@torch.inference_mode(False)  # under which the sum could never be trained again
@torch.no_grad()
def merged_weight(
    layer: nn.Module, original: Tensor, parts: Sequence[tuple[MonarchBranch, float]]
) -> nn.Parameter:
    """The weight of a layer plus weight · scaling · M of each adapter.

    Args:
        layer: says how its weight lies.
        original: its weight without any adapter.
        parts: adapters and the weights that they are active with.

    Returns:
        A new, frozen parameter, summed in float32 (float64 of float64) and rounded once.

    Raises:
        ValueError: a weight that cannot be added to, such as a quantised one; a sum that is not
            finite.
    """
    reason = unmergeable(layer)
    if reason is not None:
        raise ValueError(f"merge: expected a layer with a plain weight, but {reason}")
    total = original.detach().to(statistics_dtype(original.dtype), copy=True)
    for branch, weight in parts:
        delta = branch.delta(weight * branch.scaling)
        total += (delta.mT if is_transposed(layer) else delta).to(total.device)
    merged = total.to(original.dtype)
    if not merged.is_meta and not bool(merged.isfinite().all()):
        raise ValueError(
            "merge: expected a sum of finite numbers, got NaN or infinite ones; look at the "
            f"weight, at the adapters' factors, and at the range of {original.dtype}"
        )
    return nn.Parameter(merged, requires_grad=False)


def unmergeable(layer: nn.Module) -> str | None:
    """Why nothing can be added to the weight of a layer, or None."""
    kind = type(layer).__name__
    weight: Any = layer._parameters.get("weight")
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


def before_loading(module: Any, *_: Any) -> None:
    """What is loaded is a weight without adapters, so it goes where that is."""
    module._remerge = module._merged
    module.unmerge()


def after_loading(module: Any, _: Any) -> None:
    """Merged again, of the weight and the factors that were loaded."""
    if module._remerge:
        module.merge(module._remerge)
        module._remerge = ()
