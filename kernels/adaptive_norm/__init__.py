"""Adaptive norms of a diffusion transformer, and the gated residual before them, in one pass.

norm.py        adaptive_norm, gated_adaptive_norm, gated_residual
validation.py  what is refused, and in which words
problem.py     what an implementation gets and gives
op.py          the torch operators: schema, fake tensors, autograd
eager.py       the same without an operator, for plain tensors
composite.py   the equation in ordinary torch, for transforms and derivatives of derivatives
backend.py     which implementation computes
reference/     by samples through the caches, in torch; the way on a CPU
triton/        kernels on a GPU
"""

from ropewalk.kernels.adaptive_norm.norm import (
    adaptive_norm,
    gated_adaptive_norm,
    gated_residual,
)
from ropewalk.kernels.adaptive_norm.problem import NORMS, Norm

__all__ = ["NORMS", "Norm", "adaptive_norm", "gated_adaptive_norm", "gated_residual"]
