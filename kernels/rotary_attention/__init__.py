"""Attention of unrotated queries and keys under a rotary embedding and a distance rule.

    attention.py   the public function: positions, branches, dispatch
    positions.py   where queries and keys are by default
    protocols.py   what a rotary embedding and a distance rule look like to the op
    validation.py  what is refused, and in which words
    op.py          the torch operator: schema, fake tensors, autograd
    backend.py     which implementation answers
    schedule.py    which keys a block of queries meets, through which branch
    problem.py     what is asked: tensors, constants and the rotation
    walk.py        the scores of one tile of queries and keys
    softmax.py     the running softmax that merges tiles
    reference.py   the equation, forward and backward, by blocks of queries
    varlen.py      packed sequences, one dense problem after another

Example:
    >>> import torch
    >>> from ropewalk.blocks.rotary import ReRoPE, RotaryEmbedding
    >>> query, key, value = torch.randn(1, 8, 100, 64), *torch.randn(2, 1, 2, 100, 64)
    >>> rotary = RotaryEmbedding(64)
    >>> rotary_attention(query, key, value, rotary=rotary, distance=ReRoPE(window=32)).shape
    torch.Size([1, 8, 100, 64])
"""

from ropewalk.kernels.rotary_attention.attention import rotary_attention
from ropewalk.kernels.rotary_attention.backend import Backend
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
    "rotary_attention",
]
