"""Loops in machine code for ops that are sequential, on a CPU: what their kernels share.

    compiler.py   a decorator: compiled at the first call, kept on disk where that can be written
    functions.py  sigmoid and tanh in which a loop over channels becomes vector instructions
    memory.py     a tensor as flat memory with strides
    sequences.py  where each sequence begins, in which direction, and how long it is
    threads.py    blocks of channels of sequences, dealt out to plain threads

Only `compiler` and `functions` import numba, and only an op's own numba/ imports them.

Time is the outer loop and channels the inner one, which the compiler turns into vector
instructions. It does so where few pairs of arrays could overlap: kernels read what they are given
as it lies, but write rows of one scratch array, and copy them out.
"""
