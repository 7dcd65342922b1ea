"""Kernel 1, the one that reads everything: maximum and mass of each split and of each block.

A program holds a split of a row in registers. It writes, in float32,

    maxima  (rows, blocks)      m = max x of each block of WIDTH logits
    masses  (rows, blocks)      Σ exp(x − m)
    parts   (rows, splits, 3)   m, Σ exp(x − m) and Σ exp(x − m) (x − m) of each split

Blocks are for the search of a threshold and are written only if there is one; the last of the parts
is for the entropy where nothing is truncated and is written only then.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.context_merge.triton.rows import load_logits, row_start

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def statistics_kernel(
    logits, unconditional, maxima, masses, parts, contexts, vocabulary, blocks, splits,
    question_stride, context_stride, token_stride, other_question_stride, other_token_stride,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, SAME_STEP: tl.constexpr,
):  # fmt: skip
    """Programs: rows · splits, the splits of a row one after the other."""
    row = tl.program_id(0) // splits
    split = tl.program_id(0) - row * splits
    start, step = row_start(
        logits, unconditional, row, contexts, question_stride, context_stride, token_stride,
        other_question_stride, other_token_stride,
    )  # fmt: skip
    if SAME_STEP:
        step = token_stride
    block = split * BLOCKS + tl.arange(0, BLOCKS)
    columns = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x = load_logits(start, step, columns, columns < vocabulary)
    greatest = tl.max(x, axis=1)
    # Where all is −∞ there is no mass.
    x -= tl.where(greatest == NOTHING, 0.0, greatest)[:, None]
    weights = tl.exp(x)
    mass = tl.sum(weights, axis=1)
    if not WHOLE:
        place = row.to(tl.int64) * blocks + block
        tl.store(maxima + place, greatest, mask=block < blocks)
        tl.store(masses + place, mass, mask=block < blocks)
    maximum = tl.max(greatest, axis=0)
    below = greatest - tl.where(maximum == NOTHING, 0.0, maximum)
    share = tl.exp(below)
    part = parts + (row.to(tl.int64) * splits + split) * 3
    tl.store(part, maximum)
    tl.store(part + 1, tl.sum(mass * share, axis=0))
    if WHOLE:
        moment = tl.sum(weights * tl.where(weights > 0.0, x, 0.0), axis=1)
        moment += mass * tl.where(mass > 0.0, below, 0.0)
        tl.store(part + 2, tl.sum(moment * share, axis=0))
