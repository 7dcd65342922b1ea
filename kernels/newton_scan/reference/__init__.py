"""The recurrence in torch, on any device and in any dtype.

passes.py      forward and backward of a problem
newton.py      windows of time that are solved at once
sequential.py  one step after another
adjoint.py     the backward: a linear recurrence against time, then the cell's pullback
"""

from ropewalk.kernels.newton_scan.reference.passes import backward, forward

__all__ = ["backward", "forward"]
