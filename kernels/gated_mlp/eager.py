"""The operators' work for plain tensors outside of compilers (`kernels/plain.py`).

Where a gradient of the gradient is asked for (`create_graph=True`), the backward is the one of the
composite, which torch can differentiate.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.gated_mlp.backend import implementation
from ropewalk.kernels.gated_mlp.composite import composite_activation, composite_output
from ropewalk.kernels.gated_mlp.op import activated, output
from ropewalk.kernels.gated_mlp.problem import Form, by_rows


def eager_activation(projected: Tensor, form: Form, backend: str) -> Tensor:
    """Activated features (rows, hidden) of a projection (rows, width)."""
    if not (torch.is_grad_enabled() and projected.requires_grad):
        return activated(projected, form, backend)
    return _Activation.apply(projected, form, backend)


def eager_output(
    projected: Tensor, weight: Tensor, bias: Tensor | None, form: Form, backend: str
) -> Tensor:
    """The activated features times the second matrix."""
    if not torch.is_grad_enabled():
        return output(projected, weight, bias, form, backend)
    return _Output.apply(projected, weight, bias, form, backend)


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, form: Form, backend: str) -> Tensor:
        ctx.save_for_backward(projected)
        ctx.constants = (form, backend)
        return activated(projected, form, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (projected,), (form, backend) = ctx.saved_tensors, ctx.constants
        if torch.is_grad_enabled():
            y = composite_activation(projected, form)
            return *torch.autograd.grad(y, projected, grads[0], create_graph=True), None, None
        module = implementation(projected, backend)
        return module.backward(projected, by_rows(grads[0]), form, False)[0], None, None


class _Output(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        backend: str,
    ) -> Tensor:
        ctx.save_for_backward(projected, weight, bias)
        ctx.constants = (form, backend)
        return output(projected, weight, bias, form, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (projected, weight, bias), (form, backend) = ctx.saved_tensors, ctx.constants
        needs, (y_grad,) = ctx.needs_input_grad[:3], grads
        with suspended(projected):
            if torch.is_grad_enabled():
                return *_differentiable(projected, weight, bias, form, y_grad, needs), None, None
            projected_grad = weight_grad = bias_grad = None
            if needs[0] or needs[1]:
                module = implementation(projected, backend)
                projected_grad, again = module.backward(projected, y_grad @ weight, form, needs[1])
                weight_grad = None if again is None else y_grad.mT @ again
            if needs[2]:
                bias_grad = y_grad.sum(0)
            return projected_grad if needs[0] else None, weight_grad, bias_grad, None, None


def _differentiable(
    projected: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    y_grad: Tensor,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """Gradients that depend on what they are made of, as far as they are needed."""
    # Views, so that what one of them was made of does not get the gradient of another.
    projected, weight = projected.view_as(projected), weight.view_as(weight)
    bias = None if bias is None else bias.view_as(bias)
    inputs = (projected, weight, bias)
    wanted = [x for x, needed in zip(inputs, needs, strict=True) if needed and x is not None]
    y = composite_output(projected, weight, bias, form)
    found = iter(torch.autograd.grad(y, wanted, y_grad, create_graph=True))
    return [next(found) if needed else None for needed in needs]
