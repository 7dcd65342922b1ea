"""Products of the gradient of a chunk of logits: a library's, or ours where tiles are skipped.

Sums are float32. Half precision with a float32 result is an overload of torch's product that only
CUDA has; elsewhere, which is to say in the interpreter, matrices are cast before.
"""

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.launching import arithmetic, run
from ropewalk.kernels.linear_cross_entropy.triton.configurations import configuration
from ropewalk.kernels.linear_cross_entropy.triton.layout import Matrix, matrix
from ropewalk.kernels.linear_cross_entropy.triton.product import live_product_kernel
from ropewalk.kernels.sizes import ceil_divide


class Live(NamedTuple):
    """Which tiles of a gradient are live.

    Attributes:
        tiles: (rows of tiles, most tiles) int32, the live ones of each row first, ascending.
        counts: (rows of tiles,) int32.
        row_step: rows of a tile.
        depth_step: columns of a tile.
    """

    tiles: Tensor
    counts: Tensor
    row_step: int
    depth_step: int


def product(gradient: Tensor, right: Matrix, out: Tensor, *, add: bool, live: Live | None) -> None:
    """Writes out = gradient · right, or += with `add`.

    Args:
        gradient: (rows, depth), rows or columns contiguous. What is not live is not read.
        right: (depth, dim).
        out: (rows, dim), contiguous, of the dtype of the others or float32; float32 with `add`.
        add: to what `out` holds.
        live: none where everything is.
    """
    if live is None:
        (_add_product if add else _multiply)(gradient, right.tensor, out)
        return
    left, turned = matrix(gradient), right.turned()
    rows, depth = gradient.shape
    dim = out.shape[1]
    dim_unit = gcd(16, max(dim, 1))
    how = configuration("product", rows, gradient.dtype, gradient.device)
    run(
        live_product_kernel,
        (ceil_divide(dim, how.columns), ceil_divide(rows, how.rows)),
        gradient,
        gradient=left.tensor,
        matrix=turned.tensor,
        out=out,
        lists=live.tiles,
        counts=live.counts,
        rows=rows,
        depth=depth,
        dims=dim // dim_unit,
        gradient_stride=left.stride,
        matrix_stride=turned.stride,
        list_stride=live.tiles.shape[1],
        ROWS=how.rows,
        COLUMNS=how.columns,
        DEPTH=how.depth,
        ROW_STEP=live.row_step,
        DEPTH_STEP=live.depth_step,
        GRADIENT_TRANSPOSED=left.transposed,
        GRADIENT_UNIT=left.unit,
        MATRIX_TRANSPOSED=turned.transposed,
        MATRIX_UNIT=turned.unit,
        DIM_UNIT=dim_unit,
        EVEN=depth % live.depth_step == 0,
        ADD=add,
        SPLIT=how.parts > 1,
        **how.launch(),
        **arithmetic(gradient.dtype),
    )


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def _add_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
    else:
        out.addmm_(left.to(out.dtype), right.to(out.dtype))
