"""Kernel 2: of each row its logsumexp, the threshold of top-p and the entropy of what is kept.

A program has a row. From the splits' parts it knows maximum and mass, from the blocks' a bound
below the threshold; it lists the blocks that reach the bound and searches among them.

    rows (rows, 4)   M = max x,  ln Σ exp(x − M),  threshold,  not used
    H = −Σ_kept p ln p,   renormalised: H / m + ln m,  m = Σ_kept p

ln p is (x − M) − ln Σ, of which each difference is exact to its own rounding.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.context_merge.triton.rows import load_listed, row_start
from ropewalk.kernels.context_merge.triton.search import (
    bound_from_below,
    key_of,
    threshold_key,
    value_of,
)

NOTHING = tl.constexpr(float("-inf"))
ROUNDING = tl.constexpr(1e-5)
"""Of a row's mass: more than the sums over its blocks are rounded by."""


@triton.jit
def list_blocks(maxima, listed, blocks, bound, TILE: tl.constexpr):
    """Writes the numbers of the blocks whose maximum is at least `bound`; returns how many."""
    count = 0
    for first in range(0, blocks, TILE):
        at = first + tl.arange(0, TILE)
        x = tl.load(maxima + at, mask=at < blocks, other=NOTHING)
        reaches = (x >= bound) & (at < blocks)
        place = count + tl.cumsum(reaches.to(tl.int32), axis=0) - 1
        tl.store(listed + place, at, mask=reaches)
        count += tl.sum(reaches.to(tl.int32), axis=0)
    # Other threads of this program read what these wrote.
    tl.debug_barrier()
    return count


@triton.jit
def threshold_kernel(
    logits, unconditional, maxima, masses, parts, listed, rows, entropies,
    contexts, vocabulary, blocks, splits, top_p, reach,
    question_stride, context_stride, token_stride, other_question_stride, other_token_stride,
    SPLITS: tl.constexpr, WIDTH: tl.constexpr, SHIFT: tl.constexpr,
    MAXIMA: tl.constexpr, MAXIMA_WAYS: tl.constexpr, LOOKS: tl.constexpr,
    FEW: tl.constexpr, FINE_WAYS: tl.constexpr, FINE_BLOCKS: tl.constexpr,
    COARSE_WAYS: tl.constexpr, COARSE_BLOCKS: tl.constexpr,
    WHOLE: tl.constexpr, RENORMALISE: tl.constexpr, SAME_STEP: tl.constexpr,
):  # fmt: skip
    """Programs: rows. `reach` is how far below the maximum a threshold can be."""
    row = tl.program_id(0)
    at = tl.arange(0, SPLITS)
    part = parts + (row.to(tl.int64) * splits + at) * 3
    greatest = tl.load(part, mask=at < splits, other=NOTHING)
    mass = tl.load(part + 1, mask=at < splits, other=0.0)
    maximum = tl.max(greatest, axis=0)
    share = tl.exp(tl.where(mass > 0.0, greatest - maximum, NOTHING))
    total = tl.sum(mass * share, axis=0)
    log_total = tl.log(total)

    if WHOLE:
        threshold = NOTHING
        moment = tl.load(part + 2, mask=at < splits, other=0.0)
        moment += mass * tl.where(mass > 0.0, greatest - maximum, 0.0)
        entropy = log_total - tl.sum(share * moment, axis=0) / total
    else:
        start, step = row_start(
            logits, unconditional, row, contexts, question_stride, context_stride, token_stride,
            other_question_stride, other_token_stride,
        )  # fmt: skip
        if SAME_STEP:
            step = token_stride
        maxima += row.to(tl.int64) * blocks
        masses += row.to(tl.int64) * blocks
        listed += row.to(tl.int64) * blocks
        needed = top_p * total
        low = key_of(maximum - reach, SHIFT).to(tl.int64)
        high = key_of(maximum, SHIFT).to(tl.int64) + 1
        low = bound_from_below(
            maxima, masses, blocks, maximum, total, (1.0 - top_p - ROUNDING) * total, low, high,
            MAXIMA, MAXIMA_WAYS, LOOKS, WIDTH, SHIFT,
        )  # fmt: skip
        count = list_blocks(maxima, listed, blocks, value_of(low, SHIFT), MAXIMA)
        if count <= FEW:
            key = threshold_key(
                start, step, listed, count, vocabulary, maximum, needed, low, high,
                FINE_BLOCKS, WIDTH, FINE_WAYS, SHIFT,
            )  # fmt: skip
        else:
            key = threshold_key(
                start, step, listed, count, vocabulary, maximum, needed, low, high,
                COARSE_BLOCKS, WIDTH, COARSE_WAYS, SHIFT,
            )  # fmt: skip
        threshold = value_of(key, SHIFT)
        kept_mass = tl.zeros([COARSE_BLOCKS * WIDTH], tl.float32)
        terms = tl.zeros([COARSE_BLOCKS * WIDTH], tl.float32)
        for first in range(0, count, COARSE_BLOCKS):
            x = load_listed(start, step, listed, first, count, vocabulary, COARSE_BLOCKS, WIDTH)
            kept = x >= threshold
            log_probability = x - maximum - log_total
            probability = tl.exp(log_probability)
            kept_mass += tl.where(kept, probability, 0.0)
            terms += probability * tl.where(kept, log_probability, 0.0)
        entropy = -tl.sum(terms, axis=0)
        if RENORMALISE:
            held = tl.sum(kept_mass, axis=0)
            entropy = entropy / held + tl.log(held)

    about = rows + row.to(tl.int64) * 4
    tl.store(about, maximum)
    tl.store(about + 1, log_total)
    tl.store(about + 2, threshold)
    question = row // (contexts + 1)
    context = row - question * (contexts + 1)
    place = entropies + question.to(tl.int64) * contexts + context
    tl.store(place, entropy, mask=context < contexts)
