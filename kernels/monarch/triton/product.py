"""Kernel: the product of every block of features with that block's factor.

    out[t, b, n] = act(Σ_i x[t, b, i] F[b, n, i] + bias[b, n])
    or, of the gradient,  y_grad[t, b, n] · act'(Σ_i x[t, b, i] F[b, n, i] + bias[b, n])

Both products of a Monarch matrix are this one, and so are those of its mirror. Of the first a
column is a pair n = (outer, inner), of output block and rank, and each part has its stride in the
result: so the permutation between the products is where a tile is written.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.monarch.triton.activation import activate, derivative
from ropewalk.kernels.monarch.triton.tiles import product_tile


@triton.jit
def product_kernel(
    x, factor, bias, y_grad, out, bias_parts,
    tokens, columns, depth, rank, blocks,
    x_token, x_block, x_step,
    factor_block, factor_column, factor_step,
    grad_token, grad_block, grad_column,
    out_token, out_block, out_outer, out_inner,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ONE_STEP: tl.constexpr,
    PAIRS: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GRADIENT: tl.constexpr,
    BIAS_GRADIENT: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: tiles of columns, within blocks, within tiles of tokens.

    So those that read the same tokens run at about the same time, and all of a token's features
    are read while they are in the cache; the factors stay there.

    Args:
        x: (tokens, blocks, depth).
        factor: (blocks, columns, depth).
        bias: (blocks, columns), contiguous.
        y_grad: (tokens, blocks, columns), read where GRADIENT.
        out: (tokens, blocks, outer, inner); inner has `rank` elements if PAIRS and else one.
        bias_parts: float32 (tiles of tokens, blocks, columns): sums over each tile's tokens of what
            is written, before it is rounded; where BIAS_GRADIENT.
    """
    program = tl.program_id(0)
    column_tiles = tl.cdiv(columns, COLUMNS)
    column = program % column_tiles * COLUMNS
    block = program // column_tiles % blocks
    row_tile = program // column_tiles // blocks
    row = row_tile * ROWS
    wide_row, wide_block, wide_column = row.to(tl.int64), block.to(tl.int64), column.to(tl.int64)
    total = product_tile(
        x + wide_row * x_token + wide_block * x_block,
        factor + wide_block * factor_block + wide_column * factor_column,
        tokens - row, columns - column, depth,
        x_token, x_step, factor_column, factor_step,
        ROWS, COLUMNS, DEPTH, ONE_STEP, UPCAST, PRECISION,
    )  # fmt: skip
    rows = tl.arange(0, ROWS)
    here = column + tl.arange(0, COLUMNS)
    exists = here < columns
    inside = (rows < tokens - row)[:, None] & exists[None, :]
    if BIAS:
        added = tl.load(bias + wide_block * columns + here, mask=exists, other=0.0)
        total += added.to(tl.float32)[None, :]
    if GRADIENT:
        start = y_grad + wide_row * grad_token + wide_block * grad_block
        places = start + (rows[:, None] * grad_token + here[None, :] * grad_column)
        grad = tl.load(places, mask=inside, other=0.0).to(tl.float32)
        # Tokens that do not exist have a pre-activation too, the bias; their gradient is 0.
        total = grad * derivative(total, ACTIVATION)
        if BIAS_GRADIENT:
            part = bias_parts + (row_tile.to(tl.int64) * blocks + block) * columns + here
            tl.store(part, tl.sum(total, 0), mask=exists)
    else:
        total = activate(total, ACTIVATION)
    start = out + wide_row * out_token + wide_block * out_block
    if PAIRS:
        offsets = (here // rank).to(tl.int64) * out_outer + (here % rank).to(tl.int64) * out_inner
    else:
        offsets = here.to(tl.int64) * out_outer
    places = start + (rows[:, None] * out_token + offsets[None, :])
    tl.store(places, total.to(out.dtype.element_ty), mask=inside)
