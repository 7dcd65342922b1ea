"""The dense layers that models are made of: `nn.Linear`, and `Conv1D` of transformers.

`Conv1D` (GPT-2 and its kin) is a linear layer whose weight is (in, out). It is known by its name
and what it holds, so that transformers need not be there. Merging gives back what there was: a
GPT-2 whose square layers came back as `nn.Linear` would be saved transposed, and nobody would
notice.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.linear import MonarchLinear

# On a MonarchLinear that was put in the place of a transposed layer: that layer's class.
_MERGES_INTO = "merges_into"


def is_transposed(module: nn.Module) -> bool:
    """Whether this is a `Conv1D`."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def is_layer(module: nn.Module) -> bool:
    """Whether this maps features to features, be it convertible or not."""
    if isinstance(module, nn.Linear | MonarchLinear) or is_transposed(module):
        return True
    return None not in features(module)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a dense layer as (out, in)."""
    holder: Any = module
    return holder.weight.T if is_transposed(module) else holder.weight


def features(module: nn.Module) -> tuple[int | None, int | None]:
    """Its in and out features, where they are known."""
    if is_transposed(module):
        return _size(module, "nx"), _size(module, "nf")
    return _size(module, "in_features"), _size(module, "out_features")


def _size(module: nn.Module, name: str) -> int | None:
    size = getattr(module, name, None)
    return size if isinstance(size, int) else None


def remember_class(layer: MonarchLinear, replaced: nn.Module) -> None:
    """Has `dense_layer` make what there was before."""
    if is_transposed(replaced):
        setattr(layer, _MERGES_INTO, type(replaced))


# A parameter made in inference mode could never be trained.
@torch.inference_mode(False)
@torch.no_grad()
def dense_layer(layer: MonarchLinear) -> nn.Module:
    """The dense layer that computes the same, of the class that was there before."""
    linear = layer.to_linear()
    kind: Any = getattr(layer, _MERGES_INTO, None)
    if kind is None:
        return linear
    transposed: Any = kind.__new__(kind)
    nn.Module.__init__(transposed)
    transposed.nf, transposed.nx = linear.out_features, linear.in_features
    transposed.weight = nn.Parameter(
        linear.weight.T.contiguous(), requires_grad=linear.weight.requires_grad
    )
    transposed.bias = linear.bias
    return transposed.train(linear.training)
