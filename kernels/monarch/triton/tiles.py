"""A tile of a product of two matrices that lie anywhere.

Strides are plain arguments: Triton compiles a kernel anew where one of them is 1 or a multiple of
16, and so knows along which dimension it may load whole vectors. Offsets within a tile fit 32 bits
(layout.py sees to it); what begins a tile is counted in 64.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl


@triton.jit
def load_tile(start, rows, steps, ROWS: tl.constexpr, DEPTH: tl.constexpr, UPCAST: tl.constexpr):
    """A tile (ROWS, DEPTH), zero where there are no more rows or steps.

    Args:
        start: (ROWS, DEPTH) pointers.
        UPCAST: to float32 at once, because the interpreter has no bfloat16 arithmetic.
    """
    inside = (tl.arange(0, ROWS) < rows)[:, None] & (tl.arange(0, DEPTH) < steps)[None, :]
    tile = tl.load(start, mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def tile_pointers(start, row_stride, step_stride, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Pointers to a tile's (ROWS, DEPTH) elements."""
    rows = tl.arange(0, ROWS)[:, None] * row_stride
    return start + (rows + tl.arange(0, DEPTH)[None, :] * step_stride)


@triton.jit
def product_tile(
    left, right, rows, columns, depth,
    left_row, left_step, right_row, right_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ONE_STEP: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ_i left[row, i] right[column, i] in float32, a tile (ROWS, COLUMNS).

    Args:
        left, right: where the tile's rows and columns begin; so many of them exist.
        ONE_STEP: whether the depth is no more than DEPTH.
    """
    left = tile_pointers(left, left_row, left_step, ROWS, DEPTH)
    right = tile_pointers(right, right_row, right_step, COLUMNS, DEPTH)
    if ONE_STEP:
        a = load_tile(left, rows, depth, ROWS, DEPTH, UPCAST)
        b = load_tile(right, columns, depth, COLUMNS, DEPTH, UPCAST)
        total = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    else:
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, depth, DEPTH):
            a = load_tile(left, rows, depth - first, ROWS, DEPTH, UPCAST)
            b = load_tile(right, columns, depth - first, COLUMNS, DEPTH, UPCAST)
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
            left += left_step * DEPTH
            right += right_step * DEPTH
    return total
