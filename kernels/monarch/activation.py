"""The activations that a product can end in, and their derivatives."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "silu": functional.silu,
}


def activate(z: Tensor, activation: str | None) -> Tensor:
    """The activation of z, or z itself where there is none."""
    return z if activation is None else FUNCTIONS[activation](z)


def derivative(z: Tensor, activation: str) -> Tensor:
    """The derivative of an activation at z, in the dtype of z."""
    if activation == "relu":
        return (z > 0).to(z.dtype)
    if activation == "silu":
        gate = torch.sigmoid(z)
        return gate * (1 + z * (1 - gate))
    if activation == "gelu":
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density
    # gelu_tanh: ½z (1 + tanh u), u = √(2/π) (z + 0.044715 z³)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    bend = torch.tanh(scale * (z + cubic * z**3))
    slope = scale * (1 + 3 * cubic * z * z)
    return 0.5 * (1 + bend) + 0.5 * z * (1 - bend * bend) * slope
