"""A compiled loop over time, for CPUs.

    diagonal.py  loops: one number a step and channel, real or complex
    block2.py    loops: a 2×2 matrix a step and channel
    dense.py     loops: a matrix a step
    launch.py    `forward`, `backward`: memory, threads, and the choice of a loop

A scan in one thread reads and writes each number once, which is what memory allows; a parallel scan
would do it several times. So threads share out sequences and channels and never the time. Whatever
layout a tensor has is read as it lies, and a coefficient that is broadcast is never written out.
"""

from ropewalk.kernels.linear_scan.numba.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
