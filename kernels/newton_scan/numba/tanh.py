"""h' = tanh(x + w h). Flat arrays as in gru.py."""

import numpy as np

from ropewalk.kernels.compiled.compiler import Loop
from ropewalk.kernels.compiled.functions import ONE, tanh
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

# Rows of the scratch array.
W, SUM, OF_X, STATE, CARRY, OLD, GUESS, RESIDUAL = range(8)
ROWS = 8


@Loop
def sequential(x, x_begins, x_step, x_gate, weights, states, begins, step, *rest):
    """Writes the states."""
    initial, lengths, channels, width, first, end = rest
    scratch = np.empty((ROWS, ROW), states.dtype)
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        load(scratch, W, weights, low, size)
        load(scratch, STATE, initial, sequence * channels + low, size)
        for t in range(lengths[sequence]):
            at = x_begins[sequence] + t * x_step + low
            row = x[at : at + size]
            for c in range(size):
                scratch[STATE, c] = tanh(row[c] + scratch[W, c] * scratch[STATE, c])
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
        load(scratch, W, weights, low, size)
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
                    row = x[at : at + size]
                    at = begins[sequence] + t * step + low
                    load(scratch, GUESS, states, at, size)
                    for c in range(size):
                        h, guess = scratch[OLD, c], scratch[GUESS, c]
                        value = tanh(row[c] + scratch[W, c] * h)
                        scratch[RESIDUAL, c] = greater(scratch[RESIDUAL, c], abs(value - guess))
                        slope = (ONE - value * value) * scratch[W, c]
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
        load(scratch, W, weights, low, size)
        clear(scratch, SUM, 1, size)
        clear(scratch, CARRY, 1, size)
        for t in range(lengths[sequence] - 1, -1, -1):
            at = x_begins[sequence] + t * x_step + low
            row = x[at : at + size]
            at = v_begins[sequence] + t * v_step + low
            v_row = v[at : at + size]
            before = begins[sequence] + (t - 1) * step + low
            previous = states[before : before + size] if t > 0 else first_state
            for c in range(size):
                h = previous[c]
                value = tanh(row[c] + scratch[W, c] * h)
                of_x = (v_row[c] + scratch[CARRY, c]) * (ONE - value * value)
                scratch[OF_X, c] = of_x
                scratch[SUM, c] += of_x * h
                scratch[CARRY, c] = of_x * scratch[W, c]
            store(scratch, OF_X, x_grad, grad_begins[sequence] + t * grad_step + low, size)
            if t % SUMMED_STEPS == 0:
                flush(scratch, SUM, 1, sums, channels, low, size)
        store(scratch, CARRY, initial_grad, start, size)
