"""Gradient of the queries: a block of them against the keys of each branch (backward.py)."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.backward import load_statistics, probabilities
from ropewalk.kernels.rotary_attention.triton.pairs import (
    edges_of_branch,
    extent,
    keys_of_branch,
    load_tile,
    places,
    visible_pairs,
)
from ropewalk.kernels.rotary_attention.triton.ranges import keys_of_queries, masked_tile


@triton.jit
def query_tiles(
    accumulator, turned, upstream, lse, row_delta, key, value, mask, rows, here, place, block,
    length, key_positions, key_blocks, key_row, value_row, mask_row, mask_column,
    start, full_start, full_stop, count, lower, upper, unit, window, scale, cap, least,
    MASKED: tl.constexpr, EDGES: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CAUSAL: tl.constexpr,
    SLIDING: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr, BY_INDEX: tl.constexpr,
    UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what the full tiles of a branch, or its masked ones, give to the queries' gradient."""
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
        values_tile = load_tile(
            value, column, value_row, value_dims, there,
            VALUE_DIM, COLUMNS, VALUE_BLOCK, MASKED, True, UPCAST,
        )  # fmt: skip
        scores = tl.dot(turned, tl.trans(keys_tile), input_precision=PRECISION)
        weights, slope = probabilities(
            scores, lse[:, None], scale, cap, least, mask, rows[:, None], columns[None, :],
            mask_row, mask_column, here[:, None] & there[None, :], CAP, MASK,
        )  # fmt: skip
        if MASKED:
            key_place, key_block = places(
                columns, 0, length, key_positions, key_blocks, unit, BY_INDEX, UNITS
            )
            shown = visible_pairs(
                place[:, None], key_place[None, :], block[:, None], key_block[None, :],
                lower, upper, window, EDGES, EDGES, CAUSAL, SLIDING,
            )  # fmt: skip
            weights = tl.where(shown & there[None, :], weights, 0.0)
        slopes = tl.dot(upstream, tl.trans(values_tile), input_precision=PRECISION)
        slopes = weights * (slopes - row_delta[:, None])
        if CAP:
            slopes = slopes * slope
        accumulator = tl.dot(
            slopes.to(keys_tile.dtype), keys_tile, accumulator, input_precision=PRECISION
        )
    return accumulator


@triton.jit
def query_kernel(
    query, key0, key1, key2, value, grad_output, logsumexp, delta, grad_query, mask, key_lengths,
    cu_queries, cu_keys, tiles, query_positions, key_positions, query_blocks, key_blocks, ordered,
    query_branch, query_batch, query_head, query_row,
    key0_batch, key0_head, key0_row, key1_batch, key1_head, key1_row, key2_batch, key2_head,
    key2_row, value_batch, value_head, value_row,
    mask_batch, mask_head, mask_row, mask_column, query_places, key_places,
    grad_batch, grad_head, grad_row, gradient_branch,
    heads, groups, queries, keys, edge1, edge2, unit, window, steps, scale, cap, least,
    BRANCHES: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr, SLIDING: tl.constexpr, CAP: tl.constexpr,
    MASK: tl.constexpr, LENGTHS: tl.constexpr, PACKED: tl.constexpr, BY_INDEX: tl.constexpr,
    UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the queries rotated for a branch.

    Programs: (blocks of queries, batch · heads, branches).
    """
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    kv_head = head // groups
    block_start = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    block_start, query_start, rows_here, key_start, _, length = extent(
        tiles, cu_queries, cu_keys, key_lengths, batch, block_start, queries, keys, PACKED, LENGTHS
    )

    rows = block_start + tl.arange(0, ROWS)
    here = rows < rows_here
    dims = tl.arange(0, HEAD_BLOCK)
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
    wide_head = head.to(tl.int64)
    wide_kv_head = kv_head.to(tl.int64)
    query += wide * query_batch + wide_head * query_head + query_start * query_row
    value += wide * value_batch + wide_kv_head * value_head + key_start * value_row
    grad_output += wide * grad_batch + wide_head * grad_head + query_start * grad_row
    if MASK:
        mask += wide * mask_batch + wide_head * mask_head
    first_row = (wide * heads + head) * queries + query_start
    lse, row_delta = load_statistics(logsumexp, delta, first_row + block_start, here, ROWS, True)
    upstream = load_tile(
        grad_output, block_start, grad_row, value_dims, here,
        VALUE_DIM, ROWS, VALUE_BLOCK, True, True, UPCAST,
    )  # fmt: skip

    branch = tl.program_id(2)
    wide_branch = branch.to(tl.int64)
    EDGES: tl.constexpr = BRANCHES > 1
    lower, upper = edges_of_branch(branch, edge1, edge2, BRANCHES)
    key, key_row = keys_of_branch(
        branch, key0, key1, key2, wide, wide_kv_head, key_start, key0_batch, key0_head, key0_row,
        key1_batch, key1_head, key1_row, key2_batch, key2_head, key2_row, BRANCHES,
    )  # fmt: skip
    start, full_start, full_stop, stop = keys_of_queries(
        tl.min(place, 0), tl.max(place, 0), tl.min(block, 0), tl.max(block, 0), length,
        lower, upper, window, unit, key_positions, key_blocks if UNITS else key_positions,
        ordered, steps, EDGES, EDGES, CAUSAL, SLIDING, BY_INDEX, COLUMNS,
    )  # fmt: skip
    turned = load_tile(
        query + wide_branch * query_branch, block_start, query_row, dims, here,
        HEAD_DIM, ROWS, HEAD_BLOCK, True, True, UPCAST,
    )  # fmt: skip
    accumulator = tl.zeros([ROWS, HEAD_BLOCK], tl.float32)
    for masked in tl.static_range(2):
        count = full_stop - full_start
        if masked:
            count = full_start - start + stop - full_stop
        accumulator = query_tiles(
            accumulator, turned, upstream, lse, row_delta, key, value, mask, rows, here, place,
            block, length, key_positions, key_blocks, key_row, value_row, mask_row, mask_column,
            start, full_start, full_stop, count // COLUMNS,
            lower, upper, unit, window, scale, cap, least,
            masked == 1, EDGES, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, COLUMNS,
            CAUSAL, SLIDING, CAP, MASK, BY_INDEX, UNITS, UPCAST, PRECISION,
        )  # fmt: skip
    at = first_row + block_start + tl.arange(0, ROWS)
    tl.store(
        grad_query + wide_branch * gradient_branch + at[:, None] * HEAD_DIM + dims[None, :],
        (accumulator * scale).to(grad_query.dtype.element_ty),
        mask=here[:, None] & (dims < HEAD_DIM)[None, :],
    )
