"""Kernel of the backward: the gradient of a tile of logits, rounded once.

    G = (g_logsumexp · exp(z − logsumexp) + g_target · [v = y] + g_sum · s_v) · (1 − (z/c)²) · scale

The sum is formed in float32, where p − 1 keeps its digits. Ignored tokens have rows of zeros. Tiles
that the map does not mark are neither computed nor written.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_cross_entropy.triton.tiles import (
    IGNORED,
    halves,
    products,
    tanh,
    tile_of_program,
    uncapped,
)


@triton.jit
def write_gradient(
    total, rows, here, target, lse, factor, target_factor, sum_factor,
    bias, sum_weights, gradient, bias_parts, column, columns_start, vocabulary,
    gradient_stride, logit_scale, softcap,
    COLUMNS: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr, SUM: tl.constexpr,
    WRITE: tl.constexpr, BIAS_GRADIENT: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile from its products, and its sums over the tokens."""
    columns = column + tl.arange(0, COLUMNS)
    there = columns < vocabulary
    logits = uncapped(total, bias, columns, vocabulary, logit_scale, BIAS)
    if CAP:
        relative = tanh(logits / softcap)
        logits = softcap * relative
    grad = factor[:, None] * tl.exp(logits - lse[:, None])
    if SUM:
        share = tl.load(sum_weights + columns, mask=there, other=0.0)
        grad += sum_factor[:, None] * share[None, :]
    at_target = (columns + columns_start)[None, :] == target[:, None]
    grad = tl.where(at_target, grad + target_factor[:, None], grad)
    if CAP:
        grad = grad * (1.0 - relative * relative)
    if BIAS_GRADIENT:
        # Rows past the last token repeat it, with factors of 0.
        tl.store(bias_parts + columns, tl.sum(grad, axis=0), mask=there)
    if WRITE:
        place = gradient + rows.to(tl.int64)[:, None] * gradient_stride + columns[None, :]
        # What follows the last column is no garbage, because live tiles are read as a whole. The
        # branch is there in any case: it keeps the assembler from computing all parts at a time.
        if column + COLUMNS > vocabulary:
            tl.store(place, 0.0, mask=here[:, None] & (columns >= vocabulary)[None, :])
        inside = here[:, None] & there[None, :]
        tl.store(place, grad.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def write_half(
    total, rows, here, target, lse, factor, target_factor, sum_factor,
    bias, sum_weights, gradient, bias_parts, column, columns_start, vocabulary,
    gradient_stride, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr, CAP: tl.constexpr,
    SUM: tl.constexpr, WRITE: tl.constexpr, BIAS_GRADIENT: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """`write_gradient`, with SPLIT of one half after the other."""
    if SPLIT:
        left, right = halves(total, ROWS, COLUMNS)
        half: tl.constexpr = COLUMNS // 2
        write_gradient(
            left, rows, here, target, lse, factor, target_factor, sum_factor,
            bias, sum_weights, gradient, bias_parts, column, columns_start, vocabulary,
            gradient_stride, logit_scale, softcap,
            half, BIAS, CAP, SUM, WRITE, BIAS_GRADIENT,
        )  # fmt: skip
        write_gradient(
            right, rows, here, target, lse, factor, target_factor, sum_factor,
            bias, sum_weights, gradient, bias_parts, column + half, columns_start, vocabulary,
            gradient_stride, logit_scale, softcap,
            half, BIAS, CAP, SUM, WRITE, BIAS_GRADIENT,
        )  # fmt: skip
    else:
        write_gradient(
            total, rows, here, target, lse, factor, target_factor, sum_factor,
            bias, sum_weights, gradient, bias_parts, column, columns_start, vocabulary,
            gradient_stride, logit_scale, softcap,
            COLUMNS, BIAS, CAP, SUM, WRITE, BIAS_GRADIENT,
        )  # fmt: skip


@triton.jit
def gradient_kernel(
    hidden, weight, targets, bias, sum_weights, logsumexp, logsumexp_grad, target_grad, sum_grad,
    scale, live, gradient, bias_parts,
    tokens, columns_start, vocabulary, dims, hidden_stride, weight_stride, gradient_stride,
    map_tiles, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    HIDDEN_TRANSPOSED: tl.constexpr, WEIGHT_TRANSPOSED: tl.constexpr,
    HIDDEN_UNIT: tl.constexpr, WEIGHT_UNIT: tl.constexpr, DIM_UNIT: tl.constexpr,
    EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, SUM: tl.constexpr, SCALED: tl.constexpr,
    SKIP: tl.constexpr, WRITE: tl.constexpr, BIAS_GRADIENT: tl.constexpr, PARTS: tl.constexpr,
    FILTER_TOKENS: tl.constexpr, FILTER_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of tokens · tiles of columns, in the order of `tile_of_program`.

    With SKIP there are programs for whole tiles of the map, past the last column too.

    Args:
        weight, bias, sum_weights: from the first column of this chunk on.
        targets, logsumexp, live: from the first token of this chunk on.
        scale: pointer to what everything that is written is multiplied with, if SCALED.
        live: the map of this chunk's tokens, all columns.
        gradient: (tokens, vocabulary) of this chunk, in rows that have room for whole tiles.
        bias_parts: float32 (blocks of tokens, vocabulary): the sums over each block's tokens.
        columns_start: of this chunk; `vocabulary` is the number of its columns.
        PARTS: of a tile that are finished one after the other, which takes fewer registers.
    """
    tiles = tl.cdiv(vocabulary, COLUMNS)
    if SKIP:
        tiles = tl.cdiv(vocabulary, FILTER_COLUMNS) * (FILTER_COLUMNS // COLUMNS)
    block, tile = tile_of_program(tl.program_id(0), tl.cdiv(tokens, ROWS), tiles, GROUP)
    column = tile * COLUMNS
    if SKIP:
        live += (block * ROWS // FILTER_TOKENS).to(tl.int64) * map_tiles
        if tl.load(live + (columns_start + column) // FILTER_COLUMNS) == 0:
            return
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < tokens
    target = tl.load(targets + rows, mask=here, other=IGNORED).to(tl.int32)
    if BIAS_GRADIENT:
        bias_parts += block.to(tl.int64) * vocabulary
    if (tl.max(target, axis=0) == IGNORED) | (column >= vocabulary):
        columns = column + tl.arange(0, COLUMNS)
        if WRITE:
            place = gradient + rows.to(tl.int64)[:, None] * gradient_stride + columns[None, :]
            zeros = tl.zeros([ROWS, COLUMNS], gradient.dtype.element_ty)
            tl.store(place, zeros, mask=here[:, None])
        if BIAS_GRADIENT:
            nothing = tl.zeros([COLUMNS], tl.float32)
            tl.store(bias_parts + columns, nothing, mask=columns < vocabulary)
        return
    total = products(
        hidden, weight, block * ROWS, column, tokens, vocabulary, dims, hidden_stride,
        weight_stride, ROWS, COLUMNS, DEPTH, HIDDEN_TRANSPOSED, WEIGHT_TRANSPOSED,
        HIDDEN_UNIT, WEIGHT_UNIT, DIM_UNIT, EVEN, UPCAST, PRECISION,
    )  # fmt: skip
    # Where a token is ignored its factors are 0 and its logsumexp leaves no room for an overflow.
    counts = target != IGNORED
    lse = tl.load(logsumexp + rows, mask=counts, other=float("inf"))
    # A gradient is linear in them, and so is scaled with them.
    unit = logit_scale
    if SCALED:
        unit *= tl.load(scale)
    factor = tl.load(logsumexp_grad + rows, mask=counts, other=0.0) * unit
    target_factor = tl.load(target_grad + rows, mask=counts, other=0.0) * unit
    sum_factor = factor
    if SUM:
        sum_factor = tl.load(sum_grad + rows, mask=counts, other=0.0) * unit
    if PARTS > 1:
        left, right = halves(total, ROWS, COLUMNS)
        half: tl.constexpr = COLUMNS // 2
        write_half(
            left, rows, here, target, lse, factor, target_factor, sum_factor,
            bias, sum_weights, gradient, bias_parts, column, columns_start, vocabulary,
            gradient_stride, logit_scale, softcap,
            ROWS, half, BIAS, CAP, SUM, WRITE, BIAS_GRADIENT, PARTS > 2,
        )  # fmt: skip
        write_half(
            right, rows, here, target, lse, factor, target_factor, sum_factor,
            bias, sum_weights, gradient, bias_parts, column + half, columns_start, vocabulary,
            gradient_stride, logit_scale, softcap,
            ROWS, half, BIAS, CAP, SUM, WRITE, BIAS_GRADIENT, PARTS > 2,
        )  # fmt: skip
    else:
        write_gradient(
            total, rows, here, target, lse, factor, target_factor, sum_factor,
            bias, sum_weights, gradient, bias_parts, column, columns_start, vocabulary,
            gradient_stride, logit_scale, softcap,
            COLUMNS, BIAS, CAP, SUM, WRITE, BIAS_GRADIENT,
        )  # fmt: skip
