"""`ropewalk::gated_activation` and `ropewalk::gated_output` as torch operators.

The first is the activation, the second the activation and the product with the second matrix: as
one operator they keep nothing of what lies between them. Both have one backward kernel, which is
an operator of its own; it cannot be differentiated again (`eager.py` can).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.gated_mlp.backend import implementation
from ropewalk.kernels.gated_mlp.problem import Form


def activated(projected: Tensor, form: Form, backend: str) -> Tensor:
    """The activated features that the implementation gives."""
    return implementation(projected, backend).forward(projected, form)


def output(
    projected: Tensor, weight: Tensor, bias: Tensor | None, form: Form, backend: str
) -> Tensor:
    """The activated features times the second matrix."""
    with suspended(projected):
        return functional.linear(activated(projected, form, backend), weight, bias)


@torch.library.custom_op("ropewalk::gated_activation", mutates_args=())
def gated_activation_op(projected: Tensor, activation: str, gated: bool, backend: str) -> Tensor:
    """Activated features (rows, hidden) of a projection (rows, width)."""
    return activated(projected, Form(activation, gated), backend)


@gated_activation_op.register_fake
def _(projected: Tensor, activation: str, gated: bool, backend: str) -> Tensor:
    rows, width = projected.shape
    return projected.new_empty((rows, Form(activation, gated).hidden(width)))


@torch.library.custom_op("ropewalk::gated_activation_backward", mutates_args=())
def gated_activation_backward_op(
    projected: Tensor,
    activated_grad: Tensor,
    activation: str,
    gated: bool,
    want_activated: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The projection's gradient, and the activated features, empty unless they are wanted."""
    form = Form(activation, gated)
    grad, again = implementation(projected, backend).backward(
        projected, activated_grad, form, want_activated
    )
    return grad, projected.new_empty((0, 0)) if again is None else again


@gated_activation_backward_op.register_fake
def _(
    projected: Tensor,
    activated_grad: Tensor,
    activation: str,
    gated: bool,
    want_activated: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shape = activated_grad.shape if want_activated else (0, 0)
    return projected.new_empty(projected.shape), projected.new_empty(shape)


def _save_projected(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    projected, *ctx.constants = inputs
    ctx.save_for_backward(projected)


def _activation_backward(ctx: Any, activated_grad: Tensor) -> tuple[Any, ...]:
    activation, gated, backend = ctx.constants
    grad, _ = gated_activation_backward_op(
        *ctx.saved_tensors, activated_grad.contiguous(), activation, gated, False, backend
    )
    return grad, None, None, None


gated_activation_op.register_autograd(_activation_backward, setup_context=_save_projected)


@torch.library.custom_op("ropewalk::gated_output", mutates_args=())
def gated_output_op(
    projected: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    gated: bool,
    backend: str,
) -> Tensor:
    """The activated features of a projection (rows, width) times `weight` (out, hidden)."""
    return output(projected, weight, bias, Form(activation, gated), backend)


@gated_output_op.register_fake
def _(projected: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return projected.new_empty((projected.shape[0], weight.shape[0]))


def _save_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    projected, weight, _, *ctx.constants = inputs
    ctx.save_for_backward(projected, weight)


def _output_backward(ctx: Any, y_grad: Tensor) -> tuple[Any, ...]:
    projected, weight = ctx.saved_tensors
    activation, gated, backend = ctx.constants
    needs = ctx.needs_input_grad
    projected_grad = weight_grad = bias_grad = None
    if needs[0] or needs[1]:
        projected_grad, again = gated_activation_backward_op(
            projected, y_grad @ weight, activation, gated, bool(needs[1]), backend
        )
        weight_grad = y_grad.mT @ again if needs[1] else None
    if needs[2]:
        bias_grad = y_grad.sum(0)
    return projected_grad if needs[0] else None, weight_grad, bias_grad, None, None, None


gated_output_op.register_autograd(_output_backward, setup_context=_save_output)
