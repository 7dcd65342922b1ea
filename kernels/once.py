"""Gradients that cannot be differentiated again, and say so.

torch's `once_differentiable` forgets what its gradients depend on. Where a second derivative is
asked for by name, `torch.autograd.grad(first.sum(), parameter)`, the engine then finds no way from
one to the other, leaves that part out, and the result is wrong without a word. Here the gradients
stay connected to all they depend on, by a function whose backward raises.
"""

from typing import Any

import torch
from torch import Tensor


def once(
    gradients: tuple[Tensor | None, ...], *sources: Tensor | None, instead: str
) -> tuple[Tensor | None, ...]:
    """The gradients, which refuse to be differentiated.

    Args:
        gradients: computed without a graph.
        sources: all that they depend on: what was saved, and the upstream gradient.
        instead: what to do for a second derivative.
    """
    connected = [x for x in sources if x is not None and x.requires_grad]
    if not torch.is_grad_enabled() or not connected:
        return gradients
    present = [x for x in gradients if x is not None]
    found = iter(_Once.apply(instead, len(present), *present, *connected))
    return tuple(None if x is None else next(found) for x in gradients)


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(instead: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.instead = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "expected a function to be differentiated once, got a gradient of its gradient; "
            f"{ctx.instead}"
        )
