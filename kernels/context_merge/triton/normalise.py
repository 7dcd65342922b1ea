"""Kernel 4: the logsumexp of a merged row taken off, in place.

Its sums are there already, a tile's each. torch's log_softmax takes as many launches and gives a
row to one multiprocessor, which reads it twice more.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def sum_of_parts(part, tiles, PARTS: tl.constexpr):
    """(maximum, ln Σ exp(x − maximum)) of a question's tiles; −∞ where there is nothing."""
    greatest = tl.full([PARTS], NOTHING, tl.float32)
    for first in range(0, tiles, PARTS):
        at = first + tl.arange(0, PARTS)
        greatest = tl.maximum(greatest, tl.load(part + at * 2, mask=at < tiles, other=NOTHING))
    maximum = tl.max(greatest, axis=0)
    from_here = tl.where(maximum == NOTHING, 0.0, maximum)
    total = tl.zeros([PARTS], tl.float32)
    for first in range(0, tiles, PARTS):
        at = first + tl.arange(0, PARTS)
        of_tile = tl.load(part + at * 2, mask=at < tiles, other=NOTHING)
        mass = tl.load(part + at * 2 + 1, mask=at < tiles, other=0.0)
        total += mass * tl.exp(of_tile - from_here)
    mass = tl.sum(total, axis=0)
    return maximum, tl.log(tl.where(maximum == NOTHING, 1.0, mass))


@triton.jit
def normalise_kernel(
    merged, parts, otherwise, otherwise_parts, vocabulary, tiles,
    COLUMNS: tl.constexpr, PARTS: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Programs: questions · tiles, as the merge's. MEAN: `otherwise` where nothing is left."""
    question = tl.program_id(0) // tiles
    tile = tl.program_id(0) - question * tiles
    columns = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < vocabulary
    at = question.to(tl.int64) * vocabulary + columns
    line = question.to(tl.int64) * tiles * 2
    maximum, log_total = sum_of_parts(parts + line, tiles, PARTS)
    value = tl.load(merged + at, mask=inside)
    if MEAN:
        nothing_left = maximum == NOTHING
        if nothing_left:
            maximum, log_total = sum_of_parts(otherwise_parts + line, tiles, PARTS)
            value = tl.load(otherwise + at, mask=inside)
    tl.store(merged + at, value - maximum - log_total, mask=inside)
