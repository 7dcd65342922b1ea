"""Triton's path: the activation and its gradient, one launch each.

    activation.py      an activation and its derivative at once, on a tile
    activate.py        kernels: forward, and backward with the forward's result made again
    configurations.py  tile sizes
    launch.py          strides, grids and constants

Every number is read once and written once; no kernel waits for another, and nothing is added
across programs, so that results repeat bit for bit.
"""

from ropewalk.kernels.gated_mlp.triton.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
