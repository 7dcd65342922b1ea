"""The recurrence in torch: chunks side by side, then what each hands to the next.

passes.py      forward and backward of a problem
chunks.py      one batch of sequences of one length
structures.py  a step, and two steps in one, for each kind of coefficients
adjoint.py     the backward: the same recurrence the other way
"""

from ropewalk.kernels.linear_scan.reference.passes import backward, forward

__all__ = ["backward", "forward"]
