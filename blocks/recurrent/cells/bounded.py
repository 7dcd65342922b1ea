"""Recurrent weights that can never make a state grow: the bounded parametrisation.

A cell h' = f(h, x) forgets where ‖∂f/∂h‖ ≤ 1. With ‖·‖_∞, the greatest sum of absolute values along
a row of J, this is a condition on every row of weights by itself, a weighted sum of absolute
values: Σ_p k_p Σ_j |w_pij| ≤ ρ. The cells' docstrings prove which k_p suffice.

Free parameters v become weights that satisfy it by scaling the parts of a row together:

    w_p = v_p / (1 + s/ρ),    s = Σ_p k_p Σ_j |v_pij|
    Σ_p k_p Σ_j |w_pij| = s / (1 + s/ρ) < ρ

No gradient dies: the derivative of v ↦ w is (1 − v (∂s)ᵀ/(ρ + s)) / (1 + s/ρ), whose determinant,
ρ / (ρ + s) times (1 + s/ρ)⁻ⁿ, is never zero, and v ↦ w maps all of space one to one onto the open
ball. It is continuous, and differentiable except where a weight of the row is exactly 0 while
others are not; there autograd takes the mean of both sides, sign(0) = 0. A clamp would stop
learning at its edge; a spectral norm would bind the units of a layer together and need an
iteration.

The limits are kept a little below what is proven, so that rounding in float32 does not cross them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MARGIN = 1e-5
"""How far, relatively, limits stay below what is proven: rounding of sums of some 1000 weights."""


def bound(parts: Sequence[tuple[Tensor, float]], limit: float) -> list[Tensor]:
    """Weights within the limit, of free parameters.

    Args:
        parts: v and k of every part: (hidden,), or (hidden, columns) whose rows are summed.
        limit: ρ.

    Returns:
        The w of every part, in float32 if v is narrower: rounded, they might cross the limit.
    """
    limit = limit * (1 - MARGIN)
    wide = [(_wide(v), k) for v, k in parts]
    scale = limit / (limit + _total(wide))
    return [v * _along(scale, v) for v, _ in wide]


def unbound(parts: Sequence[tuple[Tensor, float]], limit: float) -> list[Tensor]:
    """Free parameters of weights: the inverse of `bound`.

    Args:
        parts: w and k of every part.
        limit: ρ.

    Raises:
        ValueError: weights that are not within the limit.
    """
    limit = limit * (1 - MARGIN)
    wide = [(_wide(w), k) for w, k in parts]
    total = _total(wide)
    if not total.is_meta and total.numel() and not bool((total < limit).all()):
        raise ValueError(
            f"weights: expected rows whose weighted sum of absolute values is below {limit:.5g}, "
            f"got {float(total.max()):.5g}; scale them down, or use a cell with bounded=False"
        )
    scale = limit / (limit - total)
    return [w * _along(scale, w) for w, _ in wide]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _total(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    sums = [k * (x.abs() if x.ndim == 1 else x.abs().sum(-1)) for x, k in parts]
    return torch.stack(sums).sum(0)


def _along(scale: Tensor, x: Tensor) -> Tensor:
    return scale if x.ndim == 1 else scale[:, None]
