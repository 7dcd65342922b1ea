"""Monarch matrices: two products of small blocks in the place of one with a large matrix.

matmul.py      monarch_matmul
dense.py       the factors' product as one matrix, and products in ordinary torch
validation.py  what is refused, and in which words
problem.py     what an implementation gets and gives
op.py          the torch operators: schema, fake tensors, autograd
eager.py       the same without an operator, for plain tensors
backend.py     which implementation computes
break_even.py  when the merged matrix is faster
activation.py  what a product can end in
reference/     batched products in torch; the way on a CPU
triton/        kernels on a GPU
"""

from ropewalk.kernels.monarch.activation import ACTIVATIONS, Activation
from ropewalk.kernels.monarch.backend import Backend
from ropewalk.kernels.monarch.break_even import merged_from
from ropewalk.kernels.monarch.dense import monarch_to_dense
from ropewalk.kernels.monarch.matmul import monarch_matmul
from ropewalk.kernels.monarch.validation import check_factors

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Backend",
    "check_factors",
    "merged_from",
    "monarch_matmul",
    "monarch_to_dense",
]
