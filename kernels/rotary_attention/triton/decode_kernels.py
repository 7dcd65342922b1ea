"""Decoding: a few queries against a long unrotated cache, its keys split over the whole chip.

    o_i = Σ_s 2^(m_s − m) o_is / Σ_s 2^(m_s − m),   m_s the logsumexp of split s

One program serves the queries of all heads that share a key, so that the cache is read once, and
walks one share of the keys: through the far branch, then the nearer ones (ranges.py). A second
kernel merges the shares (Flash-Decoding, Dao, Haziza, Massa and Sizov 2023). Where lengths differ,
every row is shared out by its own.

The time is that of reading the cache. So keys are rotated in registers right after the load and
never written, and only in branches that turn them: under ReRoPE the far keys go into the product
as they lie in the cache, and only the last `window` meet a sine.
"""

# Triton reads a kernel's tuples, whose types a checker cannot infer.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.decode_tiles import aligned, load_query, tile_scores
from ropewalk.kernels.rotary_attention.triton.pairs import (
    add_mask,
    cap_scores,
    load_tile,
    places,
    valid_length,
    visible_pairs,
)
from ropewalk.kernels.rotary_attention.triton.ranges import keys_of_queries, masked_tile

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def attend_tiles(
    accumulator, total, maximum, query_a, query_b, query_rest, key, value, mask,
    key_angles, frequencies, index_of_query, here, place, block, length,
    key_positions, key_blocks, key_row, value_row, mask_row, mask_column,
    start, full_start, full_stop, count, lower, upper, unit, window, scale, cap, least,
    MASKED: tl.constexpr, TURNED: tl.constexpr, LOWER: tl.constexpr, UPPER: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr, PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, SLIDING: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr,
    BY_INDEX: tl.constexpr, UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the full tiles of a branch, or its masked ones, to the running softmax."""
    value_dims = tl.arange(0, VALUE_BLOCK)
    for index in range(0, count):
        if MASKED:
            column = masked_tile(index, start, full_start, full_stop, COLUMNS)
        else:
            column = full_start + index * COLUMNS
        columns = column + tl.arange(0, COLUMNS)
        there = columns < length
        scores = tile_scores(
            query_a, query_b, query_rest, key, key_angles, frequencies, column, key_row, there,
            TURNED, MASKED, HEAD_DIM, HEAD_BLOCK, PAIRS, PAIR_BLOCK, REST_BLOCK, COLUMNS,
            INTERLEAVED, UPCAST, PRECISION,
        )  # fmt: skip
        if CAP or MASK:
            scores = scores * scale
            if CAP:
                scores = cap_scores(scores, cap)
            if MASK:
                scores = add_mask(
                    scores, mask, index_of_query[:, None], columns[None, :], mask_row, mask_column,
                    here[:, None] & there[None, :], MASK == 1, least,
                )  # fmt: skip
            scores = scores * LOG2_E
        else:
            scores = scores * (scale * LOG2_E)
        if MASKED:
            key_place, key_block = places(
                columns, 0, length, key_positions, key_blocks, unit, BY_INDEX, UNITS
            )
            shown = visible_pairs(
                place[:, None], key_place[None, :], block[:, None], key_block[None, :],
                lower, upper, window, LOWER, UPPER, CAUSAL, SLIDING,
            )  # fmt: skip
            scores = tl.where(shown & there[None, :], scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, 1))
        finite = higher
        if MASKED or MASK:
            # A row may have seen nothing yet.
            finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - finite[:, None])
        keep = tl.exp2(maximum - finite)
        total = total * keep + tl.sum(weights, 1)
        accumulator = accumulator * keep[:, None]
        maximum = higher
        value_tile = load_tile(
            value, column, value_row, value_dims, there,
            VALUE_DIM, COLUMNS, VALUE_BLOCK, MASKED, False, UPCAST,
        )  # fmt: skip
        accumulator = tl.dot(
            weights.to(value_tile.dtype), value_tile, accumulator, input_precision=PRECISION
        )
    return accumulator, total, maximum


@triton.jit
def decode_kernel(
    query, key, value, partial, partial_lse, mask, key_lengths,
    key_angles, inverse_frequencies, query_positions, key_positions, query_blocks, key_blocks,
    ordered,
    query_branch, query_batch, query_head, query_row, key_batch, key_head, key_row,
    value_batch, value_head, value_row, mask_batch, mask_head, mask_row, mask_column,
    angle_branch, angle_batch, query_places, key_places,
    heads, groups, queries, keys, edge1, edge2, unit, window, steps, scale, cap, least,
    BRANCHES: tl.constexpr, RAW: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr, PAIRS: tl.constexpr,
    PAIR_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, SLIDING: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr,
    LENGTHS: tl.constexpr, BY_INDEX: tl.constexpr, UNITS: tl.constexpr,
    STRIDE_UNIT: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of rows, splits, batch · kv_heads); a row is a query of one of the heads.

    Besides `geometry.Geometry`:
        query: at the positions of every branch; `key` unrotated.
        partial: float32 (splits, batch, heads, query, value_dim), `partial_lse` in base 2 without
            the last dimension. An empty split writes only the latter.
        key_angles: positions of the keys in every branch; read only in branches that turn keys.
        RAW: a bit for each branch that does not turn its keys.
        STRIDE_UNIT: divides all strides of keys and values.
    """
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    kv_heads = heads // groups
    batch = tl.program_id(2) // kv_heads
    kv_head = tl.program_id(2) % kv_heads
    length = keys
    if LENGTHS:
        length = valid_length(key_lengths, batch, keys)

    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < groups * queries
    head = kv_head * groups + tl.minimum(rows // queries, groups - 1)
    index_of_query = rows % queries
    if not BY_INDEX:
        query_positions += batch * query_places
        key_positions += batch * key_places
        if UNITS:
            query_blocks += batch * query_places
            key_blocks += batch * key_places
    blocks = key_blocks if UNITS else key_positions
    place, block = places(
        index_of_query, length - queries, queries, query_positions, query_blocks, unit,
        BY_INDEX, UNITS,
    )  # fmt: skip
    first = tl.min(place, 0)
    last = tl.max(place, 0)
    first_block = tl.min(block, 0)
    last_block = tl.max(block, 0)

    # A head of 72 elements is no multiple of 16, which is all that a launch finds out by itself.
    key_batch = aligned(key_batch, STRIDE_UNIT)
    key_head = aligned(key_head, STRIDE_UNIT)
    key_row = aligned(key_row, STRIDE_UNIT)
    value_batch = aligned(value_batch, STRIDE_UNIT)
    value_head = aligned(value_head, STRIDE_UNIT)
    value_row = aligned(value_row, STRIDE_UNIT)
    wide = batch.to(tl.int64)
    key += wide * key_batch + kv_head.to(tl.int64) * key_head
    value += wide * value_batch + kv_head.to(tl.int64) * value_head
    key_angles += wide * angle_batch
    query += wide * query_batch
    query_at = head.to(tl.int64) * query_head + index_of_query * query_row
    if MASK:
        mask += wide * mask_batch + head.to(tl.int64)[:, None] * mask_head

    # The keys from the first to the last that any branch shows are shared out in whole tiles.
    start0, full_start0, full_stop0, stop0 = keys_of_queries(
        first, last, first_block, last_block, length, edge1, edge1, window, unit,
        key_positions, blocks, ordered, steps,
        False, BRANCHES > 1, CAUSAL, SLIDING, BY_INDEX, COLUMNS,
    )  # fmt: skip
    begin = start0
    end = stop0
    if BRANCHES > 1:
        start1, full_start1, full_stop1, stop1 = keys_of_queries(
            first, last, first_block, last_block, length, edge1, edge2, window, unit,
            key_positions, blocks, ordered, steps,
            True, BRANCHES > 2, CAUSAL, SLIDING, BY_INDEX, COLUMNS,
        )  # fmt: skip
        begin = tl.minimum(begin, start1)
        end = tl.maximum(end, stop1)
    if BRANCHES > 2:
        start2, full_start2, full_stop2, stop2 = keys_of_queries(
            first, last, first_block, last_block, length, edge2, edge2, window, unit,
            key_positions, blocks, ordered, steps,
            True, False, CAUSAL, SLIDING, BY_INDEX, COLUMNS,
        )  # fmt: skip
        begin = tl.minimum(begin, start2)
        end = tl.maximum(end, stop2)
    tiles = tl.maximum(end - begin, 0) // COLUMNS
    end = begin + tiles * (split + 1) // splits * COLUMNS
    begin = begin + tiles * split // splits * COLUMNS

    pairs = tl.arange(0, PAIR_BLOCK)
    frequencies = tl.load(inverse_frequencies + pairs, mask=pairs < PAIRS, other=0.0)
    accumulator = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    # From the farthest branch to the nearest, and in each the full tiles before the masked ones.
    for branch in tl.static_range(BRANCHES - 1, -1, -1):
        start, full_start, full_stop, stop = start0, full_start0, full_stop0, stop0
        if branch == 1:
            start, full_start, full_stop, stop = start1, full_start1, full_stop1, stop1
        elif branch == 2:
            start, full_start, full_stop, stop = start2, full_start2, full_stop2, stop2
        start = tl.minimum(tl.maximum(start, begin), end)
        full_start = tl.minimum(tl.maximum(full_start, begin), end)
        full_stop = tl.minimum(tl.maximum(full_stop, begin), end)
        stop = tl.minimum(tl.maximum(stop, begin), end)
        query_a, query_b, query_rest = load_query(
            query + branch * query_branch, query_at, here, (RAW // 2**branch) % 2 == 0,
            HEAD_DIM, HEAD_BLOCK, PAIRS, PAIR_BLOCK, REST_BLOCK, INTERLEAVED, UPCAST,
        )  # fmt: skip
        if MASK:
            # Any pair may be hidden.
            full_start = stop
            full_stop = stop
        for masked in tl.static_range(1 if MASK else 0, 2):
            count = full_stop - full_start
            if masked:
                count = full_start - start + stop - full_stop
            accumulator, total, maximum = attend_tiles(
                accumulator, total, maximum, query_a, query_b, query_rest, key, value, mask,
                key_angles + branch * angle_branch, frequencies,
                index_of_query, here, place, block, length,
                key_positions, key_blocks, key_row, value_row, mask_row, mask_column,
                start, full_start, full_stop, count // COLUMNS,
                edge1 if branch == 1 else edge2, edge1 if branch == 0 else edge2,
                unit, window, scale, cap, least,
                masked == 1, (RAW // 2**branch) % 2 == 0, branch > 0, branch < BRANCHES - 1,
                HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, PAIRS, PAIR_BLOCK, REST_BLOCK,
                INTERLEAVED, COLUMNS, CAUSAL, SLIDING, CAP, MASK, BY_INDEX, UNITS, UPCAST,
                PRECISION,
            )  # fmt: skip

    value_dims = tl.arange(0, VALUE_BLOCK)
    nothing = total == 0.0
    lse = maximum + tl.log2(tl.where(nothing, 1.0, total))
    batches = tl.num_programs(2) // kv_heads
    row = (split.to(tl.int64) * batches + batch) * heads * queries
    row += kv_head * groups * queries + rows
    tl.store(partial_lse + row, lse, mask=here)
    if end > begin:
        tl.store(
            partial + row[:, None] * VALUE_DIM + value_dims[None, :],
            accumulator / tl.where(nothing, 1.0, total)[:, None],
            mask=here[:, None] & (value_dims < VALUE_DIM)[None, :],
        )


@triton.jit
def merge_kernel(
    partial, partial_lse, sinks, output, logsumexp, rows, splits, heads, queries,
    VALUE_DIM: tl.constexpr, VALUE_BLOCK: tl.constexpr, SPLITS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Programs: rows, each a query of a head. Merges its splits, SPLITS of them at a time."""
    row = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, VALUE_BLOCK)
    maximum = tl.full([], float("-inf"), tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        lse = tl.load(partial_lse + split * rows + row, mask=split < splits, other=float("-inf"))
        maximum = tl.maximum(maximum, tl.max(lse, 0))
    if SINKS:
        # A sink is a key without a value.
        sink = tl.load(sinks + (row // queries) % heads).to(tl.float32) * LOG2_E
        maximum = tl.maximum(maximum, sink)
    finite = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.zeros([], tl.float32)
    if SINKS:
        total += tl.exp2(sink - finite)
    accumulator = tl.zeros([VALUE_BLOCK], tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        lse = tl.load(partial_lse + split * rows + row, mask=split < splits, other=float("-inf"))
        weights = tl.exp2(lse - finite)
        total += tl.sum(weights, 0)
        # Nobody wrote the share of a split that had no keys.
        shares = tl.load(
            partial + (split * rows + row)[:, None] * VALUE_DIM + dims[None, :],
            mask=(lse > float("-inf"))[:, None] & (dims < VALUE_DIM)[None, :], other=0.0,
        )  # fmt: skip
        accumulator += tl.sum(shares * weights[:, None], 0)
    nothing = total == 0.0
    divisor = tl.where(nothing, 1.0, total)
    tl.store(logsumexp + row, (maximum + tl.log2(divisor)) * LN_2)
    tl.store(
        output + row * VALUE_DIM + dims,
        (accumulator / divisor).to(output.dtype.element_ty),
        mask=dims < VALUE_DIM,
    )
