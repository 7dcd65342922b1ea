"""Kernel: what a chunk of time does to the state that it begins with.

    forward   x_end = A x + B    A = Π a_s    B the end of the walk from 0
    adjoint   y_end = A y + B    A = Π a_sᴴ   of the walk y_s = a_sᴴ (v_s + y_(s−1))

Read in the order of the walk; the first of three passes where time is split among programs.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_scan.triton.groups import last_group, scan_groups
from ropewalk.kernels.linear_scan.triton.memory import (
    load_coefficient,
    load_state,
    origin,
    signed,
    span,
    store_parts,
)
from ropewalk.kernels.linear_scan.triton.structures import (
    OF_PRODUCT,
    OF_STATE,
    add,
    adjoint,
    apply,
    compose,
    identity,
    zero,
)


@triton.jit
def summary_kernel(
    a, b, products, ends, cu_seqlens, time, channels, blocks, chunks, chunk_steps,
    a_batch, a_time, a_row, a_column, b_batch, b_time, b_part,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr,
    BACKWARDS: tl.constexpr, PACKED: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of channels, within chunks of time, within sequences.

    Args:
        b: what is added, of the adjoint the gradient of the states.
        products: float32 (sequences, chunks, coefficient).
        ends: float32 (sequences, chunks, state).
        channels: numbers in a row of a state's part: of complex numbers twice as many.
    """
    COLUMNS: tl.constexpr = CHANNELS * (1 + (STRUCTURE == "complex"))
    PARTS: tl.constexpr = 1 + (STRUCTURE == "block2")
    program = tl.program_id(0)
    block = program % blocks
    chunk = program // blocks % chunks
    sequence = program // blocks // chunks
    batch, first, length = span(cu_seqlens, sequence, time, PACKED)
    start = origin(first, length, BACKWARDS)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    within = columns < channels
    group = tl.arange(0, GROUPS)[:, None] * ROWS
    first_step = chunk * chunk_steps
    last_step = tl.minimum(length, first_step + chunk_steps)

    a_stride, b_stride = signed(a_time, BACKWARDS), signed(b_time, BACKWARDS)
    a_at = a + batch * a_batch + start * a_time + (first_step + group) * a_stride + columns
    b_at = b + batch * b_batch + start * b_time + (first_step + group) * b_stride + columns
    total = identity(GROUPS, CHANNELS, STRUCTURE)
    carry = zero(GROUPS, CHANNELS, STRUCTURE)
    for tile in range(first_step, last_step, GROUPS * ROWS):
        coefficients, added = (), ()
        for i in tl.static_range(ROWS):
            exists = tile + group + i < last_step
            inside = exists & within
            given = load_coefficient(a_at, a_row, a_column, exists, inside, STRUCTURE)
            value = load_state(b_at, b_part, inside, STRUCTURE)
            if ADJOINT:
                given = adjoint(given, STRUCTURE)
                value = apply(given, value, STRUCTURE)
            coefficients += (given,)
            added += (value,)
            a_at += a_stride
            b_at += b_stride
        a_at += (GROUPS - 1) * ROWS * a_stride
        b_at += (GROUPS - 1) * ROWS * b_stride
        product, end = coefficients[0], added[0]
        for i in tl.static_range(1, ROWS):
            product = compose(coefficients[i], product, STRUCTURE)
            end = add(apply(coefficients[i], end, STRUCTURE), added[i], STRUCTURE)
        if GROUPS > 1:
            upto, _ = scan_groups(product, end, GROUPS, CHANNELS, STRUCTURE)
            product = last_group(upto[0], GROUPS, CHANNELS)
            end = last_group(upto[1], GROUPS, CHANNELS)
        total = compose(product, total, STRUCTURE, OF_PRODUCT)
        carry = add(apply(product, carry, STRUCTURE, OF_STATE), end, STRUCTURE)

    wide = tl.cast(channels, tl.int64)
    one = (group == 0) & within
    place = (sequence.to(tl.int64) * chunks + chunk) * wide * PARTS
    store_parts(ends + place + columns + group * 0, wide, carry, one, STRUCTURE)
    place = place * PARTS
    store_parts(products + place + columns + group * 0, wide, total, one, STRUCTURE)
