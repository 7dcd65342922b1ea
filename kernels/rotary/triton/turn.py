"""The forward kernel: RMSNorm if there are weights, then the rotation, of queries and keys at once.

    z = x · w / √(mean(x²) + eps)
    (y_a, y_b) = (z_a cos φ − z_b sin φ, z_b cos φ + z_a sin φ)

A program has a tile of tokens and a run of heads of either the queries or the keys, so that the
angles of a tile are read once for all its heads. Without weights and with INVERSE it is the
backward, too. It may write where it reads: an element is read and written by one program, in this
order.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.rotary.triton.tiles import (
    load_angles,
    load_pairs,
    load_rest,
    load_weights,
    row_offsets,
    store_pairs,
    store_rest,
)


@triton.jit
def _turn_heads(
    x, y, cos, sin, weight, tile, chunk, batch, heads, seq, heads_per_program, eps,
    x_batch, x_head, x_seq, x_dim,
    y_batch, y_head, y_seq, y_dim,
    table_batch,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, NORM: tl.constexpr, INPLACE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = HEAD_DIM - 2 * PAIRS
    row = tile * ROWS + tl.arange(0, ROWS)
    valid = row < batch * seq
    cosine, sine = load_angles(cos, sin, row, valid, seq, table_batch, PAIRS, BLOCK_PAIRS, INVERSE)
    if NORM:
        weight_first, weight_second, weight_rest = load_weights(
            weight, PAIRS, REST, BLOCK_PAIRS, BLOCK_REST, INTERLEAVED
        )
    x_rows = row_offsets(row, seq, x_batch, x_seq, UNIT)
    y_rows = row_offsets(row, seq, y_batch, y_seq, UNIT)
    start = chunk * heads_per_program
    source = x + start.to(tl.int64) * x_head * UNIT
    target = y + start.to(tl.int64) * y_head * UNIT
    for _ in range(start, min(start + heads_per_program, heads)):
        first, second = load_pairs(
            source, x_rows, valid, x_dim, ROWS, PAIRS, BLOCK_PAIRS, INTERLEAVED
        )
        if REST > 0 and (NORM or not INPLACE):
            rest = load_rest(source, x_rows, valid, x_dim, PAIRS, REST, BLOCK_REST)
        if NORM:
            square = tl.sum(first * first + second * second, axis=1)
            if REST > 0:
                square += tl.sum(rest * rest, axis=1)
            inverse_rms = (1.0 / tl.sqrt(square / HEAD_DIM + eps))[:, None]
            first = first * inverse_rms * weight_first
            second = second * inverse_rms * weight_second
            if REST > 0:
                rest = rest * inverse_rms * weight_rest
        store_pairs(
            target, y_rows, valid, y_dim,
            first * cosine - second * sine, second * cosine + first * sine,
            ROWS, PAIRS, BLOCK_PAIRS, INTERLEAVED,
        )  # fmt: skip
        if REST > 0 and (NORM or not INPLACE):
            store_rest(target, y_rows, valid, y_dim, rest, PAIRS, REST, BLOCK_REST)
        source += x_head.to(tl.int64) * UNIT
        target += y_head.to(tl.int64) * UNIT


# Whether these divide by 16 or are 1 changes nothing here, and each case would be compiled anew.
UNSPECIALISED = (
    "batch", "heads", "kv_heads", "queries", "keys", "query_chunks", "key_chunks",
    "heads_per_program", "query_table_batch", "key_table_batch",
    *(f"{name}_{stride}" for name in ("query", "key", "query_out", "key_out")
      for stride in ("batch", "head", "seq")),
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def turn_kernel(
    query, key, query_out, key_out,
    query_cos, query_sin, key_cos, key_sin, query_weight, key_weight,
    batch, heads, kv_heads, queries, keys, query_chunks, key_chunks, heads_per_program, eps,
    query_batch, query_head, query_seq, query_dim,
    key_batch, key_head, key_seq, key_dim,
    query_out_batch, query_out_head, query_out_seq, query_out_dim,
    key_out_batch, key_out_head, key_out_seq, key_out_dim,
    query_table_batch, key_table_batch,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
    QUERY_NORM: tl.constexpr, KEY_NORM: tl.constexpr, INPLACE: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Programs (tile · (query_chunks + key_chunks) + chunk): a tile's programs run together."""
    program = tl.program_id(0)
    chunks = query_chunks + key_chunks
    tile = program // chunks
    chunk = program - tile * chunks
    if chunk < query_chunks:
        _turn_heads(
            query, query_out, query_cos, query_sin, query_weight, tile, chunk,
            batch, heads, queries, heads_per_program, eps,
            query_batch, query_head, query_seq, query_dim,
            query_out_batch, query_out_head, query_out_seq, query_out_dim,
            query_table_batch,
            HEAD_DIM, PAIRS, ROWS, BLOCK_PAIRS, BLOCK_REST,
            INTERLEAVED, INVERSE, QUERY_NORM, INPLACE, UNIT,
        )  # fmt: skip
    else:
        _turn_heads(
            key, key_out, key_cos, key_sin, key_weight, tile, chunk - query_chunks,
            batch, kv_heads, keys, heads_per_program, eps,
            key_batch, key_head, key_seq, key_dim,
            key_out_batch, key_out_head, key_out_seq, key_out_dim,
            key_table_batch,
            HEAD_DIM, PAIRS, ROWS, BLOCK_PAIRS, BLOCK_REST,
            INTERLEAVED, INVERSE, KEY_NORM, INPLACE, UNIT,
        )  # fmt: skip
