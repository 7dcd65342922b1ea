"""Kernel: all gradients in one pass against the direction of the forward.

    g_s = v_s + y_(s−1)    y_s = a_sᴴ g_s    a_grad_s = g_s x_beforeᴴ    b_grad_s = g_s

s counts steps in the order of this walk, v is the gradient of the states, and x_before is the state
that the forward came from, the one of step s + 1 here. What is carried is y: it ends as the
gradient of the initial state, and no coefficient is read one step off.
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
from ropewalk.kernels.linear_scan.triton.structures import (
    add,
    adjoint,
    apply,
    choose,
    compose,
    outer,
    zero,
)


@triton.jit
def adjoint_kernel(
    a, states, grad, initial, carries, a_grad, b_grad, initial_grad, cu_seqlens,
    time, channels, blocks, chunks, chunk_steps,
    a_batch, a_time, a_row, a_column, grad_batch, grad_time, grad_part,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr,
    BACKWARDS: tl.constexpr, PACKED: tl.constexpr, INITIAL: tl.constexpr, CARRIES: tl.constexpr,
    OF_A: tl.constexpr, OF_B: tl.constexpr, OF_INITIAL: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of channels, within chunks of time, within sequences.

    Args:
        states: contiguous; read where OF_A.
        initial: (sequences, state), where INITIAL, or zeros.
        carries: float32 (sequences, chunks, state), the y before each chunk, where CARRIES.
        a_grad, b_grad: contiguous; written where OF_A, OF_B.
        initial_grad: (sequences, state); written where OF_INITIAL.
        channels: numbers in a row of a state's part: of complex numbers twice as many.
        BACKWARDS: whether this walk is against the order in memory.
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
    everywhere = (group >= 0) & within
    first_step = chunk * chunk_steps
    last_step = tl.minimum(length, first_step + chunk_steps)

    wide = tl.cast(channels, tl.int64)
    a_stride, grad_stride = signed(a_time, BACKWARDS), signed(grad_time, BACKWARDS)
    x_stride = signed(wide * PARTS, BACKWARDS)
    a_at = a + batch * a_batch + start * a_time + (first_step + group) * a_stride + columns
    v_at = grad + batch * grad_batch + start * grad_time
    v_at += (first_step + group) * grad_stride + columns
    place = (batch * time + start) * wide * PARTS + (first_step + group) * x_stride
    x_at = states + place + x_stride + columns
    if OF_B:
        b_grad_at = b_grad + place + columns
    if OF_A:
        a_grad_at = a_grad + place * PARTS + columns

    of_sequence = sequence.to(tl.int64) * wide * PARTS + columns + group * 0
    before_all = zero(GROUPS, CHANNELS, STRUCTURE)
    if INITIAL:
        before_all = load_state(initial + of_sequence, wide, everywhere, STRUCTURE)
    carry = zero(GROUPS, CHANNELS, STRUCTURE)
    if CARRIES:
        at = (sequence.to(tl.int64) * chunks + chunk) * wide * PARTS + columns + group * 0
        carry = load_state(carries + at, wide, everywhere, STRUCTURE)

    for tile in range(first_step, last_step, GROUPS * ROWS):
        coefficients, given, before = (), (), ()
        for i in tl.static_range(ROWS):
            step = tile + group + i
            exists = step < last_step
            inside = exists & within
            loaded = load_coefficient(a_at, a_row, a_column, exists, inside, STRUCTURE)
            coefficients += (adjoint(loaded, STRUCTURE),)
            given += (load_state(v_at, grad_part, inside, STRUCTURE),)
            if OF_A:
                x = load_state(x_at, wide, inside & (step + 1 < length), STRUCTURE)
                if INITIAL:
                    x = choose(step + 1 == length, before_all, x, STRUCTURE)
                before += (x,)
                x_at += x_stride
            a_at += a_stride
            v_at += grad_stride
        y = carry
        if GROUPS > 1:
            product = coefficients[0]
            end = apply(product, given[0], STRUCTURE)
            for i in tl.static_range(1, ROWS):
                product = compose(coefficients[i], product, STRUCTURE)
                g = add(given[i], end, STRUCTURE)
                end = apply(coefficients[i], g, STRUCTURE)
            y, carry = entries(product, end, carry, GROUPS, CHANNELS, STRUCTURE)
        for i in tl.static_range(ROWS):
            inside = (tile + group + i < last_step) & within
            g = add(given[i], y, STRUCTURE)
            y = apply(coefficients[i], g, STRUCTURE)
            if OF_B:
                store_parts(b_grad_at, wide, g, inside, STRUCTURE)
                b_grad_at += x_stride
            if OF_A:
                found = outer(g, before[i], STRUCTURE)
                store_parts(a_grad_at, wide, found, inside, STRUCTURE)
                a_grad_at += x_stride * PARTS
        if GROUPS == 1:
            carry = y
        a_at += (GROUPS - 1) * ROWS * a_stride
        v_at += (GROUPS - 1) * ROWS * grad_stride
        if OF_A:
            x_at += (GROUPS - 1) * ROWS * x_stride
            a_grad_at += (GROUPS - 1) * ROWS * x_stride * PARTS
        if OF_B:
            b_grad_at += (GROUPS - 1) * ROWS * x_stride
    if OF_INITIAL:
        holds_the_end = chunk == tl.maximum(length - 1, 0) // chunk_steps
        one = (group == 0) & within & holds_the_end
        store_parts(initial_grad + of_sequence, wide, carry, one, STRUCTURE)
