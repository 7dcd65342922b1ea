"""What `auto` takes: the factors, or one product with the merged matrix.

In multiplications, for t rows, D = in · out and P parameters:

    factors    t · (P + c · (in + out + 2 · width))    each value that passes through memory is as
                                                       dear as c multiplications
    merged     t · D + D · (r + m)                     the matrix is made first, at each call

c and m were fitted by hand to times of both ways on one thread of one CPU, over 128 to 2048
features, 4 to 16 blocks and 16 to 4096 rows; the suite `monarch` (benchmarks/README.md) times
`auto` beside `merged` and `reference` at some of them. On a GPU nothing is measured: there the
merged matrix is taken where it needs fewer multiplications, which is certain to be faster, and
nowhere else. The same holds for the backward pass, in which every term trebles.
"""

import math

import torch
from torch import Tensor

PASSING = {torch.float32: 32, torch.float64: 16, torch.bfloat16: 220, torch.float16: 220}
"""c of a CPU: matrix units make multiplications of half precision cheap, and memory no faster."""
MAKING = {torch.float32: 48, torch.float64: 24, torch.bfloat16: 150, torch.float16: 150}
"""m of a CPU: writing the matrix."""
AT_ONCE = 2**20
"""Bytes of all rows up to which a CPU needs no chunks: they fit its cache."""


def merged_from(right: Tensor, left: Tensor) -> int | None:
    """The least number of rows from which the merged matrix is faster, or None.

    Args:
        right: (k, l·r, p).
        left: (l, s, k·r), of its dtype and on its device.
    """
    (k, rows, p), (blocks, s, _) = right.shape, left.shape
    inputs, outputs, width, rank = k * p, blocks * s, k * rows, rows // blocks
    on_cpu = right.device.type == "cpu"
    passing = PASSING.get(right.dtype, 0) if on_cpu else 0
    making = MAKING.get(right.dtype, 0) if on_cpu else 0
    parameters = width * (p + s)
    saved = parameters + passing * (inputs + outputs + 2 * width) - inputs * outputs
    if saved <= 0:
        return None
    return math.ceil(inputs * outputs * (rank + making) / saved)


def fits_at_once(rows: int, right: Tensor, left: Tensor) -> bool:
    """Whether a CPU is fastest with plain products: for few rows, where a copy of them is cheap.

    At rank 1 that copy is of single numbers, and the reference, which makes none, is faster.
    """
    (k, hidden, p), (blocks, s, _) = right.shape, left.shape
    widest = max(k * p, k * hidden, blocks * s) * right.dtype.itemsize
    return right.device.type == "cpu" and hidden > blocks and rows * widest <= AT_ONCE
