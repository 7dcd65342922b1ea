"""Triton's path: every tensor is read once and every result written once.

    configurations.py  sizes of a tile, and how many tokens a program takes
    layout.py          strides that kernels are told, and what they can read as it is
    parts.py           which tokens of which sample a program has, packed or not
    tiles.py           rows of a stream, from memory to float32 and back
    forward_kernel.py  kernel: gated sum, norm, modulation
    backward_kernel.py kernel: gradients of the streams, and sums over a part's tokens
    sums_kernel.py     kernel: a sample's sums from those of its parts
    forward.py         the launch of the first: `forward`
    backward.py        the launches of the others: `backward`

Nothing is added atomically, so that results repeat bit for bit, and nothing is read back from the
device but, once, the packed samples' bounds, to check them.
"""

from ropewalk.kernels.adaptive_norm.triton.backward import backward
from ropewalk.kernels.adaptive_norm.triton.forward import forward
from ropewalk.kernels.adaptive_norm.triton.layout import unsupported

__all__ = ["backward", "forward", "unsupported"]
