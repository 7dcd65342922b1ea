"""`rotate_query_key` written over queries and keys.

The operator that writes has no gradient (torch gives none to operators that mutate), so where one
is needed the writing is recorded by a `Function` for each tensor: queries and keys are often views,
and torch refuses to record a view that is one of two results. Only the angles are kept, as the
backward of a rotation is the rotation back. One launch forward, two backward.
"""

from typing import Any, cast

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.rotary.backend import implementation
from ropewalk.kernels.rotary.op import rotate_query_key_op
from ropewalk.kernels.rotary.rotation import Rotation
from ropewalk.kernels.shapes import Layout


@torch.library.custom_op("ropewalk::rotate_query_key_", mutates_args=("query", "key"))
def rotate_query_key_inplace_op(
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
) -> None:
    """Writes rotated queries and keys over them; see `rotation.Rotation` for the arguments."""
    rotation = Rotation(
        query_cos, query_sin, key_cos, key_sin, query_weight, key_weight,
        eps, cast("Layout", layout), inverse,
    )  # fmt: skip
    with suspended(query):
        implementation(query, backend).forward(query, key, query, key, rotation)


@rotate_query_key_inplace_op.register_fake
def _(query: Tensor, key: Tensor, *_: Any) -> None:
    return None


class _Turned(torch.autograd.Function):
    """Records that a tensor is being rotated; the data are somebody else's work."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: str, inverse: bool, backend: str
    ) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(cos, sin)
        ctx.constants = (layout, inverse, backend)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        layout, inverse, backend = ctx.constants
        tables = (cos, sin, cos, sin)
        # No heads of a second tensor.
        x_grad, _ = rotate_query_key_op(
            grad, grad[:, :0], *tables, None, None, 0.0, layout, not inverse, backend
        )
        return x_grad, None, None, None, None, None


def rotate_inplace(
    query: Tensor,
    key: Tensor,
    tables: tuple[Tensor, Tensor, Tensor, Tensor],
    weights: tuple[Tensor | None, Tensor | None],
    eps: float,
    layout: Layout,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`query` and `key` after they were written over; arguments as the operator's."""
    needed = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    if not needed:
        rotate_query_key_inplace_op(query, key, *tables, *weights, eps, layout, False, backend)
        return query, key
    if torch.compiler.is_compiling():
        # Compilers record no Function that mutates; they plan memory by themselves.
        turned = rotate_query_key_op(query, key, *tables, *weights, eps, layout, False, backend)
        return query.copy_(turned[0]), key.copy_(turned[1])
    # First the record, which refuses what torch refuses to write over, then the data.
    for x, cos, sin in ((query, *tables[:2]), (key, *tables[2:])):
        if x.requires_grad:
            _Turned.apply(x, cos, sin, layout, False, backend)
    with torch.no_grad():
        rotate_query_key_inplace_op(query, key, *tables, *weights, eps, layout, False, backend)
    return query, key
