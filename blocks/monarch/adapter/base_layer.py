"""What an adapter can wrap.

Layers are known by what they hold, so that neither transformers nor a quantisation library need be
there: anything with `in_features` and `out_features` maps features to features, and so does GPT-2's
`Conv1D` with a transposed weight.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.conversion.dense import is_transposed


def features_of(layer: nn.Module) -> tuple[int, int]:
    """Its in and out features.

    Raises:
        TypeError: it is no linear layer.
        ValueError: one that an adapter could not reach, or that has no size yet.
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"linear: expected a module, got {type(layer).__name__}")
    kind = type(layer).__name__
    if is_transposed(layer):
        holder: Any = layer
        rows, columns = holder.weight.shape
        return rows, columns
    for names in (("in_features", "out_features"), ("infeatures", "outfeatures")):
        inputs, outputs = (getattr(layer, name, None) for name in names)
        if isinstance(inputs, int) and isinstance(outputs, int):
            break
    else:
        raise TypeError(
            f"linear: expected nn.Linear, Conv1D or another layer with in_features and "
            f"out_features, got {kind}"
        )
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ValueError(
            "linear: expected a layer that is called, got the out_proj of nn.MultiheadAttention, "
            "which reads its weight and never calls it; an adapter there would do nothing"
        )
    if any(parameter.is_complex() for parameter in layer.parameters()):
        raise ValueError(
            f"linear: expected a layer of real numbers, got a complex {kind}, of which a real "
            "adapter would drop the imaginary part"
        )
    if inputs < 1 or outputs < 1:
        raise ValueError(
            f"linear: expected features of a known number, got {kind} of {inputs} to {outputs}; "
            "run the model once, so that a lazy layer learns its size"
        )
    return inputs, outputs


def place_of(layer: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Where its adapters belong, and in which dtype; None for layers without floating-point ones.

    A quantised weight says nothing of the dtype; a scale or a bias beside it does.
    """
    tensors = [*layer.parameters(), *layer.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    weight: Any = layer._parameters.get("weight")
    for tensor in [weight, *tensors]:
        if tensor is not None and is_wide(tensor):
            return device, tensor.dtype
    return device, None


def is_wide(tensor: Tensor) -> bool:
    """Whether it holds numbers that can be computed with; float8 cannot."""
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits >= 16
