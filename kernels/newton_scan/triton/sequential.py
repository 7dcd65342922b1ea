"""Kernel: one step after another, a thread for each chain; what comes next is already under way.

A step's time is the latency of its arithmetic; the loads of the next ROWS steps are begun before
the steps of these are taken, so that memory is waited for only at the start.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_scan.triton.memory import load_state, span, store_parts
from ropewalk.kernels.linear_scan.triton.structures import choose, zero
from ropewalk.kernels.newton_scan.triton.cells.cell import linearise
from ropewalk.kernels.newton_scan.triton.memory import load_parts


@triton.jit
def _load_rows(at, stride, gate, steps, within, GATES: tl.constexpr, ROWS: tl.constexpr):
    """The inputs of the next ROWS steps, as far as there are so many."""
    rows = ()
    for i in tl.static_range(ROWS):
        rows += (load_parts(at + i * stride, gate, (i < steps) & within, GATES),)
    return rows


@triton.jit
def sequential_kernel(
    inputs, weights, initial, states, cu_seqlens,
    time, channels, blocks, input_batch, input_time, input_gate,
    CELL: tl.constexpr, STRUCTURE: tl.constexpr, GATES: tl.constexpr, WEIGHTS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, PACKED: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of channels, within sequences. Arguments as in `newton_kernel`."""
    PARTS: tl.constexpr = 1 + (STRUCTURE == "block2")
    program = tl.program_id(0)
    block = program % blocks
    sequence = program // blocks
    batch, first, length = span(cu_seqlens, sequence, time, PACKED)
    columns = block * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    within = columns < channels
    wide = tl.cast(channels, tl.int64)
    x_stride, h_stride = tl.cast(input_time, tl.int64), wide * PARTS
    x_at = inputs + batch * input_batch + first * x_stride + columns
    h_at = states + (batch * time + first) * h_stride + columns
    w = load_parts(weights + columns, wide, within, WEIGHTS)
    state = zero(1, CHANNELS, STRUCTURE)
    if INITIAL:
        at = initial + sequence.to(tl.int64) * h_stride + columns
        state = load_state(at, wide, within, STRUCTURE)

    following = _load_rows(x_at, x_stride, input_gate, length, within, GATES, ROWS)
    for begin in range(0, length, ROWS):
        rows = following
        x_at += ROWS * x_stride
        left = length - begin - ROWS
        following = _load_rows(x_at, x_stride, input_gate, left, within, GATES, ROWS)
        for i in tl.static_range(ROWS):
            exists = begin + i < length
            new, _ = linearise(rows[i], state, w, CELL)
            state = choose(exists, new, state, STRUCTURE)
            store_parts(h_at, wide, state, exists & within, STRUCTURE)
            h_at += h_stride
