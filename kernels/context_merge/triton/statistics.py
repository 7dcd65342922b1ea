"""Kernel 1, the one that reads everything: maximum and mass of each split, maximum of each block.

A program holds a split of a row in registers. It writes, in float32,

    maxima  (rows, blocks)      of each block of WIDTH logits
    parts   (rows, splits, 3)   m = max x,  Σ exp(x − m),  Σ exp(x − m) (x − m)

The last of them gives the entropy where nothing is truncated, and is 0 elsewhere.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.context_merge.triton.rows import load_logits, row_start


@triton.jit
def statistics_kernel(
    logits, unconditional, maxima, parts, contexts, vocabulary, blocks, splits,
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
    if not WHOLE:
        place = maxima + row.to(tl.int64) * blocks + block
        tl.store(place, greatest, mask=block < blocks)
    maximum = tl.max(greatest, axis=0)
    # A split of −∞ alone has no mass.
    x -= tl.where(maximum == float("-inf"), 0.0, maximum)
    weights = tl.exp(x)
    part = parts + (row.to(tl.int64) * splits + split) * 3
    tl.store(part, maximum)
    tl.store(part + 1, tl.sum(tl.sum(weights, axis=1), axis=0))
    if WHOLE:
        terms = weights * tl.where(weights > 0.0, x, 0.0)
        tl.store(part + 2, tl.sum(tl.sum(terms, axis=1), axis=0))
