"""Attention of unrotated queries and keys under a rotary embedding and a distance rule.

The call:
    attention.py   the public function: positions, branches, dispatch
    plain.py       the plain rule as torch has it
    norms.py       norms of queries and keys before the rotation
    positions.py   where queries and keys are by default
    protocols.py   what a rotary embedding and a distance rule look like to the op
    kinds.py       what kind of thing was passed
    validation/    what is refused, and in which words
    op.py          the torch operator: schema, fake tensors, autograd
    problem.py     what is asked: tensors, constants and the rotation
    backend.py     which implementation answers
    varlen.py      packed sequences and rows of different lengths; those of equal lengths together
    schedule.py    which keys a block of queries meets, through which branch

What answers it:
    reference/     the equation in torch
    flash/         attention that exists, near and far merged
    triton/        one kernel for all branches

Example:
    >>> import torch
    >>> from ropewalk.blocks.rotary import ReRoPE, RotaryEmbedding
    >>> query, key, value = torch.randn(1, 8, 100, 64), *torch.randn(2, 1, 2, 100, 64)
    >>> rotary = RotaryEmbedding(64)
    >>> rotary_attention(query, key, value, rotary=rotary, distance=ReRoPE(window=32)).shape
    torch.Size([1, 8, 100, 64])
"""

from ropewalk.kernels.rotary_attention.attention import rotary_attention
from ropewalk.kernels.rotary_attention.backend import Backend, check_backend
from ropewalk.kernels.rotary_attention.protocols import (
    Branch,
    DistanceRule,
    Layout,
    PositionMap,
    QueryScale,
    Rotary,
)

__all__ = [
    "Backend",
    "Branch",
    "DistanceRule",
    "Layout",
    "PositionMap",
    "QueryScale",
    "Rotary",
    "check_backend",
    "rotary_attention",
]
