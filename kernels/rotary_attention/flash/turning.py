"""Rotation of a branch's queries or keys in as few passes over memory as the equation has terms.

    x_a' = x_a cos φ − x_b sin φ,   x_b' = x_b cos φ + x_a sin φ

Two products and two fused products go straight into the result. A branch whose positions are all
the same, as ReRoPE's far queries are, needs one row of cosines; one at position 0, as its far keys
are, needs none, and nothing is copied.
"""

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.problem import Problem


def turn(problem: Problem, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
    """R^positions x, or its transpose; a new tensor, or `x` itself where nothing turns.

    Args:
        problem: the frequencies, the attention factor and the layout.
        x: (batch, heads, sequence, head_dim), in the dtype of the computation.
        positions: (1 | batch, sequence).
        back: whether to apply the transpose, which takes gradients back.
    """
    p = problem
    pairs = p.inverse_frequencies.numel()
    if pairs == 0 or x.numel() == 0:
        return x
    if bool((positions == positions[:1, :1]).all()):
        positions = positions[:1, :1]
        if float(positions) == 0 and float(p.attention_factor) == 1:
            return x
    angle = positions.to(p.dtype)[:, None, :, None] * p.inverse_frequencies.to(p.dtype)
    cos, sin = angle.cos(), angle.sin()
    if float(p.attention_factor) != 1:
        factor = p.attention_factor.to(p.dtype)
        cos, sin = cos * factor, sin * factor
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sign = -1 if back else 1
    (a, b), (new_a, new_b) = (_halves(t, pairs, p.layout) for t in (x, turned))
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin, value=sign)
    turned[..., 2 * pairs :] = x[..., 2 * pairs :]
    return turned


def _halves(x: Tensor, pairs: int, layout: str) -> tuple[Tensor, Tensor]:
    if layout == "half":
        return x[..., :pairs], x[..., pairs : 2 * pairs]
    return x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
