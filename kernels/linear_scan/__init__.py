"""Linear recurrences x_t = a_t x_(t−1) + b_t, all states at once.

scan.py        linear_scan
validation.py  what is refused, and in which words
problem.py     what an implementation gets and gives
op.py          the torch operators: schema, fake tensors, autograd
eager.py       the same without an operator, for plain tensors
composite.py   ordinary torch, for torch.func
backend.py     which implementation computes
reference/     chunks in torch
numba/         a compiled loop on a CPU
triton/        kernels on a GPU
"""

from ropewalk.kernels.linear_scan.backend import Backend
from ropewalk.kernels.linear_scan.scan import linear_scan

__all__ = ["Backend", "linear_scan"]
