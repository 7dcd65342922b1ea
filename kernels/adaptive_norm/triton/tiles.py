"""One token's row of a stream, from memory to float32 and back.

A row lies in two blocks of columns, [0, MAIN) and, if DIM is no power of two, [MAIN, MAIN + REST),
of which those past DIM hold zeros. Every function here has one block, FIRST and BLOCK.

What is of a token alone is a number and not a block of one: such a block has a layout, to which the
compiler would bring whole rows, through shared memory. Loads are converted to float32 before
anything is computed: Triton's interpreter computes bfloat16 wrongly.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    x, row, token, stop, batch_step, token_step, step,
    FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A block in the dtype of x; zeros from the token `stop` on and past DIM."""
    column = FIRST + tl.arange(0, BLOCK)
    start = x + (row * batch_step + token * token_step)
    return tl.load(start + column * step, mask=(column < DIM) & (token < stop), other=0.0)


@triton.jit
def store_tile(y, line, values, FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr):
    """Rounds a block to the dtype of y and writes it to one of the dense rows of y."""
    column = FIRST + tl.arange(0, BLOCK)
    tl.store(y + line * DIM + column, values.to(y.dtype.element_ty), mask=column < DIM)


@triton.jit
def load_row(
    x, sample, row_step, step, FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr
):
    """A block of one sample's row, float32; zeros past DIM."""
    column = FIRST + tl.arange(0, BLOCK)
    start = x + sample * row_step
    return tl.load(start + column * step, mask=column < DIM, other=0.0).to(tl.float32)


@triton.jit
def load_factor(
    scale, weight, sample, row_step, step,
    FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A block of weight · (1 + scale)."""
    factor = tl.full((BLOCK,), 1.0, tl.float32)
    if scale is not None:
        factor += load_row(scale, sample, row_step, step, FIRST, BLOCK, DIM)
    if weight is not None:
        factor *= load_row(weight, sample, 0, 1, FIRST, BLOCK, DIM)
    return factor


@triton.jit
def load_offset(
    shift, scale, bias, sample, shift_row, shift_step, scale_row, scale_step,
    FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A block of bias · (1 + scale) + shift."""
    offset = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        offset += load_factor(scale, bias, sample, scale_row, scale_step, FIRST, BLOCK, DIM)
    if shift is not None:
        offset += load_row(shift, sample, shift_row, shift_step, FIRST, BLOCK, DIM)
    return offset


@triton.jit
def fold(x, BLOCK: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Adds up what each thread has: a block to (LANES,).

    So that both blocks of a row, and two sums of it, cost one exchange between threads.
    """
    RUN: tl.constexpr = VECTOR if VECTOR * LANES <= BLOCK else BLOCK // LANES
    runs = tl.reshape(x, (BLOCK // (LANES * RUN), LANES, RUN))
    return tl.sum(tl.sum(runs, axis=2), axis=0)


@triton.jit
def add_pairs(a, b, c, d):
    """Two sums at once."""
    return a + c, b + d
