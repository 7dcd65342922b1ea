"""x_t = a_t x_(t−1) + b_t, channel by channel, and its adjoint.

Flat arrays, `begins` of each sequence in them, and the distance of a step; states and gradients lie
as each other, (batch, time, channels) without gaps.
"""

import numpy as np

from ropewalk.kernels.compiled.compiler import Loop


@Loop
def forward(a, a_begins, a_step, b, b_begins, b_step, states, begins, step, *rest):
    """Writes the states."""
    initial, lengths, channels, width, first, end = rest
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        at = sequence * channels + low
        previous = initial[at : at + size]
        for t in range(lengths[sequence]):
            a_at = a_begins[sequence] + t * a_step + low
            b_at = b_begins[sequence] + t * b_step + low
            at = begins[sequence] + t * step + low
            a_row, b_row = a[a_at : a_at + size], b[b_at : b_at + size]
            state = states[at : at + size]
            for c in range(size):
                state[c] = a_row[c] * previous[c] + b_row[c]
            previous = state


@Loop
def backward(a, a_begins, a_step, v, v_begins, v_step, states, begins, step, *rest):
    """From the gradient v of the states: b_grad, a_grad if wanted, and a_1ᴴ g_1 in `carry`.

    The carry is zero before; every inner loop writes one row, so that it becomes vectors.
    """
    initial, a_grad, needs_a, b_grad, carry, lengths, channels, width, first, end = rest
    blocks = -(-channels // width)
    for task in range(first, end):
        sequence, low = task // blocks, task % blocks * width
        size = min(width, channels - low)
        start = sequence * channels + low
        first_previous = initial[start : start + size]
        carried = carry[start : start + size]
        for t in range(lengths[sequence] - 1, -1, -1):
            a_at = a_begins[sequence] + t * a_step + low
            v_at = v_begins[sequence] + t * v_step + low
            at = begins[sequence] + t * step + low
            a_row, v_row = a[a_at : a_at + size], v[v_at : v_at + size]
            adjoint = b_grad[at : at + size]
            for c in range(size):
                adjoint[c] = v_row[c] + carried[c]
            for c in range(size):
                carried[c] = np.conj(a_row[c]) * adjoint[c]
            if needs_a:
                before = at - step
                previous = states[before : before + size] if t > 0 else first_previous
                a_row_grad = a_grad[at : at + size]
                for c in range(size):
                    a_row_grad[c] = adjoint[c] * np.conj(previous[c])
