"""Triton's path: cell, Jacobian and scan in one kernel, or steps in turn; a backward for both.

    configurations.py  channels, rows and warps: a table that the compile tests prove
    crossover.py       windows or steps in turn: a model of both times
    cells/             the cells on tiles in registers: step, Jacobian, pullback
    memory.py          inputs and weights as tuples; how far two states are apart
    newton.py          kernel: Newton's method inside windows
    sequential.py      kernel: one step after another
    adjoint.py         kernel: all gradients
    launch.py          `forward` and `backward`

Inputs are read once and states written once, whatever the iterations. Time in registers is cut as
in `linear_scan/triton/groups.py`. Sums have one order for given sizes, so that results repeat bit
for bit, and nothing here reads a value back from the device.
"""

from ropewalk.kernels.newton_scan.triton.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
