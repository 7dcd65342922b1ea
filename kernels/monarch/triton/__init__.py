"""Triton's path: four passes over the tokens' features, the permutation in where tiles are written.

    configurations.py  tile sizes, warps and stages: a table that the compile tests prove
    layout.py          how hidden values lie, and what kernels can read as it is
    form.py            two kernels or one: a model of the bytes that each moves
    activation.py      activations on a tile, and their derivatives
    tiles.py           a tile of a product of matrices of any strides
    product.py         kernel: the product of every block, into any order; both products are it
    fused.py           kernel: both products in one, hidden values in registers
    outer.py           kernel: outer products of blocks, summed over tokens
    products.py        launches of the first and the third
    forward.py         launches: `forward`
    backward.py        launches: `backward`

The forward reads x, writes and reads the hidden values, and writes y; bias and activation are part
of the last step. Every sum has one order, so that results repeat bit for bit, and nothing here
reads a value back from the device.
"""

from ropewalk.kernels.monarch.triton.backward import backward
from ropewalk.kernels.monarch.triton.forward import forward
from ropewalk.kernels.monarch.triton.layout import unsupported

__all__ = ["backward", "forward", "unsupported"]
