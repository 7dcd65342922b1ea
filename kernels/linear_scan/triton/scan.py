"""Kernel: the states, one pass over a and b.

x_s = a_s x_(s−1) + b_s     s counts steps in the order of the walk
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_scan.triton.groups import entries
from ropewalk.kernels.linear_scan.triton.memory import (
    load_coefficient,
    load_state,
    origin,
    signed,
    span,
    store_parts,
)
from ropewalk.kernels.linear_scan.triton.structures import add, apply, compose, zero


@triton.jit
def scan_kernel(
    a, b, initial, states, cu_seqlens, time, channels, blocks, chunks, chunk_steps,
    a_batch, a_time, a_row, a_column, b_batch, b_time, b_part,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr,
    REVERSE: tl.constexpr, PACKED: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of channels, within chunks of time, within sequences.

    Args:
        initial: (sequences, chunks, state): the state before each chunk.
        states: contiguous.
        channels: numbers in a row of a state's part: of complex numbers twice as many.
    """
    COLUMNS: tl.constexpr = CHANNELS * (1 + (STRUCTURE == "complex"))
    PARTS: tl.constexpr = 1 + (STRUCTURE == "block2")
    program = tl.program_id(0)
    block = program % blocks
    chunk = program // blocks % chunks
    sequence = program // blocks // chunks
    batch, first, length = span(cu_seqlens, sequence, time, PACKED)
    start = origin(first, length, REVERSE)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    within = columns < channels
    group = tl.arange(0, GROUPS)[:, None] * ROWS
    first_step = chunk * chunk_steps
    last_step = tl.minimum(length, first_step + chunk_steps)

    a_stride, b_stride = signed(a_time, REVERSE), signed(b_time, REVERSE)
    wide = tl.cast(channels, tl.int64)
    x_stride = signed(wide * PARTS, REVERSE)
    a_at = a + batch * a_batch + start * a_time + (first_step + group) * a_stride + columns
    b_at = b + batch * b_batch + start * b_time + (first_step + group) * b_stride + columns
    x_at = states + (batch * time + start) * wide * PARTS
    x_at += (first_step + group) * x_stride + columns
    carry = zero(GROUPS, CHANNELS, STRUCTURE)
    if INITIAL:
        at = initial + (sequence.to(tl.int64) * chunks + chunk) * wide * PARTS + columns
        everywhere = (group >= 0) & within
        carry = load_state(at + group * 0, wide, everywhere, STRUCTURE)

    for tile in range(first_step, last_step, GROUPS * ROWS):
        coefficients, added = (), ()
        for i in tl.static_range(ROWS):
            exists = tile + group + i < last_step
            inside = exists & within
            given = load_coefficient(a_at, a_row, a_column, exists, inside, STRUCTURE)
            coefficients += (given,)
            added += (load_state(b_at, b_part, inside, STRUCTURE),)
            a_at += a_stride
            b_at += b_stride
        x = carry
        if GROUPS > 1:
            product, end = coefficients[0], added[0]
            for i in tl.static_range(1, ROWS):
                product = compose(coefficients[i], product, STRUCTURE)
                end = add(apply(coefficients[i], end, STRUCTURE), added[i], STRUCTURE)
            x, carry = entries(product, end, carry, GROUPS, CHANNELS, STRUCTURE)
        for i in tl.static_range(ROWS):
            x = add(apply(coefficients[i], x, STRUCTURE), added[i], STRUCTURE)
            inside = (tile + group + i < last_step) & within
            store_parts(x_at, wide, x, inside, STRUCTURE)
            x_at += x_stride
        if GROUPS == 1:
            carry = x
        a_at += (GROUPS - 1) * ROWS * a_stride
        b_at += (GROUPS - 1) * ROWS * b_stride
        x_at += (GROUPS - 1) * ROWS * x_stride
