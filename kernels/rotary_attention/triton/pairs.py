"""Where a program works: its queries and keys, their positions, and the pairs that a branch shows.

Positions are either the defaults, computed from the index (a row's or packed sequence's last query
sits at its last key), or loaded. *Blocks* are positions divided by the rule's unit, rounded down;
negative positions occur only for queries before the first key, which see nothing, so their block
does not matter and is 0.
"""

import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.ranges import NO_EDGE


@triton.jit
def load_rows(array, rows, stride, dims, there, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
              CHECKED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Tile (rows, dims) of a matrix whose last dimension is contiguous; zeros outside.

    Args:
        array: pointer to the matrix.
        rows: vector of row indices, `stride` between rows.
        dims: 0 … BLOCK − 1, of which WIDTH exist.
        there: which rows exist; looked at if CHECKED.
        UPCAST: to float32 at once, because the interpreter has no bfloat16 arithmetic.
    """
    at = array + rows.to(tl.int64)[:, None] * stride + dims[None, :]
    if CHECKED:
        tile = tl.load(at, mask=there[:, None] & (dims < WIDTH)[None, :], other=0.0)
    elif WIDTH == BLOCK:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(dims < WIDTH)[None, :], other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def load_tile(array, first, stride, dims, there, WIDTH: tl.constexpr, ROWS: tl.constexpr,
              BLOCK: tl.constexpr, CHECKED: tl.constexpr, ALIGNED: tl.constexpr,
              UPCAST: tl.constexpr):  # fmt: skip
    """As `load_rows`, for ROWS consecutive rows from `first` on.

    The offsets within a tile stay the same from one to the next and fit 32 bits, which saves
    registers where they are short. ALIGNED says that every row begins at a multiple of 16 bytes:
    the compiler itself sees no more than whether a stride is a multiple of 16 elements, and without
    either it loads element by element (heads of 72 or 24 dimensions).
    """
    at = array + first.to(tl.int64) * stride
    at += tl.arange(0, ROWS)[:, None] * stride + dims[None, :]
    if ALIGNED:
        at = tl.multiple_of(at, (1, 16))
    if CHECKED:
        tile = tl.load(at, mask=there[:, None] & (dims < WIDTH)[None, :], other=0.0)
    elif WIDTH == BLOCK:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(dims < WIDTH)[None, :], other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def valid_length(key_lengths, batch, keys):
    """Valid keys of a row, 0 … keys; numbers that 32 bits cannot hold do not wrap."""
    length = tl.load(key_lengths + batch).to(tl.int64)
    return tl.minimum(tl.maximum(length, 0), keys).to(tl.int32)


@triton.jit
def extent(tiles, cu_queries, cu_keys, key_lengths, batch, block_start, queries, keys,
           PACKED: tl.constexpr, LENGTHS: tl.constexpr):  # fmt: skip
    """What a program has before it: (block_start, query_start, query_count, key_start, key_count,
    valid_keys). A row of the batch, or one of the packed sequences, whose blocks `tiles` lists.
    """
    query_start = 0
    key_start = 0
    query_count = queries
    key_count = keys
    if PACKED:
        sequence = tl.load(tiles + 2 * tl.program_id(0))
        block_start = tl.load(tiles + 2 * tl.program_id(0) + 1)
        # There are more programs than blocks: the count of blocks is not known to the host.
        real = sequence >= 0
        sequence = tl.maximum(sequence, 0)
        query_first = tl.load(cu_queries + sequence)
        key_first = tl.load(cu_keys + sequence)
        query_count = tl.where(real, tl.load(cu_queries + sequence + 1) - query_first, 0)
        key_count = tl.where(real, tl.load(cu_keys + sequence + 1) - key_first, 0)
        query_start = query_first.to(tl.int64)
        key_start = key_first.to(tl.int64)
    valid_keys = key_count
    if LENGTHS:
        valid_keys = valid_length(key_lengths, batch, keys)
    return block_start, query_start, query_count, key_start, key_count, valid_keys


@triton.jit
def keys_of_branch(
    branch, key0, key1, key2, batch, kv_head, key_start,
    key0_batch, key0_head, key0_row, key1_batch, key1_head, key1_row,
    key2_batch, key2_head, key2_row, BRANCHES: tl.constexpr,
):  # fmt: skip
    """Pointer to a branch's first key, and the stride between its keys.

    The branch is a number at run time and not a constant, so that there is one loop for all
    branches and no more code or registers than for one.
    """
    key = key0 + batch * key0_batch + kv_head * key0_head + key_start * key0_row
    row = key0_row
    if BRANCHES > 1:
        other = key1 + batch * key1_batch + kv_head * key1_head + key_start * key1_row
        key = tl.where(branch == 1, other, key)
        row = tl.where(branch == 1, key1_row, row)
    if BRANCHES > 2:
        other = key2 + batch * key2_batch + kv_head * key2_head + key_start * key2_row
        key = tl.where(branch == 2, other, key)
        row = tl.where(branch == 2, key2_row, row)
    return key, row


@triton.jit
def edges_of_branch(branch, edge1, edge2, BRANCHES: tl.constexpr):
    """(least block distance of a branch, one past the greatest)."""
    lower = tl.where(branch == 0, -NO_EDGE, tl.where(branch == 1, edge1, edge2))
    upper = tl.where(branch == 0, edge1, edge2)
    return lower, tl.where(branch == BRANCHES - 1, NO_EDGE, upper)


@triton.jit
def places(offset, shift, length, positions, blocks, unit, BY_INDEX: tl.constexpr,
           UNITS: tl.constexpr):  # fmt: skip
    """Positions and blocks at a vector of offsets; offsets past the end repeat the last.

    Args:
        offset: counted from the first of the row or sequence.
        shift: position of offset 0 where positions are the defaults.
        length: of the row or sequence.
        positions: pointer to the first position, `blocks` to the first block.
        unit: tokens in a block.
        UNITS: whether a block is more than one token.
    """
    offset = tl.minimum(offset, tl.maximum(length - 1, 0))
    if BY_INDEX:
        position = offset + shift
        block = tl.maximum(position, 0) // unit if UNITS else position
    else:
        position = tl.load(positions + offset)
        block = tl.load(blocks + offset) if UNITS else position
    return position, block


@triton.jit
def visible_pairs(
    query, key, query_block, key_block, lower, upper, window,
    LOWER: tl.constexpr, UPPER: tl.constexpr, CAUSAL: tl.constexpr, SLIDING: tl.constexpr,
):  # fmt: skip
    """Whether a branch shows the pairs of positions `query` and `key`, which broadcast."""
    distance = query - key
    shown = distance == distance
    if CAUSAL:
        shown = shown & (distance >= 0)
    if SLIDING:
        shown = shown & (distance < window)
        if not CAUSAL:
            shown = shown & (distance > -window)
    if LOWER:
        shown = shown & (query_block - key_block >= lower)
    if UPPER:
        shown = shown & (query_block - key_block < upper)
    return shown


@triton.jit
def add_mask(scores, mask, rows, columns, stride_row, stride_column, within,
             BOOLEAN: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """Scores (natural units) after a boolean (as bytes) or additive attention mask.

    Args:
        scores: tile of scores.
        mask: pointer to the mask of this row of the batch and head.
        rows: query indices, `columns` key indices, broadcasting against each other.
        within: which pairs exist.
        LEAST: an additive value at or below this hides, as −∞ does.
    """
    at = mask + rows.to(tl.int64) * stride_row + columns.to(tl.int64) * stride_column
    if BOOLEAN:
        shown = tl.load(at, mask=within, other=0) != 0
        return tl.where(shown, scores, float("-inf"))
    bias = tl.load(at, mask=within, other=float("-inf")).to(tl.float32)
    return tl.where(bias > LEAST, scores + bias, float("-inf"))


@triton.jit
def cap_scores(scores, cap):
    """Cap · tanh(scores / cap); the exponential form keeps full relative accuracy near 0 only to
    float32's rounding of 1, which is below the rounding of the scores themselves.
    """
    scaled = scores / cap
    decay = tl.exp(-2.0 * tl.abs(scaled))
    magnitude = (1.0 - decay) / (1.0 + decay)
    return cap * tl.where(scaled < 0, -magnitude, magnitude)
