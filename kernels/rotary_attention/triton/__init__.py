"""Triton kernels of rotary attention: forward, backward and decoding, for NVIDIA GPUs.

    configurations.py  tile sizes, warps and stages: a table that the compile tests prove
    geometry.py        what the kernels of one problem share
    positions.py       positions in 32 bits, and whether they ascend
    turn.py            rotation to the positions of every branch, and back
    angles.py          sine and cosine
    ranges.py          which tiles of keys a block of queries meets, and the other way round
    pairs.py           where a program works, and which pairs a branch shows
    forward.py         the forward kernel
    backward.py        the backward kernels
    launch.py          `forward` and `backward` of a problem
    decode.py          a few queries against a long cache

A kernel visits each tile of a branch once, without a mask where it is full (ranges.py); see
forward.py for the cost. Nothing here reads a value back from the device.
"""

from ropewalk.kernels.rotary_attention.triton.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
