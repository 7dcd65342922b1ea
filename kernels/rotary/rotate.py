"""`rotate`: the rotation of one tensor of any shape, differentiable in the angles, too."""

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.rotary.reference import rotate_reference
from ropewalk.kernels.rotary.validation import check_layout
from ropewalk.kernels.shapes import Layout


def rotate(
    x: Float[Tensor, "*batch head_dim"],
    cos: Float[Tensor, "*#batch pairs"],
    sin: Float[Tensor, "*#batch pairs"],
    *,
    layout: Layout = "half",
) -> Float[Tensor, "*batch head_dim"]:
    """Rotates the leading rotary_dim = 2·pairs dimensions of `x` and passes the rest.

    Args:
        x: queries or keys, any floating dtype; computed in float32 (float64 stays float64).
        cos: cosines of the angles, broadcastable against `x` in all but the last dimension. For
            x (batch, heads, seq, head_dim) this is (seq, pairs) or (batch, 1, seq, pairs).
        sin: sines of the angles, of the shape of `cos`.
        layout: which dimensions are pairs; see `ropewalk.kernels.rotary.reference`.

    Returns:
        The rotated tensor, in the dtype of `x`. The function is linear in `x`; its transpose is
        the rotation by the opposite angles, so `rotate(y, cos, -sin)` undoes a pure rotation.

    Raises:
        ValueError: `layout` is unknown, cos and sin differ in shape, or more dimensions are to be
            rotated than a head has.
        TypeError: `x` is not a floating-point tensor.
    """
    check_layout(layout)
    if not torch.is_floating_point(x):
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}; cast it first")
    if cos.shape != sin.shape:
        raise ValueError(
            f"cos and sin: expected equal shapes, got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if 2 * cos.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"cos: expected at most head_dim/2 = {x.shape[-1] // 2} angles for x with head_dim = "
            f"{x.shape[-1]}, got {cos.shape[-1]}; pass one angle per pair, not per dimension"
        )
    return rotate_reference(x, cos, sin, layout)
