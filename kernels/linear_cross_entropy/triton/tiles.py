"""A tile of logits: which one a program computes, its products, bias, scale and cap.

Matrices lie in rows (`TRANSPOSED` false) or in columns, with a contiguous dimension either way. The
distance between two rows or columns is told in units of UNIT elements, a power of two that divides
it, because the compiler itself only asks whether a number is a multiple of 16: without it rows of
1000 elements would be read one by one.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_cross_entropy import problem

IGNORED = tl.constexpr(problem.IGNORED)


@triton.jit
def tile_of_program(program, row_blocks, tiles, GROUP: tl.constexpr):
    """(block of rows, tile of columns) of a program.

    GROUP tiles of columns go with all blocks of rows before the next ones begin, so that programs
    that run at the same time share rows and columns, and the weights come from memory once.
    """
    group = program // (GROUP * row_blocks)
    within = program - group * GROUP * row_blocks
    first = group * GROUP
    here = tl.minimum(tiles - first, GROUP)
    return within // here, first + within % here


@triton.jit
def tile_offsets(count, stride, ROWS: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr,
                 UNIT: tl.constexpr):  # fmt: skip
    """Offsets (ROWS, DEPTH) from a tile's first element.

    Rows past `count` repeat the last one, so that no load asks whether its row exists; of a matrix
    in columns they are as they would be, because a repeated row breaks the contiguous runs.
    """
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DEPTH)
    if TRANSPOSED:
        return rows[:, None] + dims[None, :] * (stride * UNIT)
    rows = tl.minimum(rows, count - 1)
    return rows[:, None] * (stride * UNIT) + dims[None, :]


@triton.jit
def load_depth(start, offsets, count, left, ROWS: tl.constexpr, DEPTH: tl.constexpr,
               TRANSPOSED: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """A tile (ROWS, DEPTH), zero in dimensions past the `left` last ones.

    Args:
        start: pointer to the tile's first element.
        offsets: of `tile_offsets`.
        EVEN: whether there is no such dimension.
        UPCAST: to float32 at once, because the interpreter has no bfloat16 arithmetic.
    """
    if TRANSPOSED:
        inside = (tl.arange(0, ROWS) < count)[:, None]
        if not EVEN:
            inside = inside & (tl.arange(0, DEPTH) < left)[None, :]
        tile = tl.load(start + offsets, mask=inside, other=0.0)
    elif EVEN:
        tile = tl.load(start + offsets)
    else:
        tile = tl.load(start + offsets, mask=(tl.arange(0, DEPTH) < left)[None, :], other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def products(
    hidden, weight, row, column, tokens, vocabulary, dims, hidden_stride, weight_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    HIDDEN_TRANSPOSED: tl.constexpr, WEIGHT_TRANSPOSED: tl.constexpr,
    HIDDEN_UNIT: tl.constexpr, WEIGHT_UNIT: tl.constexpr, DIM_UNIT: tl.constexpr,
    EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The tile of hidden · weightᵀ that begins at (row, column), in float32.

    `dims` is the number of dimensions in units of DIM_UNIT, as strides are in theirs.
    """
    dim = dims * DIM_UNIT
    row_step = hidden_stride * HIDDEN_UNIT
    column_step = weight_stride * WEIGHT_UNIT
    hidden += row.to(tl.int64) * (1 if HIDDEN_TRANSPOSED else row_step)
    weight += column.to(tl.int64) * (1 if WEIGHT_TRANSPOSED else column_step)
    hidden_offsets = tile_offsets(
        tokens - row, hidden_stride, ROWS, DEPTH, HIDDEN_TRANSPOSED, HIDDEN_UNIT
    )
    weight_offsets = tile_offsets(
        vocabulary - column, weight_stride, COLUMNS, DEPTH, WEIGHT_TRANSPOSED, WEIGHT_UNIT
    )
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, dim, DEPTH):
        left = load_depth(
            hidden, hidden_offsets, tokens - row, dim - first,
            ROWS, DEPTH, HIDDEN_TRANSPOSED, EVEN, UPCAST,
        )  # fmt: skip
        right = load_depth(
            weight, weight_offsets, vocabulary - column, dim - first,
            COLUMNS, DEPTH, WEIGHT_TRANSPOSED, EVEN, UPCAST,
        )  # fmt: skip
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
        hidden += row_step * DEPTH if HIDDEN_TRANSPOSED else DEPTH
        weight += column_step * DEPTH if WEIGHT_TRANSPOSED else DEPTH
    return total


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile; where tensor cores left it, nothing moves."""
    return tl.split(tl.permute(tl.reshape(tile, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))


@triton.jit
def tanh(x):
    """Exact to float32's rounding of 1, which is below the rounding of the logits themselves."""
    decay = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def uncapped(total, bias, columns, vocabulary, logit_scale, BIAS: tl.constexpr):
    """logit_scale · (products + bias)."""
    if BIAS:
        added = tl.load(bias + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)
        total += added[None, :]
    return total * logit_scale
