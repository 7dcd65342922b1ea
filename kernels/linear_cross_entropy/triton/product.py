"""Kernel of the backward: a product of the gradient of the logits of which most tiles are skipped.

    out[i] = Σ over live tiles (i, j) of G[i, j] · matrix[j]

With i in blocks of tokens, j in tiles of columns and the weights it gives the hidden states'
gradient; with G transposed and the hidden states the weights'. Each i has a list of its live j, in
ascending order, so that the loop meets nothing else and the sum has one order. A library's product
cannot skip, which is why this one is written out.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_cross_entropy.triton.tiles import halves, load_depth, tile_offsets


@triton.jit
def write_product(total, out, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                  ADD: tl.constexpr):  # fmt: skip
    """Stores a tile, or adds it, as far as its rows and columns exist."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = out + row.to(tl.int64)[:, None] * stride + column[None, :]
    if ADD:
        total += tl.load(place, mask=inside, other=0.0)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def live_product_kernel(
    gradient, matrix, out, lists, counts,
    rows, depth, dims, gradient_stride, matrix_stride, list_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    ROW_STEP: tl.constexpr, DEPTH_STEP: tl.constexpr,
    GRADIENT_TRANSPOSED: tl.constexpr, GRADIENT_UNIT: tl.constexpr,
    MATRIX_TRANSPOSED: tl.constexpr, MATRIX_UNIT: tl.constexpr, DIM_UNIT: tl.constexpr,
    EVEN: tl.constexpr, ADD: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of dimensions, blocks of rows).

    Args:
        gradient: (rows, depth), `matrix`: (dim, depth), each as tiles.py describes it. There is
            room for whole tiles of the gradient's columns, which those that do not exist fill with
            zeros, so that nobody asks for the last one.
        out: (rows, dim), contiguous.
        lists: (tiles of rows, list_stride) live tiles of the depth, `counts` of them.
        ROW_STEP: rows of a tile of the map, a multiple of ROWS.
        DEPTH_STEP: its depth, a multiple of DEPTH.
        EVEN: whether `depth` is a multiple of DEPTH_STEP, so that no live tile ends past it.
        dims: of the dimension, in units of DIM_UNIT.
        ADD: to what `out` holds.
        SPLIT: whether one half of a tile is written before the other, which takes fewer registers.
    """
    dim = dims * DIM_UNIT
    row = tl.program_id(1) * ROWS
    column = tl.program_id(0) * COLUMNS
    tile = row // ROW_STEP
    count = tl.load(counts + tile)
    if ADD:  # noqa: SIM102 (one of them is known to the compiler)
        if count == 0:
            return
    lists += tile.to(tl.int64) * list_stride
    row_step = gradient_stride * GRADIENT_UNIT
    column_step = matrix_stride * MATRIX_UNIT
    gradient += row.to(tl.int64) * (1 if GRADIENT_TRANSPOSED else row_step)
    matrix += column.to(tl.int64) * (1 if MATRIX_TRANSPOSED else column_step)
    row_offsets = tile_offsets(
        rows - row, gradient_stride, ROWS, DEPTH, GRADIENT_TRANSPOSED, GRADIENT_UNIT
    )
    column_offsets = tile_offsets(
        dim - column, matrix_stride, COLUMNS, DEPTH, MATRIX_TRANSPOSED, MATRIX_UNIT
    )
    STEPS: tl.constexpr = DEPTH_STEP // DEPTH
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    # Where the next load begins is known one step ahead, so that loads go on while it is read.
    steps = count * STEPS
    first = tl.load(lists, mask=steps > 0, other=0) * DEPTH_STEP
    for step in range(0, steps):
        wide = first.to(tl.int64)
        left = load_depth(
            gradient + wide * (row_step if GRADIENT_TRANSPOSED else 1), row_offsets, ROWS,
            depth - first, ROWS, DEPTH, GRADIENT_TRANSPOSED, EVEN or not GRADIENT_TRANSPOSED,
            UPCAST,
        )  # fmt: skip
        right = load_depth(
            matrix + wide * (column_step if MATRIX_TRANSPOSED else 1), column_offsets,
            dim - column, depth - first, COLUMNS, DEPTH, MATRIX_TRANSPOSED, EVEN, UPCAST,
        )  # fmt: skip
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
        after = step + 1
        first = tl.load(lists + after // STEPS, mask=after < steps, other=0) * DEPTH_STEP
        first += after % STEPS * DEPTH
    place = out + row.to(tl.int64) * dim + column
    if SPLIT:
        half: tl.constexpr = COLUMNS // 2
        first_half, second_half = halves(total, ROWS, COLUMNS)
        write_product(first_half, place, rows - row, dim - column, dim, ROWS, half, ADD)
        write_product(
            second_half, place + half, rows - row, dim - column - half, dim, ROWS, half, ADD
        )
    else:
        write_product(total, place, rows - row, dim - column, dim, ROWS, COLUMNS, ADD)
