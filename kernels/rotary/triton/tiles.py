"""One head of a tile of tokens: from memory to pairs in float32, turned, and back.

A tile has ROWS tokens, each a row of `head_dim` elements: `first` and `second` (ROWS, BLOCK_PAIRS)
hold the two elements of every pair, `rest` (ROWS, BLOCK_REST) what is not rotated. Blocks are
powers of two, so columns past PAIRS and REST are masked and hold zeros, which add nothing to sums.

Loads are converted to float32 at once: Triton's interpreter computes bfloat16 wrongly. Interleaved
pairs are read as one contiguous row and split in registers, because two reads of every second
element would touch each cache line twice.
"""

import triton
import triton.language as tl


@triton.jit
def row_offsets(row, seq, stride_batch, stride_seq, UNIT: tl.constexpr):
    """Offsets of rows counted over (batch, seq); 64-bit, as tensors may exceed 2^31 elements."""
    batch = row // seq
    token = row - batch * seq
    return (batch.to(tl.int64) * stride_batch + token.to(tl.int64) * stride_seq) * UNIT


@triton.jit
def load_angles(
    cos,
    sin,
    row,
    valid,
    seq,
    table_batch,
    PAIRS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Cosines and sines of a tile, float32 (ROWS, BLOCK_PAIRS), from dense tables.

    `table_batch` is the number of rows between the tables of two sequences, 0 if they share one.
    """
    batch = row // seq
    line = batch * table_batch + (row - batch * seq)
    pair = tl.arange(0, BLOCK_PAIRS)
    inside = valid[:, None] & (pair < PAIRS)[None, :]
    at = line.to(tl.int64)[:, None] * PAIRS + pair[None, :]
    cosine = tl.load(cos + at, mask=inside, other=0.0)
    sine = tl.load(sin + at, mask=inside, other=0.0)
    return cosine, -sine if INVERSE else sine


@triton.jit
def load_pairs(
    x,
    offsets,
    valid,
    stride,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Both elements of every pair, float32."""
    if INTERLEAVED:
        column = tl.arange(0, 2 * BLOCK_PAIRS)
        inside = valid[:, None] & (column < 2 * PAIRS)[None, :]
        at = offsets[:, None] + column[None, :] * stride
        both = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (ROWS, BLOCK_PAIRS, 2)))
    else:
        pair = tl.arange(0, BLOCK_PAIRS)
        inside = valid[:, None] & (pair < PAIRS)[None, :]
        at = offsets[:, None] + pair[None, :] * stride
        first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + (at + PAIRS * stride), mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def store_pairs(
    y,
    offsets,
    valid,
    stride,
    first,
    second,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Writes both elements of every pair, rounded to the dtype of `y`."""
    dtype: tl.constexpr = y.dtype.element_ty
    if INTERLEAVED:
        column = tl.arange(0, 2 * BLOCK_PAIRS)
        inside = valid[:, None] & (column < 2 * PAIRS)[None, :]
        at = offsets[:, None] + column[None, :] * stride
        both = tl.reshape(tl.join(first, second), (ROWS, 2 * BLOCK_PAIRS))
        tl.store(y + at, both.to(dtype), mask=inside)
    else:
        pair = tl.arange(0, BLOCK_PAIRS)
        inside = valid[:, None] & (pair < PAIRS)[None, :]
        at = offsets[:, None] + pair[None, :] * stride
        tl.store(y + at, first.to(dtype), mask=inside)
        tl.store(y + (at + PAIRS * stride), second.to(dtype), mask=inside)


@triton.jit
def load_rest(
    x, offsets, valid, stride, PAIRS: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr
):
    """The elements that are not rotated, float32."""
    column = tl.arange(0, BLOCK_REST)
    inside = valid[:, None] & (column < REST)[None, :]
    at = offsets[:, None] + (2 * PAIRS + column)[None, :] * stride
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_rest(
    y,
    offsets,
    valid,
    stride,
    rest,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """Writes the elements that are not rotated."""
    column = tl.arange(0, BLOCK_REST)
    inside = valid[:, None] & (column < REST)[None, :]
    at = offsets[:, None] + (2 * PAIRS + column)[None, :] * stride
    tl.store(y + at, rest.to(y.dtype.element_ty), mask=inside)


@triton.jit
def load_weights(
    weight,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """The norm's weights in the order of a tile: first, second and rest, each (1, block)."""
    pair = tl.arange(0, BLOCK_PAIRS)
    step = 2 if INTERLEAVED else 1
    apart = 1 if INTERLEAVED else PAIRS
    first = tl.load(weight + pair * step, mask=pair < PAIRS, other=0.0)
    second = tl.load(weight + apart + pair * step, mask=pair < PAIRS, other=0.0)
    column = tl.arange(0, BLOCK_REST)
    rest = tl.load(weight + 2 * PAIRS + column, mask=column < REST, other=0.0)
    return (
        first.to(tl.float32)[None, :],
        second.to(tl.float32)[None, :],
        rest.to(tl.float32)[None, :],
    )


@triton.jit
def store_weights(
    target,
    first,
    second,
    rest,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Writes head_dim values that are in the order of a tile; the opposite of `load_weights`."""
    pair = tl.arange(0, BLOCK_PAIRS)
    step = 2 if INTERLEAVED else 1
    apart = 1 if INTERLEAVED else PAIRS
    tl.store(target + pair * step, first, mask=pair < PAIRS)
    tl.store(target + apart + pair * step, second, mask=pair < PAIRS)
    column = tl.arange(0, BLOCK_REST)
    tl.store(target + 2 * PAIRS + column, rest, mask=column < REST)
