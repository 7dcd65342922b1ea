"""x_t = A_t x_(t−1) + b_t with a matrix for each step, and its adjoint.

As diagonal.py; a task is a sequence. Sums along a row of A are in the order of the vectors'
lanes.
"""

import numpy as np

from ropewalk.kernels.compiled.compiler import Loop, ReorderedLoop


@ReorderedLoop
def forward(a, a_begins, a_step, a_row, b, b_begins, b_step, states, begins, step, *rest):
    """Writes the states, (batch, time, channels)."""
    initial, lengths, channels, first, end = rest
    for sequence in range(first, end):
        previous = initial[sequence * channels : (sequence + 1) * channels]
        for t in range(lengths[sequence]):
            at = begins[sequence] + t * step
            b_at = b_begins[sequence] + t * b_step
            state, b_now = states[at : at + channels], b[b_at : b_at + channels]
            for i in range(channels):
                a_at = a_begins[sequence] + t * a_step + i * a_row
                row = a[a_at : a_at + channels]
                total = b_now[i]
                for j in range(channels):
                    total += row[j] * previous[j]
                state[i] = total
            previous = state


@Loop
def backward(a, a_begins, a_step, a_row, v, v_begins, v_step, states, begins, step, *rest):
    """From the gradient v of the states: b_grad, a_grad if wanted, and A_1ᴴ g_1 in `carry`."""
    initial, a_grad, needs_a, b_grad, carry, lengths, channels, first, end = rest
    for sequence in range(first, end):
        start = sequence * channels
        first_previous = initial[start : start + channels]
        carried = carry[start : start + channels]
        for t in range(lengths[sequence] - 1, -1, -1):
            at = begins[sequence] + t * step
            v_at = v_begins[sequence] + t * v_step
            adjoint, v_now = b_grad[at : at + channels], v[v_at : v_at + channels]
            for i in range(channels):
                adjoint[i] = v_now[i] + carried[i]
            carried[:] = 0
            for i in range(channels):
                a_at = a_begins[sequence] + t * a_step + i * a_row
                row = a[a_at : a_at + channels]
                g = adjoint[i]
                for j in range(channels):
                    carried[j] += np.conj(row[j]) * g
            if needs_a:
                before = at - step
                previous = states[before : before + channels] if t > 0 else first_previous
                for i in range(channels):
                    g, lies = adjoint[i], (at + i) * channels
                    row_grad = a_grad[lies : lies + channels]
                    for j in range(channels):
                        row_grad[j] = g * np.conj(previous[j])
