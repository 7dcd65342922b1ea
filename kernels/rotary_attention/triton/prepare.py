"""What decoding needs before the cache is read, in one launch: turned queries and placed keys.

    out_b = λ · f² · R^{p_b} q     for every branch b;     key j of branch b at k_b(j)

λ is a factor for each query (log n scaling) and f the attention factor, which keys do without so
that they may stay as they lie in the cache. A row is a query of any head and any row of the batch:
where there is one query, blocks of neighbouring queries (turn.py) would be nearly empty.

Default positions are computed here from the index and the row's length. Those of the keys are
written, 4 bytes for the hundreds that a key and its value have: the kernel that reads the cache
turns keys in the layout of its product, which it can do only with what it loads.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.triton.angles import sine_cosine
from ropewalk.kernels.rotary_attention.triton.geometry import contiguous_rows
from ropewalk.kernels.rotary_attention.triton.maps import constants, place_of
from ropewalk.kernels.rotary_attention.triton.pairs import valid_length
from ropewalk.kernels.rotary_attention.triton.turn import columns_of, empty_turned
from ropewalk.kernels.sizes import ceil_divide, power_of_two

ROWS = 16
KEYS = 1024
"""Rows, or keys, of a program."""


@triton.jit
def place_keys(
    angles, first, keys, MAPS: tl.constexpr, BRANCHES: tl.constexpr, RAW: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Writes the positions of the keys from `first` on in the branches that turn keys."""
    index = first + tl.arange(0, KEYS)
    for branch in tl.static_range(BRANCHES):
        if (RAW // 2**branch) % 2 == 0:
            place = place_of(index, MAPS, 2 * branch + 1)
            tl.store(angles + branch * keys + index, place, mask=index < keys)


@triton.jit
def prepare_kernel(
    query, turned, key_lengths, query_angles, key_angles, inverse_frequencies, factor, row_factor,
    query_batch, query_head, query_row, angle_branch, angle_batch, factor_batch,
    number, blocks, rows, heads, queries, keys,
    MAPS: tl.constexpr, BRANCHES: tl.constexpr, RAW: tl.constexpr, HEAD_DIM: tl.constexpr,
    PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, INTERLEAVED: tl.constexpr, BY_INDEX: tl.constexpr,
    LENGTHS: tl.constexpr, FACTOR: tl.constexpr, ROW_FACTOR: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of rows, (batch, heads, query) counted as one, then BY_INDEX of keys.

    Args:
        turned: contiguous (branches, batch, heads, query, head_dim).
        query_angles: positions (branches, 1 | batch, query), read unless BY_INDEX.
        key_angles: float32 (branches, 1, key), written if BY_INDEX.
        factor: scalar, read if FACTOR; else it is `number`.
        row_factor: (1 | batch, query), read if ROW_FACTOR.
        blocks: programs for rows.
        rows: how many there are.
        MAPS: from `maps.constants`, of the queries and the keys of each branch.
        RAW: a bit for each branch that does not turn its keys.
    """
    if tl.program_id(0) < blocks:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        here = row < rows
        row = tl.minimum(row, rows - 1)
        batch = row // (heads * queries)
        index = row % queries
        wide = batch.to(tl.int64)
        at = query + wide * query_batch + index * query_row
        at += (row // queries % heads).to(tl.int64) * query_head
        first, second, inside, rest, beside = columns_of(
            here, HEAD_DIM, PAIRS, PAIR_BLOCK, REST_BLOCK, INTERLEAVED
        )
        a = tl.load(at[:, None] + first, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(at[:, None] + second, mask=inside, other=0.0).to(tl.float32)
        kept = tl.load(at[:, None] + rest, mask=beside, other=0.0).to(tl.float32)
        pairs = tl.arange(0, PAIR_BLOCK)
        frequencies = tl.load(inverse_frequencies + pairs, mask=pairs < PAIRS, other=0.0)
        scale = tl.full([1, 1], 1.0, tl.float32)
        if ROW_FACTOR:
            scale = tl.load(row_factor + wide * factor_batch + index).to(tl.float32)[:, None]
        f = tl.load(factor).to(tl.float32) if FACTOR else number
        magnitude = scale * (f * f)
        length = keys
        if LENGTHS:
            length = valid_length(key_lengths, batch, keys)
        dtype = turned.dtype.element_ty
        out = turned + row.to(tl.int64)[:, None] * HEAD_DIM
        for branch in tl.static_range(BRANCHES):
            if BY_INDEX:
                place = place_of(length - queries + index, MAPS, 2 * branch)
            else:
                place = tl.load(query_angles + branch * angle_branch + wide * angle_batch + index)
            sine, cosine = sine_cosine(place.to(tl.float32)[:, None] * frequencies[None, :])
            sine = sine * magnitude
            cosine = cosine * magnitude
            tl.store(out + first, (a * cosine - b * sine).to(dtype), mask=inside)
            tl.store(out + second, (b * cosine + a * sine).to(dtype), mask=inside)
            tl.store(out + rest, (kept * scale).to(dtype), mask=beside)
            # Step by step, because all branches together may not fit 32 bits.
            out += rows * HEAD_DIM
    elif BY_INDEX:
        place_keys(key_angles, (tl.program_id(0) - blocks) * KEYS, keys, MAPS, BRANCHES, RAW, KEYS)


def prepare(problem: Problem, raw: int) -> tuple[Tensor, Tensor]:
    """Queries at the positions of every branch, times their factors, and the keys' positions.

    Args:
        problem: what is asked.
        raw: a bit for each branch that does not turn its keys.

    Returns:
        Queries (branches, …) and float32 positions of keys (branches, 1 | batch, key), written only
        where they are needed.
    """
    p, branches = problem, len(problem.branches)
    batch, heads, queries, head_dim = p.query.shape
    pairs, keys, scaled = p.inverse_frequencies.shape[0], p.key.shape[2], p.query_factor
    if pairs == 0 and scaled is None:
        return contiguous_rows(p.query)[None], p.query.new_empty(1, 1, 1, dtype=torch.float32)
    query = p.query if p.query.stride(-1) == 1 else p.query.contiguous()
    turned = empty_turned(query, branches)
    if p.by_index:
        query_angles = None
        key_angles = p.query.new_empty(branches, 1, keys, dtype=torch.float32)
    else:
        query_angles = p.query_angles.contiguous()
        key_angles = p.key_angles.to(torch.float32).contiguous()
    # Where no branch turns its keys, nobody reads where they are.
    placed = p.by_index and raw != 2**branches - 1
    scaled = None if scaled is None else scaled.contiguous()
    rows = batch * heads * queries
    blocks = ceil_divide(rows, ROWS)
    kernel: Any = prepare_kernel
    kernel[(blocks + (ceil_divide(keys, KEYS) if placed else 0),)](
        query, turned, None if p.key_lengths is None else p.key_lengths.contiguous(),
        query_angles, key_angles, p.inverse_frequencies.to(torch.float32).contiguous(),
        p.factor if isinstance(p.factor, Tensor) else None, scaled,
        query.stride(0), query.stride(1), query.stride(2),
        0 if query_angles is None else query_angles.stride(0),
        0 if query_angles is None or query_angles.shape[1] == 1 else queries,
        0 if scaled is None or len(scaled) == 1 else queries,
        1.0 if isinstance(p.factor, Tensor) else p.factor, blocks, rows, heads, queries, keys,
        MAPS=constants([x for branch in p.branches for x in branch]) if p.by_index else None,
        BRANCHES=branches, RAW=raw, HEAD_DIM=head_dim, PAIRS=pairs,
        PAIR_BLOCK=power_of_two(max(pairs, 1)),
        REST_BLOCK=power_of_two(max(head_dim - 2 * pairs, 1)), ROWS=ROWS, KEYS=KEYS,
        INTERLEAVED=p.layout == "interleaved", BY_INDEX=p.by_index,
        LENGTHS=p.by_index and p.key_lengths is not None,
        FACTOR=isinstance(p.factor, Tensor), ROW_FACTOR=scaled is not None, num_warps=4,
    )  # fmt: skip
    return turned, key_angles
