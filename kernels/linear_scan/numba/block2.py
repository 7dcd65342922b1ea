"""x_t = A_t x_(t−1) + b_t with a 2×2 matrix for each channel, and its adjoint.

As diagonal.py. The four entries of A, and the two of a vector, are rows of channels: `a_rows` is
how far the matrix's rows and columns lie apart, `b_rows` the same of a vector's entries.
"""

import numpy as np

from ropewalk.kernels.compiled.compiler import Loop


@Loop
def forward(a, a_begins, a_step, a_rows, b, b_begins, b_step, b_rows, states, begins, step, *rest):
    """Writes the states, (batch, time, 2, channels)."""
    initial, lengths, channels, width, first, end = rest
    blocks = -(-channels // width)
    down, right = a_rows
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        at = 2 * sequence * channels + low
        previous0 = initial[at : at + size]
        previous1 = initial[at + channels : at + channels + size]
        for t in range(lengths[sequence]):
            at = begins[sequence] + t * step + low
            state0, state1 = states[at : at + size], states[at + channels : at + channels + size]
            a_at = a_begins[sequence] + t * a_step + low
            b_at = b_begins[sequence] + t * b_step + low
            a0, a1 = a[a_at : a_at + size], a[a_at + right : a_at + right + size]
            b_row = b[b_at : b_at + size]
            for c in range(size):
                state0[c] = a0[c] * previous0[c] + a1[c] * previous1[c] + b_row[c]
            a_at, b_at = a_at + down, b_at + b_rows
            a0, a1 = a[a_at : a_at + size], a[a_at + right : a_at + right + size]
            b_row = b[b_at : b_at + size]
            for c in range(size):
                state1[c] = a0[c] * previous0[c] + a1[c] * previous1[c] + b_row[c]
            previous0, previous1 = state0, state1


@Loop
def backward(a, a_begins, a_step, a_rows, v, v_begins, v_step, v_rows, states, begins, step, *rest):
    """From the gradient v of the states: b_grad, a_grad if wanted, and A_1ᴴ g_1 in `carry`."""
    initial, a_grad, needs_a, b_grad, carry, lengths, channels, width, first, end = rest
    blocks = -(-channels // width)
    down, right = a_rows
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        start = 2 * sequence * channels + low
        for t in range(lengths[sequence] - 1, -1, -1):
            at = begins[sequence] + t * step + low
            v_at = v_begins[sequence] + t * v_step + low
            for i in range(2):
                lies, of_v = at + i * channels, v_at + i * v_rows
                adjoint, v_row = b_grad[lies : lies + size], v[of_v : of_v + size]
                where = start + i * channels
                carried = carry[where : where + size]
                for c in range(size):
                    adjoint[c] = v_row[c] + carried[c]
            g0, g1 = b_grad[at : at + size], b_grad[at + channels : at + channels + size]
            a_at = a_begins[sequence] + t * a_step + low
            for j in range(2):
                upper, lower = a_at + j * right, a_at + j * right + down
                a0, a1 = a[upper : upper + size], a[lower : lower + size]
                where = start + j * channels
                carried = carry[where : where + size]
                for c in range(size):
                    carried[c] = np.conj(a0[c]) * g0[c] + np.conj(a1[c]) * g1[c]
            if needs_a:
                for j in range(2):
                    where = start + j * channels
                    before = at - step + j * channels
                    previous = initial[where : where + size]
                    if t > 0:
                        previous = states[before : before + size]
                    # Entry (i, j) of a_grad lies at row 2 i + j, and its step is twice the states'.
                    entry = 2 * (at - low) + j * channels + low
                    for i in range(2):
                        g = g0 if i == 0 else g1
                        lies = entry + 2 * i * channels
                        entry_grad = a_grad[lies : lies + size]
                        for c in range(size):
                            entry_grad[c] = g[c] * np.conj(previous[c])
