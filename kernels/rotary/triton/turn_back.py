"""The backward kernel of RMSNorm and rotation: gradients of x, and partial sums of the weights'.

    dz = R^{−φ} dy,   r = 1/√(mean(x²) + eps),   x̂ = x · r
    dw = Σ dz · x̂,   g = dz · w,   dx = r · (g − x̂ · mean(g · x̂))

The statistics are computed again from x, which has to be read anyway. Every program adds up dw of
its tokens and heads in registers and writes one row of partial sums; their sum, in a fixed order,
is left to torch. So results repeat bit for bit.
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
    store_weights,
)


@triton.jit
def _turn_heads_back(
    x, grad, x_grad, cos, sin, weight, partial, tile, chunk, chunks,
    batch, heads, seq, heads_per_program, eps,
    x_batch, x_head, x_seq, x_dim,
    grad_batch, grad_head, grad_seq, grad_dim,
    x_grad_batch, x_grad_head, x_grad_seq, x_grad_dim,
    table_batch,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    REST: tl.constexpr = HEAD_DIM - 2 * PAIRS
    row = tile * ROWS + tl.arange(0, ROWS)
    valid = row < batch * seq
    cosine, sine = load_angles(
        cos, sin, row, valid, seq, table_batch, PAIRS, BLOCK_PAIRS, not INVERSE
    )
    if NORM:
        weight_first, weight_second, weight_rest = load_weights(
            weight, PAIRS, REST, BLOCK_PAIRS, BLOCK_REST, INTERLEAVED
        )
        sum_first = tl.zeros((ROWS, BLOCK_PAIRS), tl.float32)
        sum_second = tl.zeros((ROWS, BLOCK_PAIRS), tl.float32)
        sum_rest = tl.zeros((ROWS, BLOCK_REST), tl.float32)
    x_rows = row_offsets(row, seq, x_batch, x_seq, UNIT)
    grad_rows = row_offsets(row, seq, grad_batch, grad_seq, UNIT)
    x_grad_rows = row_offsets(row, seq, x_grad_batch, x_grad_seq, UNIT)
    start = chunk * heads_per_program
    values = x + start.to(tl.int64) * x_head * UNIT
    source = grad + start.to(tl.int64) * grad_head * UNIT
    target = x_grad + start.to(tl.int64) * x_grad_head * UNIT
    for _ in range(start, min(start + heads_per_program, heads)):
        a, b = load_pairs(source, grad_rows, valid, grad_dim, ROWS, PAIRS, BLOCK_PAIRS, INTERLEAVED)
        first = a * cosine - b * sine
        second = b * cosine + a * sine
        if REST > 0:
            rest = load_rest(source, grad_rows, valid, grad_dim, PAIRS, REST, BLOCK_REST)
        if NORM:
            x_first, x_second = load_pairs(
                values, x_rows, valid, x_dim, ROWS, PAIRS, BLOCK_PAIRS, INTERLEAVED
            )
            square = tl.sum(x_first * x_first + x_second * x_second, axis=1)
            if REST > 0:
                x_rest = load_rest(values, x_rows, valid, x_dim, PAIRS, REST, BLOCK_REST)
                square += tl.sum(x_rest * x_rest, axis=1)
            inverse_rms = (1.0 / tl.sqrt(square / HEAD_DIM + eps))[:, None]
            x_first *= inverse_rms
            x_second *= inverse_rms
            sum_first += first * x_first
            sum_second += second * x_second
            first *= weight_first
            second *= weight_second
            along = tl.sum(first * x_first + second * x_second, axis=1)
            if REST > 0:
                x_rest *= inverse_rms
                sum_rest += rest * x_rest
                rest *= weight_rest
                along += tl.sum(rest * x_rest, axis=1)
            along = (along / HEAD_DIM)[:, None]
            first = inverse_rms * (first - x_first * along)
            second = inverse_rms * (second - x_second * along)
            if REST > 0:
                rest = inverse_rms * (rest - x_rest * along)
        store_pairs(
            target, x_grad_rows, valid, x_grad_dim, first, second,
            ROWS, PAIRS, BLOCK_PAIRS, INTERLEAVED,
        )  # fmt: skip
        if REST > 0:
            store_rest(
                target, x_grad_rows, valid, x_grad_dim, rest, PAIRS, REST, BLOCK_REST
            )  # fmt: skip
        values += x_head.to(tl.int64) * UNIT
        source += grad_head.to(tl.int64) * UNIT
        target += x_grad_head.to(tl.int64) * UNIT
    # A tile beyond the shorter of queries and keys has no row of partial sums.
    if NORM and tile * ROWS < batch * seq:
        store_weights(
            partial + (tile * chunks + chunk).to(tl.int64) * HEAD_DIM,
            tl.sum(sum_first, axis=0), tl.sum(sum_second, axis=0), tl.sum(sum_rest, axis=0),
            PAIRS, REST, BLOCK_PAIRS, BLOCK_REST, INTERLEAVED,
        )  # fmt: skip


UNSPECIALISED = (
    "batch", "heads", "kv_heads", "queries", "keys", "query_chunks", "key_chunks",
    "heads_per_program", "query_table_batch", "key_table_batch",
    *(f"{name}_{stride}"
      for name in ("query", "key", "query_out", "key_out", "query_grad", "key_grad")
      for stride in ("batch", "head", "seq")),
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def turn_back_kernel(
    query, key, query_out, key_out, query_grad, key_grad,
    query_cos, query_sin, key_cos, key_sin, query_weight, key_weight, query_partial, key_partial,
    batch, heads, kv_heads, queries, keys, query_chunks, key_chunks, heads_per_program, eps,
    query_batch, query_head, query_seq, query_dim,
    key_batch, key_head, key_seq, key_dim,
    query_out_batch, query_out_head, query_out_seq, query_out_dim,
    key_out_batch, key_out_head, key_out_seq, key_out_dim,
    query_grad_batch, query_grad_head, query_grad_seq, query_grad_dim,
    key_grad_batch, key_grad_head, key_grad_seq, key_grad_dim,
    query_table_batch, key_table_batch,
    HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_REST: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr,
    QUERY_NORM: tl.constexpr, KEY_NORM: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Programs as in `turn_kernel`; `*_out` are the gradients that come, `*_grad` those that go."""
    program = tl.program_id(0)
    chunks = query_chunks + key_chunks
    tile = program // chunks
    chunk = program - tile * chunks
    if chunk < query_chunks:
        _turn_heads_back(
            query, query_out, query_grad, query_cos, query_sin, query_weight, query_partial,
            tile, chunk, query_chunks, batch, heads, queries, heads_per_program, eps,
            query_batch, query_head, query_seq, query_dim,
            query_out_batch, query_out_head, query_out_seq, query_out_dim,
            query_grad_batch, query_grad_head, query_grad_seq, query_grad_dim,
            query_table_batch,
            HEAD_DIM, PAIRS, ROWS, BLOCK_PAIRS, BLOCK_REST,
            INTERLEAVED, INVERSE, QUERY_NORM, UNIT,
        )  # fmt: skip
    else:
        _turn_heads_back(
            key, key_out, key_grad, key_cos, key_sin, key_weight, key_partial,
            tile, chunk - query_chunks, key_chunks, batch, kv_heads, keys, heads_per_program, eps,
            key_batch, key_head, key_seq, key_dim,
            key_out_batch, key_out_head, key_out_seq, key_out_dim,
            key_grad_batch, key_grad_head, key_grad_seq, key_grad_dim,
            key_table_batch,
            HEAD_DIM, PAIRS, ROWS, BLOCK_PAIRS, BLOCK_REST,
            INTERLEAVED, INVERSE, KEY_NORM, UNIT,
        )  # fmt: skip
