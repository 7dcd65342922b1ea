"""Triton's side of `rotate_query_key`: one launch for queries and keys, forward or backward.

    tiles.py           one head of a tile of tokens, from memory to pairs and back
    turn.py            norm and rotation
    turn_back.py       their gradients
    configurations.py  tile sizes
    launch.py          strides, grids and constants

No kernel waits for another, and nothing is added atomically.
"""

from ropewalk.kernels.rotary.triton.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
