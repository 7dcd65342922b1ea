"""Long short-term memory; its equations are in cells/lstm.py.

Flat arrays as in gru.py. A state is two rows of channels, c and h; those of v are `v_part` apart.
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

# Rows of the scratch array: weights, their gradients, the inputs' gradients, and pairs of states.
A_F, A_Z, A_O, C_F, C_O = range(5)
SUMS, OF_F, OF_Z, OF_O, STATE, CARRY, OLD, GUESS, RESIDUAL = 5, 10, 11, 12, 13, 15, 17, 19, 21
ROWS = 22


@inlined
def _gates(x_f, x_z, x_o, cell, h, weights):
    """f, z, c', o, tanh c'."""
    a_f, a_z, a_o, c_f, c_o = weights
    f = sigmoid(x_f + a_f * h + c_f * cell)
    z = tanh(x_z + a_z * h)
    new = z + f * (cell - z)
    return f, z, new, sigmoid(x_o + a_o * h + c_o * new), tanh(new)


@inlined
def _weights(scratch, c):
    return scratch[A_F, c], scratch[A_Z, c], scratch[A_O, c], scratch[C_F, c], scratch[C_O, c]


@inlined
def _load_pair(scratch, row, memory, at, channels, size):
    load(scratch, row, memory, at, size)
    load(scratch, row + 1, memory, at + channels, size)


@inlined
def _store_pair(scratch, row, memory, at, channels, size):
    store(scratch, row, memory, at, size)
    store(scratch, row + 1, memory, at + channels, size)


@Loop
def sequential(x, x_begins, x_step, x_gate, weights, states, begins, step, *rest):
    """Writes the states."""
    initial, lengths, channels, width, first, end = rest
    scratch = np.empty((ROWS, ROW), states.dtype)
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        for row in range(5):
            load(scratch, A_F + row, weights, row * channels + low, size)
        _load_pair(scratch, STATE, initial, 2 * sequence * channels + low, channels, size)
        for t in range(lengths[sequence]):
            at = x_begins[sequence] + t * x_step + low
            x_f = x[at : at + size]
            x_z = x[at + x_gate : at + x_gate + size]
            x_o = x[at + 2 * x_gate : at + 2 * x_gate + size]
            for c in range(size):
                cell, h = scratch[STATE, c], scratch[STATE + 1, c]
                w = _weights(scratch, c)
                _, _, new, o, shown = _gates(x_f[c], x_z[c], x_o[c], cell, h, w)
                scratch[STATE, c] = new
                scratch[STATE + 1, c] = o * shown
            at = begins[sequence] + t * step + low
            _store_pair(scratch, STATE, states, at, channels, size)


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
        for row in range(5):
            load(scratch, A_F + row, weights, row * channels + low, size)
        _load_pair(scratch, CARRY, initial, 2 * sequence * channels + low, channels, size)
        for begin in range(0, lengths[sequence], window):
            stop = min(begin + window, lengths[sequence])
            for t in range(begin, stop):
                at = begins[sequence] + t * step + low
                _store_pair(scratch, CARRY, states, at, channels, size)
            limit, iteration = min(most, stop - begin), 0
            # One pass more, if none met the tolerance, says what is left.
            for number in range(limit + 1):
                clear(scratch, RESIDUAL, 1, size)
                for part in range(2):
                    for c in range(size):
                        scratch[OLD + part, c] = scratch[CARRY + part, c]
                        scratch[STATE + part, c] = scratch[CARRY + part, c]
                for t in range(begin, stop):
                    at = x_begins[sequence] + t * x_step + low
                    x_f = x[at : at + size]
                    x_z = x[at + x_gate : at + x_gate + size]
                    x_o = x[at + 2 * x_gate : at + 2 * x_gate + size]
                    at = begins[sequence] + t * step + low
                    _load_pair(scratch, GUESS, states, at, channels, size)
                    for c in range(size):
                        cell, h = scratch[OLD, c], scratch[OLD + 1, c]
                        w = _weights(scratch, c)
                        f, z, new, o, shown = _gates(x_f[c], x_z[c], x_o[c], cell, h, w)
                        value = o * shown
                        guess, h_guess = scratch[GUESS, c], scratch[GUESS + 1, c]
                        worst = greater(abs(new - guess), abs(value - h_guess))
                        scratch[RESIDUAL, c] = greater(scratch[RESIDUAL, c], worst)
                        of_f = (cell - z) * f * (ONE - f)
                        of_z = (ONE - f) * (ONE - z * z)
                        of_o = shown * o * (ONE - o)
                        through = o * (ONE - shown * shown) + of_o * w[4]
                        cell_off, h_off = scratch[STATE, c] - cell, scratch[STATE + 1, c] - h
                        moved = (f + of_f * w[3]) * cell_off + (of_f * w[0] + of_z * w[1]) * h_off
                        scratch[STATE, c] = finite(new + moved, new)
                        moved = through * moved + of_o * w[2] * h_off
                        scratch[STATE + 1, c] = finite(value + moved, value)
                        scratch[OLD, c], scratch[OLD + 1, c] = guess, h_guess
                    if number < limit:
                        _store_pair(scratch, STATE, states, at, channels, size)
                if number < limit:
                    iteration += 1
                if converged(scratch, RESIDUAL, size, tolerance):
                    break
            chain = sequence * channels + low
            report(scratch, RESIDUAL, size, iteration, chain, iterations, residual)
            at = begins[sequence] + (stop - 1) * step + low
            _load_pair(scratch, CARRY, states, at, channels, size)


@Loop
def backward(
    x, x_begins, x_step, x_gate, weights, v, v_begins, v_step, v_part, states, begins, step, *rest
):
    """From the gradient v of the states: those of inputs, weights (`sums`) and initial states."""
    initial, x_grad, grad_begins, grad_step, initial_grad, sums = rest[:6]
    lengths, channels, width, first, end = rest[6:]
    scratch = np.empty((ROWS, ROW), states.dtype)
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        start = 2 * sequence * channels + low
        for row in range(5):
            load(scratch, A_F + row, weights, row * channels + low, size)
        clear(scratch, SUMS, 5, size)
        clear(scratch, CARRY, 2, size)
        for t in range(lengths[sequence] - 1, -1, -1):
            at = x_begins[sequence] + t * x_step + low
            x_f = x[at : at + size]
            x_z = x[at + x_gate : at + x_gate + size]
            x_o = x[at + 2 * x_gate : at + 2 * x_gate + size]
            at = v_begins[sequence] + t * v_step + low
            v_cell, v_h = v[at : at + size], v[at + v_part : at + v_part + size]
            if t > 0:
                before = begins[sequence] + (t - 1) * step + low
                _load_pair(scratch, STATE, states, before, channels, size)
            else:
                _load_pair(scratch, STATE, initial, start, channels, size)
            for c in range(size):
                cell, h = scratch[STATE, c], scratch[STATE + 1, c]
                w = _weights(scratch, c)
                f, z, new, o, shown = _gates(x_f[c], x_z[c], x_o[c], cell, h, w)
                g = v_h[c] + scratch[CARRY + 1, c]
                of_o = g * shown * o * (ONE - o)
                of_new = v_cell[c] + scratch[CARRY, c]
                of_new += g * o * (ONE - shown * shown) + of_o * w[4]
                of_f = of_new * (cell - z) * f * (ONE - f)
                of_z = of_new * (ONE - f) * (ONE - z * z)
                scratch[OF_F, c], scratch[OF_Z, c], scratch[OF_O, c] = of_f, of_z, of_o
                scratch[SUMS, c] += of_f * h
                scratch[SUMS + 1, c] += of_z * h
                scratch[SUMS + 2, c] += of_o * h
                scratch[SUMS + 3, c] += of_f * cell
                scratch[SUMS + 4, c] += of_o * new
                scratch[CARRY, c] = of_new * f + of_f * w[3]
                scratch[CARRY + 1, c] = of_f * w[0] + of_z * w[1] + of_o * w[2]
            at = grad_begins[sequence] + t * grad_step + low
            for gate in range(3):
                store(scratch, OF_F + gate, x_grad, at + gate * channels, size)
            if t % SUMMED_STEPS == 0:
                flush(scratch, SUMS, 5, sums, channels, low, size)
        _store_pair(scratch, CARRY, initial_grad, start, channels, size)
