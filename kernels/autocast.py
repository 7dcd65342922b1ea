"""What an op does under `torch.autocast`: it takes tensors in autocast's dtype, as torch's own do.

Autocast leaves mixed dtypes behind (a normalised query is float32, a projected value bfloat16), and
it reaches into an opaque operator's own products, whose float32 is meant. So an op's public
function casts its tensors with `cast_inputs`, and its operator runs under `suspended`.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Asked once, here, because torch before 2.12 cannot trace the question.
AUTOCAST_DEVICES = frozenset(
    kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(kind)
)


def cast_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where it is on for their device.

    Float64 and complex ones stay as they are.
    """
    if not all(isinstance(x, Tensor) for x in tensors):
        return tensors  # the op's own checks have the words for it
    kind = tensors[0].device.type
    if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x if x.dtype == torch.float64 or x.is_complex() else x.to(dtype) for x in tensors)


def widen_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half-precision tensors in float32 where autocast is on for their device.

    As torch does it for sums over long stretches (cumsum, softmax): recurrences are such.
    """
    if not all(isinstance(x, Tensor) for x in tensors):
        return tensors  # the op's own checks have the words for it
    kind = tensors[0].device.type
    if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in tensors)


def suspended(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast is off for the device of `tensor`."""
    kind = tensor.device.type
    if kind not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return nullcontext()  # entering and leaving costs as much as a small op
    return torch.autocast(kind, enabled=False)
