"""A compiled loop over time for each built-in cell, on a CPU.

    scratch.py  the one array that inner loops write to
    tanh.py     loops of a cell: sequential, by Newton's method in windows, and the backward
    gru.py      likewise
    lstm.py     likewise, with two states a channel
    launch.py   `forward`, `backward`: memory, threads, and the choice of a loop

"auto" is the sequential loop: one thread has no use for a parallel solver, which does the same work
in every iteration and takes several times as long (benchmarks, suite `recurrent`); threads share
out sequences and channels. Newton's method is here so that it can be studied without a GPU.

The backward keeps nothing but the states; gates are computed again. The weights' gradient is summed
in the dtype of the calculation over blocks of 32 steps, and beyond that in float64, one sum a
thread: its last bits depend on the number of torch's threads, and on nothing else.
"""

from ropewalk.kernels.newton_scan.numba.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
