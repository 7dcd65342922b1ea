"""Kernel: all gradients in one pass against time, with gates computed again.

    g_s = v_s + y_(s−1)    y_s = J_sᵀ g_s    and the pullback of g_s for inputs and weights

s counts steps in the order of this walk, v is the gradient of the states. J is taken at the
solution, so the gradient is exact whatever found it. What is carried is y, which ends as the
gradient of the initial state. With several groups the Jacobians are multiplied first, and a scan
gives the y before each group; with one, steps are taken in turn. Sums for the weights are float32,
one for each sequence and channel, in an order that is always the same.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_scan.triton.groups import entries
from ropewalk.kernels.linear_scan.triton.memory import load_state, span, store_parts
from ropewalk.kernels.linear_scan.triton.structures import (
    add,
    adjoint,
    apply,
    choose,
    compose,
    identity,
    zero,
)
from ropewalk.kernels.newton_scan.triton.cells.cell import linearise, pullback
from ropewalk.kernels.newton_scan.triton.memory import load_parts
from ropewalk.kernels.newton_scan.triton.newton import or_one


@triton.jit
def adjoint_kernel(
    inputs, weights, initial, states, grad, input_grad, weight_parts, initial_grad, cu_seqlens,
    time, channels, blocks, input_batch, input_time, input_gate,
    grad_batch, grad_time, grad_part,
    CELL: tl.constexpr, STRUCTURE: tl.constexpr, GATES: tl.constexpr, WEIGHTS: tl.constexpr,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    PACKED: tl.constexpr, INITIAL: tl.constexpr,
    OF_INPUTS: tl.constexpr, OF_WEIGHTS: tl.constexpr, OF_INITIAL: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of channels, within sequences.

    Args:
        input_grad: contiguous; written where OF_INPUTS.
        weight_parts: float32 (sequences, rows, channels); written where OF_WEIGHTS.
        initial_grad: (sequences, state); written where OF_INITIAL.
    """
    PARTS: tl.constexpr = 1 + (STRUCTURE == "block2")
    program = tl.program_id(0)
    block = program % blocks
    sequence = program // blocks
    batch, first, length = span(cu_seqlens, sequence, time, PACKED)
    last = first + length - 1
    columns = block * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    within = columns < channels
    group = tl.arange(0, GROUPS)[:, None] * ROWS
    everywhere = (group >= 0) & within
    wide = tl.cast(channels, tl.int64)
    x_stride, v_stride = tl.cast(input_time, tl.int64), tl.cast(grad_time, tl.int64)
    h_stride, d_stride = wide * PARTS, wide * GATES
    x_at = inputs + batch * input_batch + (last - group) * x_stride + columns
    v_at = grad + batch * grad_batch + (last - group) * v_stride + columns
    h_at = states + (batch * time + last - 1 - group) * h_stride + columns
    if OF_INPUTS:
        d_at = input_grad + (batch * time + last - group) * d_stride + columns
    w = load_parts(weights + columns, wide, within, WEIGHTS)
    of_sequence = sequence.to(tl.int64) * h_stride + columns + group * 0
    start = zero(GROUPS, CHANNELS, STRUCTURE)
    if INITIAL:
        start = load_state(initial + of_sequence, wide, everywhere, STRUCTURE)
    carry = zero(GROUPS, CHANNELS, STRUCTURE)
    sums = ()
    for _row in tl.static_range(WEIGHTS):
        sums += (tl.zeros([GROUPS, CHANNELS], tl.float32),)

    for tile in range(0, length, GROUPS * ROWS):
        x_rows, h_rows, v_rows = (), (), ()
        for i in tl.static_range(ROWS):
            step = tile + group + i
            inside = (step < length) & within
            x_rows += (load_parts(x_at, input_gate, inside, GATES),)
            v_rows += (load_state(v_at, grad_part, inside, STRUCTURE),)
            h = load_state(h_at, wide, inside & (step + 1 < length), STRUCTURE)
            if INITIAL:
                h = choose(step + 1 == length, start, h, STRUCTURE)
            h_rows += (h,)
            x_at -= x_stride
            v_at -= v_stride
            h_at -= h_stride
        y = carry
        if GROUPS > 1:
            product = identity(GROUPS, CHANNELS, STRUCTURE)
            end = zero(GROUPS, CHANNELS, STRUCTURE)
            for i in tl.static_range(ROWS):
                _, slopes = linearise(x_rows[i], h_rows[i], w, CELL)
                slopes = or_one(tile + group + i < length, slopes, STRUCTURE)
                slopes = adjoint(slopes, STRUCTURE)
                product = compose(slopes, product, STRUCTURE)
                end = apply(slopes, add(v_rows[i], end, STRUCTURE), STRUCTURE)
            y, carry = entries(product, end, carry, GROUPS, CHANNELS, STRUCTURE)
        for i in tl.static_range(ROWS):
            exists = tile + group + i < length
            g = add(v_rows[i], y, STRUCTURE)
            of_x, of_w, back = pullback(x_rows[i], h_rows[i], w, g, CELL)
            y = choose(exists, back, y, STRUCTURE)
            if OF_INPUTS:
                store_parts(d_at, wide, of_x, exists & within, "gates")
                d_at -= d_stride
            if OF_WEIGHTS:
                total = ()
                for row in tl.static_range(WEIGHTS):
                    total += (sums[row] + tl.where(exists, of_w[row], 0.0),)
                sums = total
        if GROUPS == 1:
            carry = y
        x_at -= (GROUPS - 1) * ROWS * x_stride
        v_at -= (GROUPS - 1) * ROWS * v_stride
        h_at -= (GROUPS - 1) * ROWS * h_stride
        if OF_INPUTS:
            d_at -= (GROUPS - 1) * ROWS * d_stride

    if OF_WEIGHTS:
        at = weight_parts + sequence.to(tl.int64) * (wide * WEIGHTS) + columns
        for row in tl.static_range(WEIGHTS):
            tl.store(at + row * wide, tl.sum(sums[row], axis=0)[None, :], mask=within)
    if OF_INITIAL:
        one = (group == 0) & within
        store_parts(initial_grad + of_sequence, wide, carry, one, STRUCTURE)
