"""Kernel: both products in one, what lies between them in registers.

    for each input block k:   h = x_k R_kᵀ  for the ranks of some output blocks,   y += h L_kᵀ

A program has a tile of tokens and a group of GROUP neighbouring output blocks. The ranks of all
blocks of a group are the columns of one product, which tensor cores want at least 16 wide, and the
factor of the second product holds zeros where column and rank belong to different blocks. With
more columns in a group than a tile has, each tile of them computes h again.

Each group reads all of x, from the cache: worth it where the groups are few; see form.py.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.monarch.triton.activation import activate
from ropewalk.kernels.monarch.triton.tiles import product_tile


@triton.jit
def fused_kernel(
    x, right, left, bias, y,
    tokens, input_blocks, input_size, output_blocks, output_size, rank, group,
    x_token, x_block, x_step,
    right_block, right_row, right_step,
    left_block, left_row, left_step,
    y_token, y_block,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, DEPTH: tl.constexpr,
    ONE_STEP: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: tiles of a group's columns, within groups, within tiles of tokens.

    Args:
        x: (tokens, input_blocks, input_size).
        right: (input_blocks, output_blocks · rank, input_size).
        left: (output_blocks, output_size, input_blocks · rank).
        bias: (output_blocks · output_size,), contiguous.
        y: (tokens, output_blocks, output_size); the last dimension is contiguous.
        group: output blocks of a group; one where a block has more columns than a tile.
        RANKS: at least group · rank.
    """
    program = tl.program_id(0)
    column_tiles = tl.cdiv(group * output_size, COLUMNS)
    groups = tl.cdiv(output_blocks, group)
    first_column = program % column_tiles * COLUMNS
    first_block = program // column_tiles % groups * group
    row = program // column_tiles // groups * ROWS
    wide_row, wide_block = row.to(tl.int64), first_block.to(tl.int64)
    rows, ranks = tl.arange(0, ROWS), tl.arange(0, RANKS)
    columns = first_column + tl.arange(0, COLUMNS)
    here = tl.minimum(output_blocks - first_block, group)  # blocks that exist
    column_block, column_within = columns // output_size, columns % output_size
    exists = column_block < here
    of_same = (column_block[:, None] == (ranks // rank)[None, :]) & exists[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    x += wide_row * x_token
    right += wide_block * rank * right_row
    left_rows = left + wide_block * left_block + (
        column_block.to(tl.int64) * left_block + column_within * left_row
    )  # fmt: skip
    for k in range(0, input_blocks):
        hidden = product_tile(
            x, right, tokens - row, here * rank, input_size,
            x_token, x_step, right_row, right_step,
            ROWS, RANKS, DEPTH, ONE_STEP, UPCAST, PRECISION,
        )  # fmt: skip
        steps = k * rank + ranks % rank
        factor = tl.load(
            left_rows[:, None] + steps[None, :] * left_step, mask=of_same, other=0.0
        )  # fmt: skip
        # Rounded as the two products' hidden values are, which lie in memory.
        hidden = hidden.to(x.dtype.element_ty)
        if UPCAST:
            hidden, factor = hidden.to(tl.float32), factor.to(tl.float32)
        total = tl.dot(hidden, tl.trans(factor), total, input_precision=PRECISION)
        x += x_block
        right += right_block
    if BIAS:
        added = tl.load(bias + wide_block * output_size + columns, mask=exists, other=0.0)
        total += added.to(tl.float32)[None, :]
    total = activate(total, ACTIVATION)
    offsets = column_block.to(tl.int64) * y_block + column_within
    places = y + wide_row * y_token + wide_block * y_block
    places += rows[:, None] * y_token + offsets[None, :]
    inside = (rows < tokens - row)[:, None] & exists[None, :]
    tl.store(places, total.to(y.dtype.element_ty), mask=inside)
