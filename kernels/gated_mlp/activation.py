"""The activations in torch: by name, and written into memory that is given.

The second are for passes over tiles that are in the cache. Two of them are z s with s a sigmoid,

    silu         s = sigmoid(z)
    gelu_tanh    s = sigmoid(c(z)),   c(z) = 2 √(2/π) (z + 0.044715 z³), the tanh form exactly

of which value and slope, s + z c'(z) s (1 − s), come from one exponential: together they take the
time that torch needs for either. Everything else is torch's own, forward and backward.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["silu", "gelu", "gelu_tanh", "sigmoid", "relu", "identity"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
SCALE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
FAR = 40.0
"""Where the sigmoid of the cubic is 0 or 1 even in float64."""
aten = torch.ops.aten

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "relu": functional.relu,
    "identity": lambda z: z,
}


def activate(z: Tensor, activation: str, out: Tensor) -> None:
    """Writes the activation of z to `out`, of the dtype of z; not "gelu_tanh"."""
    if activation == "silu":
        aten.silu.out(z, out=out)
    elif activation == "gelu":
        aten.gelu.out(z, out=out)
    elif activation == "sigmoid":
        torch.sigmoid(z, out=out)
    elif activation == "relu":
        torch.clamp_min(z, 0, out=out)
    else:
        out.copy_(z)


def pull_back(grad: Tensor, z: Tensor, value: Tensor, activation: str, out: Tensor) -> None:
    """Writes the gradient of z to `out`; not for "gelu_tanh".

    Args:
        grad: of the activation's value; may be `out` itself.
        z: what was activated.
        value: `activate` of it.
        activation: which.
        out: of the shape and dtype of all of them.
    """
    if activation == "silu":
        aten.silu_backward.grad_input(grad, z, grad_input=out)
    elif activation == "gelu":
        aten.gelu_backward.grad_input(grad, z, grad_input=out)
    elif activation == "sigmoid":
        aten.sigmoid_backward.grad_input(grad, value, grad_input=out)
    elif activation == "relu":
        aten.threshold_backward.grad_input(grad, z, 0, grad_input=out)
    elif grad is not out:
        out.copy_(grad)


def gelu_tanh(z: Tensor, scratch: Tensor) -> Tensor:
    """The tanh form of gelu, in `scratch` (3, *z.shape), which is contiguous and may be wider."""
    share, bracket, value = scratch.unbind()
    value.copy_(z)
    _share(value, share, bracket)
    return value.mul_(share)


def value_and_slope(z: Tensor, activation: str, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Of "silu" and "gelu_tanh" the value and the derivative, in `scratch` as above."""
    share, slope, value = scratch.unbind()
    value.copy_(z)
    if activation == "silu":
        torch.sigmoid(value, out=share)
        value.mul_(share)
        torch.addcmul(value, value, share, value=-1, out=slope)
    else:
        _share(value, share, slope)
        value.mul_(share)
        torch.add(_LESS, slope, alpha=3, out=slope).mul_(value)  # c'(z) z s
        torch.addcmul(slope, slope, share, value=-1, out=slope)
    return value, slope.add_(share)


def _share(z: Tensor, share: Tensor, bracket: Tensor) -> None:
    """Writes s, and the bracket of c(z) = z (SCALE + SCALE · CUBIC z²), of which c' is made."""
    near = torch.clamp(z, -FAR, FAR, out=share)
    torch.mul(near, near, out=bracket)
    torch.add(_MORE, bracket, alpha=SCALE * CUBIC, out=bracket)
    near.mul_(bracket).sigmoid_()


# As tensors, which one pass can add to a multiple of another.
_MORE = torch.tensor(SCALE, dtype=torch.float64)
_LESS = torch.tensor(-2 * SCALE, dtype=torch.float64)
