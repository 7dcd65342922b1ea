"""The gated recurrent unit; its equations are in cells/gru.py.

Flat arrays, `begins` of each sequence in them, and the distance of a step. Gates of the inputs are
`x_gate` apart; states, weights, and gradients lie without gaps.
"""

import numpy as np

from ropewalk.kernels.compiled.compiler import Loop, inlined
from ropewalk.kernels.compiled.functions import ONE, sigmoid, tanh
from ropewalk.kernels.newton_scan.numba.scratch import (
    ROW,
    SUMMED_STEPS,
    clear,
    converged,
    finite,
    flush,
    greater,
    load,
    report,
    store,
)

# Rows of the scratch array: weights, their gradients, the inputs' gradients, and states.
W_R, W_Z, W_N, B_N = range(4)
SUMS, OF_R, OF_Z, OF_N, STATE, CARRY, OLD, GUESS, RESIDUAL = 4, 8, 9, 10, 11, 12, 13, 14, 15
ROWS = 16


@inlined
def _gates(x_r, x_z, x_n, h, w_r, w_z, inner):
    r = sigmoid(x_r + w_r * h)
    z = sigmoid(x_z + w_z * h)
    return r, z, tanh(x_n + r * inner)


@Loop
def sequential(x, x_begins, x_step, x_gate, weights, states, begins, step, *rest):
    """Writes the states."""
    initial, lengths, channels, width, first, end = rest
    scratch = np.empty((ROWS, ROW), states.dtype)
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        for row in range(4):
            load(scratch, W_R + row, weights, row * channels + low, size)
        load(scratch, STATE, initial, sequence * channels + low, size)
        for t in range(lengths[sequence]):
            at = x_begins[sequence] + t * x_step + low
            x_r = x[at : at + size]
            x_z = x[at + x_gate : at + x_gate + size]
            x_n = x[at + 2 * x_gate : at + 2 * x_gate + size]
            for c in range(size):
                h = scratch[STATE, c]
                inner = scratch[W_N, c] * h + scratch[B_N, c]
                _, z, n = _gates(x_r[c], x_z[c], x_n[c], h, scratch[W_R, c], scratch[W_Z, c], inner)
                scratch[STATE, c] = n + z * (h - n)
            store(scratch, STATE, states, begins[sequence] + t * step + low, size)


@Loop
def newton(x, x_begins, x_step, x_gate, weights, states, begins, step, *rest):
    """Writes the states; windows one after another, each by Newton's method."""
    initial, window, most, tolerance, iterations, residual = rest[:6]
    lengths, channels, width, first, end = rest[6:]
    scratch = np.empty((ROWS, ROW), states.dtype)
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        chain = sequence * channels + low
        for row in range(4):
            load(scratch, W_R + row, weights, row * channels + low, size)
        load(scratch, CARRY, initial, chain, size)
        for begin in range(0, lengths[sequence], window):
            stop = min(begin + window, lengths[sequence])
            for t in range(begin, stop):
                store(scratch, CARRY, states, begins[sequence] + t * step + low, size)
            limit, iteration = min(most, stop - begin), 0
            # One pass more, if none met the tolerance, says what is left.
            for number in range(limit + 1):
                clear(scratch, RESIDUAL, 1, size)
                for c in range(size):
                    scratch[OLD, c] = scratch[CARRY, c]
                    scratch[STATE, c] = scratch[CARRY, c]
                for t in range(begin, stop):
                    at = x_begins[sequence] + t * x_step + low
                    x_r = x[at : at + size]
                    x_z = x[at + x_gate : at + x_gate + size]
                    x_n = x[at + 2 * x_gate : at + 2 * x_gate + size]
                    at = begins[sequence] + t * step + low
                    load(scratch, GUESS, states, at, size)
                    for c in range(size):
                        h, w_r, w_z = scratch[OLD, c], scratch[W_R, c], scratch[W_Z, c]
                        w_n = scratch[W_N, c]
                        inner = w_n * h + scratch[B_N, c]
                        r, z, n = _gates(x_r[c], x_z[c], x_n[c], h, w_r, w_z, inner)
                        value = n + z * (h - n)
                        of_n = (ONE - z) * (ONE - n * n) * r
                        slope = z + of_n * (w_n + inner * (ONE - r) * w_r)
                        slope += (h - n) * z * (ONE - z) * w_z
                        guess = scratch[GUESS, c]
                        scratch[RESIDUAL, c] = greater(scratch[RESIDUAL, c], abs(value - guess))
                        solved = value + slope * (scratch[STATE, c] - h)
                        scratch[STATE, c] = finite(solved, value)
                        scratch[OLD, c] = guess
                    if number < limit:
                        store(scratch, STATE, states, at, size)
                if number < limit:
                    iteration += 1
                if converged(scratch, RESIDUAL, size, tolerance):
                    break
            report(scratch, RESIDUAL, size, iteration, chain, iterations, residual)
            load(scratch, CARRY, states, begins[sequence] + (stop - 1) * step + low, size)


@Loop
def backward(
    x, x_begins, x_step, x_gate, weights, v, v_begins, v_step, states, begins, step, *rest
):
    """From the gradient v of the states: those of inputs, weights (`sums`) and initial states."""
    initial, x_grad, grad_begins, grad_step, initial_grad, sums = rest[:6]
    lengths, channels, width, first, end = rest[6:]
    scratch = np.empty((ROWS, ROW), states.dtype)
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        start = sequence * channels + low
        first_state = initial[start : start + size]
        for row in range(4):
            load(scratch, W_R + row, weights, row * channels + low, size)
        clear(scratch, SUMS, 4, size)
        clear(scratch, CARRY, 1, size)
        for t in range(lengths[sequence] - 1, -1, -1):
            at = x_begins[sequence] + t * x_step + low
            x_r = x[at : at + size]
            x_z = x[at + x_gate : at + x_gate + size]
            x_n = x[at + 2 * x_gate : at + 2 * x_gate + size]
            at = v_begins[sequence] + t * v_step + low
            v_row = v[at : at + size]
            before = begins[sequence] + (t - 1) * step + low
            previous = states[before : before + size] if t > 0 else first_state
            for c in range(size):
                h, w_r, w_z, w_n = previous[c], scratch[W_R, c], scratch[W_Z, c], scratch[W_N, c]
                g = v_row[c] + scratch[CARRY, c]
                inner = w_n * h + scratch[B_N, c]
                r, z, n = _gates(x_r[c], x_z[c], x_n[c], h, w_r, w_z, inner)
                keep = g * (ONE - z)
                of_z = keep * (h - n) * z
                of_n = keep * (ONE - n * n)
                of_r = of_n * inner * r * (ONE - r)
                through = of_n * r
                scratch[OF_R, c], scratch[OF_Z, c], scratch[OF_N, c] = of_r, of_z, of_n
                scratch[SUMS, c] += of_r * h
                scratch[SUMS + 1, c] += of_z * h
                scratch[SUMS + 2, c] += through * h
                scratch[SUMS + 3, c] += through
                scratch[CARRY, c] = z * g + through * w_n + of_r * w_r + of_z * w_z
            at = grad_begins[sequence] + t * grad_step + low
            for gate in range(3):
                store(scratch, OF_R + gate, x_grad, at + gate * channels, size)
            if t % SUMMED_STEPS == 0:
                flush(scratch, SUMS, 4, sums, channels, low, size)
        store(scratch, CARRY, initial_grad, start, size)
