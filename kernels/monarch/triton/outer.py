"""Kernel: the outer product of two tensors' blocks, summed over tokens.

    out[b, m, n] = Σ_t left[t, b, m] right[t, b, n]

The gradients of both factors. A part of the tokens is one program's; parts are float32 and are
summed afterwards, always in the same order, so that results repeat bit for bit.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.monarch.triton.tiles import product_tile


@triton.jit
def outer_kernel(
    left, right, out,
    tokens, rows, columns, blocks, part_tokens,
    left_token, left_block, left_row,
    right_token, right_block, right_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: tiles of columns, within tiles of rows, within blocks, within parts of the tokens.

    Args:
        left: (tokens, blocks, rows).
        right: (tokens, blocks, columns).
        out: (parts, blocks, rows, columns), contiguous.
        part_tokens: of a part, a multiple of DEPTH.
    """
    program = tl.program_id(0)
    column_tiles, row_tiles = tl.cdiv(columns, COLUMNS), tl.cdiv(rows, ROWS)
    column = program % column_tiles * COLUMNS
    row = program // column_tiles % row_tiles * ROWS
    place = program // column_tiles // row_tiles  # of part and block
    block = (place % blocks).to(tl.int64)
    first = place // blocks * part_tokens
    wide, wide_row, wide_column = first.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
    total = product_tile(
        left + wide * left_token + block * left_block + wide_row * left_row,
        right + wide * right_token + block * right_block + wide_column * right_column,
        rows - row, columns - column, tl.minimum(tokens - first, part_tokens),
        left_row, left_token, right_column, right_token,
        ROWS, COLUMNS, DEPTH, False, UPCAST, PRECISION,
    )  # fmt: skip
    at_row, at_column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (at_row < rows - row)[:, None] & (at_column < columns - column)[None, :]
    start = out + (place.to(tl.int64) * rows + row) * columns + column
    places = start + (at_row[:, None] * columns + at_column[None, :])
    tl.store(places, total.to(out.dtype.element_ty), mask=inside)
