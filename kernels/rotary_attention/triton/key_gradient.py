"""Gradients of keys and values: a block of them against the queries of each branch (backward.py).

Under grouped-query attention one program walks the queries of every head that shares its keys, so
that nothing is added atomically and results repeat bit for bit. With SPLIT the heads of a group
go to programs of their own, which fills a chip that has too few blocks of keys otherwise; they add
to float32 gradients in whatever order they finish.
"""

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
from ropewalk.kernels.rotary_attention.triton.ranges import masked_tile, queries_of_keys


@triton.jit
def key_tiles(
    accumulator, value_sum, keys_tile, values_tile, query, grad_output, logsumexp, delta, mask,
    columns, there, place, block, batch, head_start, heads_here, length, query_start, rows_here,
    query_positions, query_blocks, query_head, query_row, mask_head, mask_row, mask_column,
    grad_head, grad_row, heads, queries, start, full_start, full_stop, count,
    lower, upper, unit, window, scale, cap, least,
    MASKED: tl.constexpr, EDGES: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr, ROWS: tl.constexpr, CAUSAL: tl.constexpr,
    SLIDING: tl.constexpr, CAP: tl.constexpr, MASK: tl.constexpr, BY_INDEX: tl.constexpr,
    UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds what the full tiles of a branch, or its masked ones, give to keys and values."""
    dims = tl.arange(0, HEAD_BLOCK)
    value_dims = tl.arange(0, VALUE_BLOCK)
    for shared in range(0, heads_here):
        head = head_start + shared
        wide_head = head.to(tl.int64)
        query_here = query + wide_head * query_head
        grad_here = grad_output + wide_head * grad_head
        row_base = (batch * heads + head) * queries + query_start
        for index in tl.range(0, count, num_stages=1 if MASKED else None):
            if MASKED:
                row = masked_tile(index, start, full_start, full_stop, ROWS)
            else:
                row = full_start + index * ROWS
            rows = row + tl.arange(0, ROWS)
            here = rows < rows_here
            turned = load_tile(
                query_here, row, query_row, dims, here,
                HEAD_DIM, ROWS, HEAD_BLOCK, MASKED, True, UPCAST,
            )  # fmt: skip
            upstream = load_tile(
                grad_here, row, grad_row, value_dims, here,
                VALUE_DIM, ROWS, VALUE_BLOCK, MASKED, True, UPCAST,
            )  # fmt: skip
            lse, row_delta = load_statistics(logsumexp, delta, row_base + row, here, ROWS, MASKED)
            scores = tl.dot(keys_tile, tl.trans(turned), input_precision=PRECISION)
            weights, slope = probabilities(
                scores, lse[None, :], scale, cap, least, mask + wide_head * mask_head
                if MASK else mask, rows[None, :], columns[:, None], mask_row, mask_column,
                there[:, None] & here[None, :], CAP, MASK,
            )  # fmt: skip
            if MASKED:
                query_place, query_block = places(
                    rows, length - rows_here, rows_here, query_positions, query_blocks, unit,
                    BY_INDEX, UNITS,
                )  # fmt: skip
                shown = visible_pairs(
                    query_place[None, :], place[:, None], query_block[None, :], block[:, None],
                    lower, upper, window, EDGES, EDGES, CAUSAL, SLIDING,
                )  # fmt: skip
                weights = tl.where(shown & here[None, :], weights, 0.0)
            value_sum = tl.dot(
                weights.to(upstream.dtype), upstream, value_sum, input_precision=PRECISION
            )
            slopes = tl.dot(values_tile, tl.trans(upstream), input_precision=PRECISION)
            slopes = weights * (slopes - row_delta[None, :])
            if CAP:
                slopes = slopes * slope
            accumulator = tl.dot(
                slopes.to(turned.dtype), turned, accumulator, input_precision=PRECISION
            )
    return accumulator, value_sum


@triton.jit
def key_kernel(
    query, key0, key1, key2, value, grad_output, logsumexp, delta, grad_key, grad_value, mask,
    key_lengths, cu_queries, cu_keys, tiles,
    query_positions, key_positions, query_blocks, key_blocks, ordered,
    query_branch, query_batch, query_head, query_row,
    key0_batch, key0_head, key0_row, key1_batch, key1_head, key1_row, key2_batch, key2_head,
    key2_row, value_batch, value_head, value_row,
    mask_batch, mask_head, mask_row, mask_column, query_places, key_places,
    grad_batch, grad_head, grad_row, gradient_branch, value_branch,
    heads, groups, queries, keys, edge1, edge2, unit, window, steps, scale, cap, least,
    BRANCHES: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLIT: tl.constexpr,
    CAUSAL: tl.constexpr, SLIDING: tl.constexpr, CAP: tl.constexpr,
    MASK: tl.constexpr, LENGTHS: tl.constexpr, PACKED: tl.constexpr, BY_INDEX: tl.constexpr,
    UNITS: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys rotated for a branch, and of the values as that branch sees them.

    Programs: (blocks of keys, batch · kv_heads, branches), or with SPLIT (blocks of keys, batch ·
    heads, branches), which add what they find to float32 gradients.
    """
    kv_heads = heads // groups
    if SPLIT:
        kv_head = tl.program_id(1) % heads // groups
        head_start = tl.program_id(1) % heads
        batch = tl.program_id(1) // heads
        heads_here = 1
    else:
        kv_head = tl.program_id(1) % kv_heads
        head_start = kv_head * groups
        batch = tl.program_id(1) // kv_heads
        heads_here = groups
    block_start = tl.program_id(0) * COLUMNS
    block_start, query_start, rows_here, key_start, keys_here, length = extent(
        tiles, cu_queries, cu_keys, key_lengths, batch, block_start, queries, keys, PACKED, LENGTHS
    )

    columns = block_start + tl.arange(0, COLUMNS)
    there = columns < length
    dims = tl.arange(0, HEAD_BLOCK)
    value_dims = tl.arange(0, VALUE_BLOCK)
    if not BY_INDEX:
        query_positions += batch * query_places + query_start
        key_positions += batch * key_places + key_start
        if UNITS:
            query_blocks += batch * query_places + query_start
            key_blocks += batch * key_places + key_start
    place, block = places(columns, 0, length, key_positions, key_blocks, unit, BY_INDEX, UNITS)

    wide = batch.to(tl.int64)
    wide_kv_head = kv_head.to(tl.int64)
    query += wide * query_batch + query_start * query_row
    value += wide * value_batch + wide_kv_head * value_head + key_start * value_row
    grad_output += wide * grad_batch + query_start * grad_row
    if MASK:
        mask += wide * mask_batch
    values_tile = load_tile(
        value, block_start, value_row, value_dims, there,
        VALUE_DIM, COLUMNS, VALUE_BLOCK, True, True, UPCAST,
    )  # fmt: skip
    value_sum = tl.zeros([COLUMNS, VALUE_BLOCK], tl.float32)

    branch = tl.program_id(2)
    wide_branch = branch.to(tl.int64)
    EDGES: tl.constexpr = BRANCHES > 1
    lower, upper = edges_of_branch(branch, edge1, edge2, BRANCHES)
    key, key_row = keys_of_branch(
        branch, key0, key1, key2, wide, wide_kv_head, key_start, key0_batch, key0_head, key0_row,
        key1_batch, key1_head, key1_row, key2_batch, key2_head, key2_row, BRANCHES,
    )  # fmt: skip
    start, full_start, full_stop, stop = queries_of_keys(
        tl.min(place, 0), tl.max(place, 0), tl.min(block, 0), tl.max(block, 0), rows_here,
        length - rows_here, lower, upper, window, unit,
        query_positions, query_blocks if UNITS else query_positions, ordered, steps,
        EDGES, EDGES, CAUSAL, SLIDING, BY_INDEX, ROWS,
    )  # fmt: skip
    # A block that begins past the valid keys is met by nobody.
    stop = tl.where(block_start < length, stop, start)
    full_start = tl.minimum(full_start, stop)
    full_stop = tl.minimum(full_stop, stop)
    keys_tile = load_tile(
        key, block_start, key_row, dims, there,
        HEAD_DIM, COLUMNS, HEAD_BLOCK, True, True, UPCAST,
    )  # fmt: skip
    accumulator = tl.zeros([COLUMNS, HEAD_BLOCK], tl.float32)
    for masked in tl.static_range(2):
        count = full_stop - full_start
        if masked:
            count = full_start - start + stop - full_stop
        accumulator, value_sum = key_tiles(
            accumulator, value_sum, keys_tile, values_tile, query + wide_branch * query_branch,
            grad_output, logsumexp, delta, mask, columns, there, place, block,
            wide, head_start, heads_here, length, query_start, rows_here,
            query_positions, query_blocks, query_head, query_row, mask_head, mask_row,
            mask_column, grad_head, grad_row, heads, queries,
            start, full_start, full_stop, count // ROWS,
            lower, upper, unit, window, scale, cap, least,
            masked == 1, EDGES, HEAD_DIM, VALUE_DIM, HEAD_BLOCK, VALUE_BLOCK, ROWS,
            CAUSAL, SLIDING, CAP, MASK, BY_INDEX, UNITS, UPCAST, PRECISION,
        )  # fmt: skip
    # Nobody sees keys past the valid ones, whose columns hold what full tiles left there.
    accumulator = tl.where(there[:, None], accumulator, 0.0) * scale
    value_sum = tl.where(there[:, None], value_sum, 0.0)
    at = (wide * kv_heads + kv_head) * keys + key_start + columns
    stored = columns < keys_here
    key_target = grad_key + wide_branch * gradient_branch + at[:, None] * HEAD_DIM + dims[None, :]
    key_inside = stored[:, None] & (dims < HEAD_DIM)[None, :]
    value_target = grad_value + wide_branch * value_branch + at[:, None] * VALUE_DIM
    value_target += value_dims[None, :]
    value_inside = stored[:, None] & (value_dims < VALUE_DIM)[None, :]
    if SPLIT:
        tl.atomic_add(key_target, accumulator, mask=key_inside, sem="relaxed")
        tl.atomic_add(value_target, value_sum, mask=value_inside, sem="relaxed")
    else:
        tl.store(key_target, accumulator.to(grad_key.dtype.element_ty), mask=key_inside)
        tl.store(value_target, value_sum.to(grad_value.dtype.element_ty), mask=value_inside)
