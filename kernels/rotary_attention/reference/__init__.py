"""Rotary attention by its equation, in torch; it takes everything, and the others are held to it.

launch.py    `forward` and `backward` of a problem, by blocks of queries
walk.py      the scores of one tile of queries and keys
softmax.py   the running softmax that merges tiles
"""

from ropewalk.kernels.rotary_attention.reference.launch import backward, forward

__all__ = ["backward", "forward"]
