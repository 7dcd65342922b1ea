"""Nonlinear recurrences of the built-in cells, all states at once and exactly.

scan.py        newton_scan
cells/         the formulas of the cells
validation.py  what is refused, and in which words
problem.py     what an implementation gets and gives
op.py          the torch operators: schema, fake tensors, autograd
eager.py       the same without an operator, for plain tensors
composite.py   ordinary torch, for torch.func
backend.py     which implementation computes
reference/     Newton's method in windows, or steps, in torch
numba/         compiled loops on a CPU
triton/        fused kernels on a GPU
"""

from ropewalk.kernels.newton_scan.backend import Backend
from ropewalk.kernels.newton_scan.cells import CELLS, Cell
from ropewalk.kernels.newton_scan.problem import Algorithm, CellName, Scanned
from ropewalk.kernels.newton_scan.scan import newton_scan

__all__ = ["CELLS", "Algorithm", "Backend", "Cell", "CellName", "Scanned", "newton_scan"]
