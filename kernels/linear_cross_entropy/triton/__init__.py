"""Triton's path: logits live in registers, a tile at a time, forward and backward.

    configurations.py  tile sizes, warps and stages: a table that the compile tests prove
    tiles.py           a tile of logits, and which one a program computes
    statistics.py      kernels of the forward: a tile's part of each sum, and what the parts make
    gradient.py        kernel of the backward: the gradient of a tile of logits
    product.py         kernel of the backward: the gradient's products where tiles are skipped
    layout.py          matrices as the kernels read them, and how their strides are told
    logits.py          what every launch that computes logits is told
    sizes.py           how many tokens and columns are held at once
    scale.py           keeps gradients of float16 within its range
    live.py            the map of live tiles as lists
    products.py        the gradient's products: torch's own where nothing is skipped
    forward.py         launches: `statistics`
    backward.py        launches: `gradients`

Four products of tokens × vocabulary × dim in all: one forward; in the backward the same again, and
one for each gradient. Every sum has one order, so that results repeat bit for bit, and nothing here
reads a value back from the device.
"""

from ropewalk.kernels.linear_cross_entropy.triton.backward import gradients
from ropewalk.kernels.linear_cross_entropy.triton.forward import statistics
from ropewalk.kernels.linear_cross_entropy.triton.layout import unsupported

__all__ = ["gradients", "statistics", "unsupported"]
