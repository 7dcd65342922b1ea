"""Kernel: Newton's method inside windows, one after another; the last state is carried on.

    r_t = f(h_(t−1), x_t) − h_t    δ_t = J_t δ_(t−1) + r_t    h_t ← f(h_(t−1), x_t) + J_t δ_(t−1)

A program has a block of a sequence's channels. It loads a window's inputs once, and iterates cell,
Jacobian and scan in registers, in the groups of rows that `linear_scan/triton/groups.py` describes.
Once the step before is exact, δ_(t−1) is 0 and the state is f's, to the last bit; h_t + δ_t would
lose f's digits beside those of a guess that is far off. Where J δ overflows, a state becomes f's
too. So after k iterations the first k steps are exact, and as many as a window has always end. The
states before groups are copies of their neighbours' last ones after every iteration: were they
updated by themselves, rounding would part the two.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_scan.triton.groups import entries
from ropewalk.kernels.linear_scan.triton.memory import load_state, span, store_parts
from ropewalk.kernels.linear_scan.triton.structures import (
    add,
    apply,
    choose,
    compose,
    identity,
    zero,
)
from ropewalk.kernels.newton_scan.triton.cells.cell import linearise
from ropewalk.kernels.newton_scan.triton.memory import greatest, load_parts


@triton.jit
def _minus(x, y, STRUCTURE: tl.constexpr):
    """The state x − y."""
    return (x[0] - y[0],) if STRUCTURE == "real" else (x[0] - y[0], x[1] - y[1])


@triton.jit
def _finite(x, otherwise, STRUCTURE: tl.constexpr):
    """Finite parts of the state x, else those of another."""
    if STRUCTURE == "real":
        z = (tl.where(tl.abs(x[0]) < float("inf"), x[0], otherwise[0]),)
    else:
        z = (
            tl.where(tl.abs(x[0]) < float("inf"), x[0], otherwise[0]),
            tl.where(tl.abs(x[1]) < float("inf"), x[1], otherwise[1]),
        )
    return z


@triton.jit
def _row(
    rows, wanted, group, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr
):
    """The state of one step of a window, in all rows of the tile."""
    found = rows[0]
    for i in tl.static_range(1, len(rows)):
        found = choose(group + i == wanted, rows[i], found, STRUCTURE)
    of_group = (group <= wanted) & (wanted < group + len(rows))
    y = ()
    for part in tl.static_range(len(found)):
        row = tl.sum(tl.where(of_group, found[part], 0.0), axis=0)
        y += (tl.broadcast_to(row[None, :], [GROUPS, CHANNELS]),)
    return y


@triton.jit
def or_one(exists, slopes, STRUCTURE: tl.constexpr):
    """A Jacobian, 1 where its step does not exist."""
    if STRUCTURE == "real":
        z = (tl.where(exists, slopes[0], 1.0),)
    else:
        z = (
            tl.where(exists, slopes[0], 1.0),
            tl.where(exists, slopes[1], 0.0),
            tl.where(exists, slopes[2], 0.0),
            tl.where(exists, slopes[3], 1.0),
        )
    return z


@triton.jit
def _shift_real(f, p, x, g, q, y):
    """Of (whether there is a group before, what it has, what this one has): the later one's."""
    return tl.maximum(g, 1.0), tl.where(g > 0.0, q, x), y


@triton.jit
def _shift_block2(f, p0, p1, x0, x1, g, q0, q1, y0, y1):
    inner = g > 0.0
    return tl.maximum(g, 1.0), tl.where(inner, q0, x0), tl.where(inner, q1, x1), y0, y1


@triton.jit
def _behind(x, carry, STRUCTURE: tl.constexpr):
    """What the group before has, the first group the carry; see groups.py for why no gather."""
    alone = tl.zeros_like(x[0])
    if STRUCTURE == "real":
        found = tl.associative_scan((alone, alone, x[0]), 0, _shift_real)
        behind = (found[1],)
    else:
        found = tl.associative_scan((alone, alone, alone, x[0], x[1]), 0, _shift_block2)
        behind = (found[1], found[2])
    return choose(found[0] > 0.0, behind, carry, STRUCTURE)


@triton.jit
def newton_kernel(
    inputs, weights, initial, states, iterations, residual, cu_seqlens,
    time, channels, blocks, window, tolerance, limit, input_batch, input_time, input_gate,
    CELL: tl.constexpr, STRUCTURE: tl.constexpr, GATES: tl.constexpr, WEIGHTS: tl.constexpr,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    PACKED: tl.constexpr, INITIAL: tl.constexpr,
):  # fmt: skip
    """Programs: blocks of channels, within sequences.

    Args:
        weights: (rows, channels), contiguous.
        initial: (sequences, state), contiguous.
        states: contiguous.
        iterations, residual: (sequences, channels).
        window: steps that are solved at once, at most GROUPS · ROWS.
        limit: iterations of a window, at most.
    """
    PARTS: tl.constexpr = 1 + (STRUCTURE == "block2")
    program = tl.program_id(0)
    block = program % blocks
    sequence = program // blocks
    batch, first, length = span(cu_seqlens, sequence, time, PACKED)
    columns = block * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    within = columns < channels
    group = tl.arange(0, GROUPS)[:, None] * ROWS
    everywhere = (group >= 0) & within
    wide = tl.cast(channels, tl.int64)
    x_stride, h_stride = tl.cast(input_time, tl.int64), wide * PARTS
    x_begin = inputs + batch * input_batch + (first + group) * x_stride + columns
    h_begin = states + (batch * time + first + group) * h_stride + columns
    w = load_parts(weights + columns, wide, within, WEIGHTS)
    of_sequence = sequence.to(tl.int64) * h_stride + columns + group * 0
    carry = zero(GROUPS, CHANNELS, STRUCTURE)
    if INITIAL:
        carry = load_state(initial + of_sequence, wide, everywhere, STRUCTURE)
    most = sequence * 0
    worst = tl.zeros([GROUPS, CHANNELS], tl.float32)

    for begin in range(0, length, window):
        last = tl.minimum(window, length - begin)
        x_rows, h_rows = (), ()
        for i in tl.static_range(ROWS):
            inside = (group + i < last) & within
            x_at = x_begin + (begin + i) * x_stride
            x_rows += (load_parts(x_at, input_gate, inside, GATES),)
            h_rows += (carry,)
        entry = carry
        count = sequence * 0
        gap = tolerance * 0.0 + float("inf")
        here = worst
        # What the condition reads is read in the body too: Triton's compiler fails where it is not.
        while (gap > tolerance) & (count <= limit):
            new_rows, slope_rows = (), ()
            before = entry
            product = identity(GROUPS, CHANNELS, STRUCTURE)
            end = zero(GROUPS, CHANNELS, STRUCTURE)
            here = tl.zeros([GROUPS, CHANNELS], tl.float32)
            for i in tl.static_range(ROWS):
                # A step that does not exist leaves the state as it is, which is linear.
                exists = group + i < last
                new, slopes = linearise(x_rows[i], before, w, CELL)
                new = choose(exists, new, before, STRUCTURE)
                slopes = or_one(exists, slopes, STRUCTURE)
                r = _minus(new, h_rows[i], STRUCTURE)
                here = tl.maximum(here, tl.where(exists, greatest(new, h_rows[i]), 0.0))
                new_rows += (new,)
                slope_rows += (slopes,)
                if GROUPS > 1:
                    product = compose(slopes, product, STRUCTURE)
                    end = add(apply(slopes, end, STRUCTURE), r, STRUCTURE)
                before = h_rows[i]
            change = zero(GROUPS, CHANNELS, STRUCTURE)
            if GROUPS > 1:
                change, _ = entries(product, end, change, GROUPS, CHANNELS, STRUCTURE)
            more = (count < limit) & (gap > tolerance)
            updated = ()
            for i in tl.static_range(ROWS):
                moved = add(new_rows[i], apply(slope_rows[i], change, STRUCTURE), STRUCTURE)
                h = _finite(moved, new_rows[i], STRUCTURE)
                change = _minus(h, h_rows[i], STRUCTURE)
                updated += (choose(more, h, h_rows[i], STRUCTURE),)
            h_rows = updated
            if GROUPS > 1:
                entry = _behind(h_rows[ROWS - 1], carry, STRUCTURE)
            count += 1
            gap = tl.max(tl.where(within, here, 0.0))
        for i in tl.static_range(ROWS):
            inside = (group + i < last) & within
            store_parts(h_begin + (begin + i) * h_stride, wide, h_rows[i], inside, STRUCTURE)
        # Not the tile's last row: behind a shorter window it is an iteration late.
        carry = _row(h_rows, last - 1, group, GROUPS, CHANNELS, STRUCTURE)
        most = tl.maximum(most, tl.minimum(count, limit))
        worst = tl.maximum(worst, here)

    at = sequence.to(tl.int64) * channels + columns
    tl.store(residual + at, tl.max(worst, axis=0)[None, :], mask=within)
    tl.store(iterations + at, tl.zeros([1, CHANNELS], tl.int32) + most, mask=within)
