"""Triton's path: every number of a, b and x is moved once, in the layout in which it lies.

    configurations.py  sizes, warps, and whether time is split: a table that the compile tests prove
    layout.py          what kernels can read as it is
    structures.py      coefficients and states as tuples: real, complex, 2×2 blocks
    memory.py          where sequences lie; rows to registers and back
    groups.py          a tile of time in registers: threads walk rows, a scan joins their walks
    scan.py            kernel: the states
    adjoint.py         kernel: all gradients
    summary.py         kernel: what a chunk of time does to a state
    launch.py          `forward` and `backward`

A tile is neither scanned as a whole, which costs each element shuffles and products of
coefficients that may leave float32, nor walked by one thread from end to end, which leaves too few
threads: see groups.py. Sums have one order for given sizes, so that results repeat bit for bit, and
nothing here reads a value back from the device.
"""

from ropewalk.kernels.linear_scan.triton.launch import backward, forward
from ropewalk.kernels.linear_scan.triton.layout import unsupported

__all__ = ["backward", "forward", "unsupported"]
