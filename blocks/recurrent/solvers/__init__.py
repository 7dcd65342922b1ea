"""Solvers of nonlinear recurrences: all states at once, or step by step.

solve.py         solve: the states, and the truth about them
iterate.py       iterate: what a method has after k iterations
methods.py       the methods, each a choice of Ã_t
choice.py        what method="auto" takes
windows.py       iterating in windows of time; what happens if one does not converge
sequential.py    one step after another
kernel.py        built-in diagonal cells by the fused scan
gradients.py     gradients of the solution
trust_region.py  the step of ELK
eigenbasis.py    a constant recurrence as a complex diagonal one
system.py        the equations, and linear algebra of Jacobians
layout.py        where sequences begin
info.py          SolveInfo, the error, the warning
validation.py    what is refused
"""

from ropewalk.blocks.recurrent.solvers.info import (
    Attempt,
    ConvergenceError,
    RecurrenceWarning,
    SolveInfo,
    forget_warnings,
)
from ropewalk.blocks.recurrent.solvers.iterate import iterate
from ropewalk.blocks.recurrent.solvers.methods import (
    METHODS,
    Clip,
    Elk,
    FirstOrder,
    Fixed,
    Jacobi,
    Method,
    Newton,
    Picard,
    Quasi,
    Scale,
    Sequential,
    named,
)
from ropewalk.blocks.recurrent.solvers.solve import solve

__all__ = [
    "Attempt",
    "Clip",
    "ConvergenceError",
    "Elk",
    "FirstOrder",
    "Fixed",
    "Jacobi",
    "METHODS",
    "Method",
    "Newton",
    "Picard",
    "Quasi",
    "RecurrenceWarning",
    "Scale",
    "Sequential",
    "SolveInfo",
    "forget_warnings",
    "iterate",
    "named",
    "solve",
]
