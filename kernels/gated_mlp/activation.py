"""The activations in torch, and their derivatives times a gradient.

Both are written into memory that is given, by torch's own kernels, so that one pass does each.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "gelu", "gelu_tanh", "sigmoid", "relu", "identity"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
TANH = {"gelu": "none", "gelu_tanh": "tanh"}
aten = torch.ops.aten

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "relu": functional.relu,
    "identity": lambda z: z,
}


def activate(z: Tensor, activation: str, out: Tensor) -> Tensor:
    """Writes the activation of z to `out`, in the dtype of both."""
    if activation == "silu":
        return aten.silu.out(z, out=out)
    if activation in TANH:
        return aten.gelu.out(z, approximate=TANH[activation], out=out)
    if activation == "sigmoid":
        return torch.sigmoid(z, out=out)
    if activation == "relu":
        return torch.clamp_min(z, 0, out=out)
    return out.copy_(z)


def pull_back(grad: Tensor, z: Tensor, value: Tensor, activation: str, out: Tensor) -> Tensor:
    """Writes the gradient of z to `out`.

    Args:
        grad: of the activation's value; may be `out` itself.
        z: what was activated.
        value: `activate` of it.
        activation: which.
        out: of the shape and dtype of all of them.
    """
    if activation == "silu":
        return aten.silu_backward.grad_input(grad, z, grad_input=out)
    if activation in TANH:
        approximate = TANH[activation]
        return aten.gelu_backward.grad_input(grad, z, approximate=approximate, grad_input=out)
    if activation == "sigmoid":
        return aten.sigmoid_backward.grad_input(grad, value, grad_input=out)
    if activation == "relu":
        return aten.threshold_backward.grad_input(grad, z, 0, grad_input=out)
    return out if grad is out else out.copy_(grad)
