"""Forward: one block of queries against the keys of each branch, with a running softmax.

    s_ij = ⟨R^{q_b(i)} q_i, R^{k_b(j)} k_j⟩ · scale,   b = branch(i, j)
    o_i = Σ_j exp(s_ij − lse_i) v_j

Queries and keys come rotated to every branch (turn.py). A branch is walked by itself: its full
tiles without a mask, then its masked ones. A tile that straddles the edge between two branches is
visited once in each, with the other's pairs hidden; every other tile costs one score product. So
all branches together cost one attention plus a band as wide as two tiles (FlashAttention-2, arXiv
2307.08691, for the rest). Scores are in base 2: exp2 is what the hardware has.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.pairs import (
    add_mask,
    cap_scores,
    edges_of_branch,
    extent,
    keys_of_branch,
    load_tile,
    places,
    visible_pairs,
)
from ropewalk.kernels.rotary_attention.triton.ranges import keys_of_queries, masked_tile

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def attend_tiles(
    accumulator, total, maximum, turned, key, value, mask, rows, here, place, block, length,
    key_positions, key_blocks, key_row, value_row, mask_row, mask_column,
    start, full_start, full_stop, count, lower, upper, unit, window, scale, cap, least,
    MASKED: tl.constexpr, EDGES: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
    SLIDING: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr, BY_INDEX: tl.constexpr,
    UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the full tiles of a branch, or its masked ones, to the running softmax."""
    dims = tl.arange(0, HEAD_BLOCK)
    value_dims = tl.arange(0, VALUE_BLOCK)
    for index in tl.range(0, count, num_stages=1 if MASKED else None):
        if MASKED:
            column = masked_tile(index, start, full_start, full_stop, COLUMNS)
        else:
            column = full_start + index * COLUMNS
        columns = column + tl.arange(0, COLUMNS)
        there = columns < length
        keys_tile = load_tile(
            key, column, key_row, dims, there,
            HEAD_DIM, COLUMNS, HEAD_BLOCK, MASKED, True, UPCAST,
        )  # fmt: skip
        scores = tl.dot(turned, tl.trans(keys_tile), input_precision=PRECISION)
        if CAP or MASK:
            scores = scores * scale
            if CAP:
                scores = cap_scores(scores, cap)
            if MASK:
                scores = add_mask(
                    scores, mask, rows[:, None], columns[None, :], mask_row, mask_column,
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
                lower, upper, window, EDGES, EDGES, CAUSAL, SLIDING,
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
        values_tile = load_tile(
            value, column, value_row, value_dims, there,
            VALUE_DIM, COLUMNS, VALUE_BLOCK, MASKED, True, UPCAST,
        )  # fmt: skip
        accumulator = tl.dot(
            weights.to(values_tile.dtype), values_tile, accumulator, input_precision=PRECISION
        )
    return accumulator, total, maximum


@triton.jit
def attend_branch(
    branch, accumulator, total, maximum, query, key0, key1, key2, value, mask,
    block_start, rows, here, place, block, batch, kv_head, key_start, length,
    key_positions, key_blocks, ordered,
    query_branch, query_row, key0_batch, key0_head, key0_row, key1_batch, key1_head, key1_row,
    key2_batch, key2_head, key2_row, value_row, mask_row, mask_column,
    edge1, edge2, unit, window, steps, scale, cap, least,
    BRANCHES: tl.constexpr, HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr, SLIDING: tl.constexpr,
    CAP: tl.constexpr, MASK: tl.constexpr, BY_INDEX: tl.constexpr, UNITS: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds all keys of one branch to the running softmax: full tiles first, then masked ones."""
    EDGES: tl.constexpr = BRANCHES > 1
    lower, upper = edges_of_branch(branch, edge1, edge2, BRANCHES)
    key, key_row = keys_of_branch(
        branch, key0, key1, key2, batch, kv_head, key_start, key0_batch, key0_head, key0_row,
        key1_batch, key1_head, key1_row, key2_batch, key2_head, key2_row, BRANCHES,
    )  # fmt: skip
    start, full_start, full_stop, stop = keys_of_queries(
        tl.min(place, 0), tl.max(place, 0), tl.min(block, 0), tl.max(block, 0), length,
        lower, upper, window, unit, key_positions, key_blocks, ordered, steps,
        EDGES, EDGES, CAUSAL, SLIDING, BY_INDEX, COLUMNS,
    )  # fmt: skip
    dims = tl.arange(0, HEAD_BLOCK)
    # The number of a branch times its stride may not fit 32 bits.
    query += (tl.full([], 0, tl.int64) + branch) * query_branch
    turned = load_tile(
        query, block_start, query_row, dims, here,
        HEAD_DIM, ROWS, HEAD_BLOCK, True, True, UPCAST,
    )  # fmt: skip
    for masked in tl.static_range(2):
        count = full_stop - full_start
        if masked:
            count = full_start - start + stop - full_stop
        accumulator, total, maximum = attend_tiles(
            accumulator, total, maximum, turned, key, value, mask, rows, here, place, block,
            length, key_positions, key_blocks, key_row, value_row, mask_row, mask_column,
            start, full_start, full_stop, count // COLUMNS,
            lower, upper, unit, window, scale, cap, least,
            masked == 1, EDGES, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, COLUMNS,
            CAUSAL, SLIDING, CAP, MASK, BY_INDEX, UNITS, UPCAST, PRECISION,
        )  # fmt: skip
    return accumulator, total, maximum


@triton.jit
def forward_kernel(
    query, key0, key1, key2, value, output, logsumexp, sinks, mask, key_lengths,
    cu_queries, cu_keys, tiles, query_positions, key_positions, query_blocks, key_blocks, ordered,
    query_branch, query_batch, query_head, query_row,
    key0_batch, key0_head, key0_row, key1_batch, key1_head, key1_row, key2_batch, key2_head,
    key2_row, value_batch, value_head, value_row,
    mask_batch, mask_head, mask_row, mask_column, query_places, key_places,
    heads, groups, queries, keys, edge1, edge2, unit, window, steps, scale, cap, least,
    BRANCHES: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, SLIDING: tl.constexpr, CAP: tl.constexpr, SINKS: tl.constexpr,
    MASK: tl.constexpr, LENGTHS: tl.constexpr, PACKED: tl.constexpr, BY_INDEX: tl.constexpr,
    UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of queries, batch · heads). Arguments: `geometry.Geometry`."""
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    kv_head = head // groups
    # The last blocks see the most keys: they go first, so that no long one starts at the end.
    block_start = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    block_start, query_start, rows_here, key_start, _, length = extent(
        tiles, cu_queries, cu_keys, key_lengths, batch, block_start, queries, keys, PACKED, LENGTHS
    )

    rows = block_start + tl.arange(0, ROWS)
    here = rows < rows_here
    value_dims = tl.arange(0, VALUE_BLOCK)
    if not BY_INDEX:
        query_positions += batch * query_places + query_start
        key_positions += batch * key_places + key_start
        if UNITS:
            query_blocks += batch * query_places + query_start
            key_blocks += batch * key_places + key_start
    place, block = places(
        rows, length - rows_here, rows_here, query_positions, query_blocks, unit, BY_INDEX, UNITS
    )

    wide = batch.to(tl.int64)
    query += wide * query_batch + head.to(tl.int64) * query_head + query_start * query_row
    value += wide * value_batch + kv_head.to(tl.int64) * value_head + key_start * value_row
    if MASK:
        mask += wide * mask_batch + head.to(tl.int64) * mask_head

    accumulator = tl.zeros([ROWS, VALUE_BLOCK], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    if SINKS:
        # A sink is a key that was seen before all others and has no value.
        maximum = tl.zeros([ROWS], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total += 1.0

    for step in range(0, BRANCHES):
        accumulator, total, maximum = attend_branch(
            BRANCHES - 1 - step, accumulator, total, maximum, query, key0, key1, key2, value, mask,
            block_start, rows, here, place, block, wide, kv_head.to(tl.int64), key_start, length,
            key_positions, key_blocks if UNITS else key_positions, ordered,
            query_branch, query_row, key0_batch, key0_head, key0_row, key1_batch, key1_head,
            key1_row, key2_batch, key2_head, key2_row, value_row, mask_row, mask_column,
            edge1, edge2, unit, window, steps, scale, cap, least,
            BRANCHES, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, ROWS,
            COLUMNS, CAUSAL, SLIDING, CAP, MASK, BY_INDEX, UNITS, UPCAST, PRECISION,
        )  # fmt: skip

    # A row that sees no key has a total of 0: its output is 0 and its logsumexp −∞.
    nothing = total == 0.0
    accumulator = accumulator / tl.where(nothing, 1.0, total)[:, None]
    # The −∞ of such a row stays in `maximum`.
    lse = (maximum + tl.log2(tl.where(nothing, 1.0, total))) * LN_2
    at = (wide * heads + head) * queries + query_start + rows
    tl.store(logsumexp + at, lse, mask=here)
    tl.store(
        output + at[:, None] * VALUE_DIM + value_dims[None, :],
        accumulator.to(output.dtype.element_ty),
        mask=here[:, None] & (value_dims < VALUE_DIM)[None, :],
    )
