"""Kernels of the forward: each tile's part of every sum, then what the parts make of a token.

`statistics_kernel` computes a tile of logits and writes, for each token, the logsumexp over the
tile's columns, where asked the greatest logit and Σ s_v z_v, and the target's logit if the tile
holds it. `merge_kernel` reduces the parts, `live_kernel` marks the tiles of the gradient that count
(`ropewalk.kernels.linear_cross_entropy.filter`). Parts lie as (tile, token).
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_cross_entropy.triton.tiles import (
    IGNORED,
    products,
    tanh,
    tile_of_program,
    uncapped,
)


@triton.jit
def log_of_sum(maximum, total):
    """Maximum + log(total), where both may stand for an empty sum: −∞ and 0."""
    nothing = total == 0.0
    return tl.where(nothing, float("-inf"), maximum + tl.log(tl.where(nothing, 1.0, total)))


@triton.jit
def statistics_kernel(
    hidden, weight, targets, bias, sum_weights, parts, greatest, sums, target_logit,
    tokens, vocabulary, dims, hidden_stride, weight_stride, logit_scale, softcap,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    HIDDEN_TRANSPOSED: tl.constexpr, WEIGHT_TRANSPOSED: tl.constexpr,
    HIDDEN_UNIT: tl.constexpr, WEIGHT_UNIT: tl.constexpr, DIM_UNIT: tl.constexpr,
    EVEN: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BIAS: tl.constexpr, CAP: tl.constexpr, SUM: tl.constexpr, GREATEST: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of tokens · tiles of columns, in the order of `tile_of_program`."""
    block, tile = tile_of_program(
        tl.program_id(0), tl.cdiv(tokens, ROWS), tl.cdiv(vocabulary, COLUMNS), GROUP
    )
    rows = block * ROWS + tl.arange(0, ROWS)
    here = rows < tokens
    target = tl.load(targets + rows, mask=here, other=IGNORED).to(tl.int32)
    if tl.max(target, axis=0) == IGNORED:
        return
    column = tile * COLUMNS
    columns = column + tl.arange(0, COLUMNS)
    there = columns < vocabulary
    total = products(
        hidden, weight, block * ROWS, column, tokens, vocabulary, dims, hidden_stride,
        weight_stride, ROWS, COLUMNS, DEPTH, HIDDEN_TRANSPOSED, WEIGHT_TRANSPOSED,
        HIDDEN_UNIT, WEIGHT_UNIT, DIM_UNIT, EVEN, UPCAST, PRECISION,
    )  # fmt: skip
    logits = uncapped(total, bias, columns, vocabulary, logit_scale, BIAS)
    if CAP:
        logits = softcap * tanh(logits / softcap)

    at = tile.to(tl.int64) * tokens + rows
    if SUM:
        # Columns past the last one repeat its logit, with a weight of 0.
        share = tl.load(sum_weights + columns, mask=there, other=0.0)
        tl.store(sums + at, tl.sum(logits * share[None, :], axis=1), mask=here)
    found = (target >= column) & (target < column + COLUMNS)
    if tl.max(found.to(tl.int32), axis=0) > 0:
        at_target = tl.where(columns[None, :] == target[:, None], logits, 0.0)
        tl.store(target_logit + rows, tl.sum(at_target, axis=1), mask=found)
    logits = tl.where(there[None, :], logits, float("-inf"))
    maximum = tl.max(logits, axis=1)
    if GREATEST:
        tl.store(greatest + at, maximum, mask=here)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    mass = tl.sum(tl.exp(logits - maximum[:, None]), axis=1)
    tl.store(parts + at, log_of_sum(maximum, mass), mask=here)


@triton.jit
def merge_kernel(
    parts, sums, targets, logsumexp, logit_sum, tokens, tiles,
    TOKENS: tl.constexpr, TILES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of TOKENS tokens, which read TILES parts at a time, twice.

    Parts of ignored tokens are not read: nobody may have written them.
    """
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = rows < tokens
    target = tl.load(targets + rows, mask=here, other=IGNORED)
    counts = target != IGNORED
    offsets = tl.arange(0, TILES)[:, None] * tokens + rows[None, :]
    maximum = tl.full([TOKENS], float("-inf"), tl.float32)
    added = tl.zeros([TOKENS], tl.float32)
    for first in range(0, tiles, TILES):
        inside = (first + tl.arange(0, TILES) < tiles)[:, None] & counts[None, :]
        at = offsets + first * tokens
        part = tl.load(parts + at, mask=inside, other=float("-inf"))
        maximum = tl.maximum(maximum, tl.max(part, axis=0))
        if SUM:
            added += tl.sum(tl.load(sums + at, mask=inside, other=0.0), axis=0)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.zeros([TOKENS], tl.float32)
    for first in range(0, tiles, TILES):
        inside = (first + tl.arange(0, TILES) < tiles)[:, None] & counts[None, :]
        part = tl.load(parts + offsets + first * tokens, mask=inside, other=float("-inf"))
        total += tl.sum(tl.exp(part - maximum[None, :]), axis=0)
    tl.store(logsumexp + rows, tl.where(counts, log_of_sum(maximum, total), 0.0), mask=here)
    if SUM:
        tl.store(logit_sum + rows, added, mask=here)


@triton.jit
def live_kernel(
    greatest, logsumexp, targets, live, tokens, tiles, map_tiles, log_resolution,
    TOKENS: tl.constexpr, FILTER_COLUMNS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of TOKENS tokens, TILES tiles of the map), a row of the map each.

    Where a logit is not a number every tile is live, so that what went wrong stays visible.
    """
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    target = tl.load(targets + rows, mask=rows < tokens, other=IGNORED).to(tl.int32)
    counts = target != IGNORED
    least = tl.load(logsumexp + rows, mask=counts, other=0.0) + log_resolution
    at = tl.program_id(1) * TILES + tl.arange(0, TILES)
    # Divided as a natural number: −1 and −2 would round to 0.
    held = tl.where(target >= 0, target, FILTER_COLUMNS * map_tiles) // FILTER_COLUMNS
    alive = held[None, :] == at[:, None]
    PARTS: tl.constexpr = FILTER_COLUMNS // COLUMNS
    for part in tl.static_range(PARTS):
        tile = at * PARTS + part
        inside = (tile < tiles)[:, None] & counts[None, :]
        place = tile.to(tl.int64)[:, None] * tokens + rows[None, :]
        logit = tl.load(greatest + place, mask=inside, other=float("-inf"))
        alive = alive | (inside & ~(logit <= least[None, :]))
    alive = tl.max(alive.to(tl.int32), axis=1)
    place = tl.program_id(0).to(tl.int64) * map_tiles + at
    tl.store(live + place, alive.to(tl.uint8), mask=at < map_tiles)
