"""`ropewalk::rotate_query_key` as a torch operator: schema, fake tensors and autograd.

Without norms the backward is the operator itself with opposite angles, so that it can be
differentiated again and keeps nothing but the angles. With norms the backward is an operator of its
own, which needs queries and keys as they were; where its gradients are to be differentiated again
(create_graph=True) they come from the equation in torch.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.rotary.backend import implementation
from ropewalk.kernels.rotary.reference import composite_gradients
from ropewalk.kernels.rotary.rotation import Rotation, empty_alike
from ropewalk.kernels.shapes import Layout


@torch.library.custom_op("ropewalk::rotate_query_key", mutates_args=())
def rotate_query_key_op(
    query: Tensor,
    key: Tensor,
    query_cos: Tensor,
    query_sin: Tensor,
    key_cos: Tensor,
    key_sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    layout: str,
    inverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys; see `rotation.Rotation` for the arguments."""
    rotation = Rotation(
        query_cos, query_sin, key_cos, key_sin, query_weight, key_weight,
        eps, cast("Layout", layout), inverse,
    )  # fmt: skip
    query_out, key_out = empty_alike(query), empty_alike(key)
    with suspended(query):
        implementation(query, backend).forward(query, key, query_out, key_out, rotation)
    return query_out, key_out


@rotate_query_key_op.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_alike(query), empty_alike(key)


@torch.library.custom_op("ropewalk::rotate_query_key_backward", mutates_args=())
def rotate_query_key_backward_op(
    query: Tensor,
    key: Tensor,
    query_out_grad: Tensor,
    key_out_grad: Tensor,
    query_cos: Tensor,
    query_sin: Tensor,
    key_cos: Tensor,
    key_sin: Tensor,
    query_weight: Tensor | None,
    key_weight: Tensor | None,
    eps: float,
    layout: str,
    inverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and the weights of their norms (empty without a norm)."""
    rotation = Rotation(
        query_cos, query_sin, key_cos, key_sin, query_weight, key_weight,
        eps, cast("Layout", layout), inverse,
    )  # fmt: skip
    query_grad, key_grad = empty_alike(query), empty_alike(key)
    with suspended(query):
        query_weight_grad, key_weight_grad = implementation(query, backend).backward(
            query, key, query_out_grad, key_out_grad, query_grad, key_grad, rotation
        )
    none = query.new_empty(0)
    return (
        query_grad,
        key_grad,
        none if query_weight_grad is None else query_weight_grad,
        none.clone() if key_weight_grad is None else key_weight_grad,
    )


@rotate_query_key_backward_op.register_fake
def _(query: Tensor, key: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query_weight, key_weight = arguments[6:8]
    return (
        empty_alike(query),
        empty_alike(key),
        query.new_empty(0) if query_weight is None else query_weight.new_empty(query_weight.shape),
        query.new_empty(0) if key_weight is None else key_weight.new_empty(key_weight.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, *tables, query_weight, key_weight, eps, layout, inverse, backend = inputs
    normed = query_weight is not None or key_weight is not None
    kept = (query, key) if normed else (None, None)
    ctx.save_for_backward(*kept, *tables, query_weight, key_weight)
    ctx.constants = (eps, layout, inverse, backend)


def _backward(ctx: Any, query_out_grad: Tensor, key_out_grad: Tensor) -> tuple[Any, ...]:
    query, key, *tables, query_weight, key_weight = ctx.saved_tensors
    eps, layout, inverse, backend = ctx.constants
    nothing = (None,) * 4
    if query is None:
        gradients = rotate_query_key_op(
            query_out_grad, key_out_grad, *tables, None, None, eps, layout, not inverse, backend
        )
        return (*gradients, *nothing, None, None, *nothing)
    if torch.is_grad_enabled():
        query_cos, query_sin, key_cos, key_sin = tables
        rotation = Rotation(
            query_cos, query_sin, key_cos, key_sin, query_weight, key_weight,
            eps, layout, inverse,
        )  # fmt: skip
        needs = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[6:8])
        with suspended(query):
            query_grad, key_grad, *weight_grads = composite_gradients(
                query, key, query_out_grad, key_out_grad, rotation, needs
            )
        return (query_grad, key_grad, *nothing, *weight_grads, *nothing)
    query_grad, key_grad, query_weight_grad, key_weight_grad = rotate_query_key_backward_op(
        query, key, query_out_grad, key_out_grad, *tables, query_weight, key_weight,
        *ctx.constants,
    )  # fmt: skip
    return (
        query_grad,
        key_grad,
        *nothing,
        None if query_weight is None else query_weight_grad,
        None if key_weight is None else key_weight_grad,
        *nothing,
    )


rotate_query_key_op.register_autograd(_backward, setup_context=_save)
