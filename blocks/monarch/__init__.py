"""Monarch matrices: linear layers of two block-diagonal factors.

shape.py          MonarchShape: the sizes, and which of them make sense
projection.py     monarch_project: the nearest to a dense matrix
linear.py         MonarchLinear
inverse.py        transpose, inverse, solve, log|det|
product.py        products of more than two factors
constructions.py  Fourier, Hadamard and Toeplitz matrices, exactly
conversion/       monarchize and merge, for whole models
adapter/          MonarchAdapter, for fine-tuning
"""

from ropewalk.blocks.monarch.inverse import (
    log_abs_det,
    monarch_inverse,
    monarch_solve,
    monarch_transpose,
)
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.blocks.monarch.projection import Projection, monarch_project
from ropewalk.blocks.monarch.shape import MonarchShape
from ropewalk.kernels.monarch import monarch_matmul, monarch_to_dense

__all__ = [
    "MonarchLinear",
    "MonarchShape",
    "Projection",
    "log_abs_det",
    "monarch_inverse",
    "monarch_matmul",
    "monarch_project",
    "monarch_solve",
    "monarch_to_dense",
    "monarch_transpose",
]
