"""Rotation of queries and keys by given angles.

    rotate.py      one tensor of any shape; plain torch, differentiable in the angles, too
    query_key.py   queries and keys at once, after an RMSNorm if wanted, in place if wanted
    validation.py  what is refused, and in which words
    rotation.py    what an implementation needs beside the tensors
    op.py          the torch operators: schema, fake tensors, autograd
    inplace.py     the same, written over queries and keys
    backend.py     which implementation runs
    reference.py   the equation in torch
    triton/        one launch on a GPU

Example:
    >>> import torch
    >>> from ropewalk.blocks.rotary import RotaryEmbedding
    >>> query, key = torch.randn(1, 8, 100, 64), torch.randn(1, 2, 100, 64)
    >>> cos, sin = RotaryEmbedding(64)(torch.arange(100))
    >>> query, key = rotate_query_key(query, key, cos, sin)
"""

from ropewalk.kernels.backends import Backend
from ropewalk.kernels.rotary.query_key import rotate_query_key
from ropewalk.kernels.rotary.rotate import rotate
from ropewalk.kernels.rotary.validation import LAYOUTS
from ropewalk.kernels.shapes import Layout

__all__ = ["LAYOUTS", "Backend", "Layout", "rotate", "rotate_query_key"]
