"""A sample's sums from those of its parts, in one order, rounded to the dtype of each result."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.adaptive_norm.triton.parts import find_places


@triton.jit
def sum_places(
    partial, out, sample, first, count, column, index,
    DIM: tl.constexpr, SUMS: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds one sum's rows (place, sum, dim) and writes (sample, dim)."""
    total = tl.zeros((PLACES, COLUMNS), tl.float32)
    for step in range(0, count, PLACES):
        place = step + tl.arange(0, PLACES)
        inside = (place < count)[:, None] & (column < DIM)[None, :]
        at = ((first + place).to(tl.int64) * SUMS + index)[:, None] * DIM + column[None, :]
        total += tl.load(partial + at, mask=inside, other=0.0)
    at = sample.to(tl.int64) * DIM + column
    tl.store(out + at, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=column < DIM)


@triton.jit(do_not_specialize=("tokens", "part"))
def sums_kernel(
    partial, along, straight, gate, cu_seqlens, tokens, part,
    DIM: tl.constexpr, SUMS: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has some columns of a sample, and all sums that there are."""
    blocks: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    sample = program // blocks
    column = (program - sample * blocks) * COLUMNS + tl.arange(0, COLUMNS)
    first, count = find_places(sample, cu_seqlens, tokens, part)
    if along is not None:
        sum_places(partial, along, sample, first, count, column, 0, DIM, SUMS, PLACES, COLUMNS)
    if straight is not None:
        index = 1 if along is not None else 0
        sum_places(
            partial, straight, sample, first, count, column, index, DIM, SUMS, PLACES, COLUMNS
        )
    if gate is not None:
        sum_places(
            partial, gate, sample, first, count, column, SUMS - 1, DIM, SUMS, PLACES, COLUMNS
        )
