"""The cell that a compile-time name names."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.newton_scan.triton.cells import gru, lstm, tanh

tanh_linearise, gru_linearise, lstm_linearise = tanh.linearise, gru.linearise, lstm.linearise
tanh_pullback, gru_pullback, lstm_pullback = tanh.pullback, gru.pullback, lstm.pullback


@triton.jit
def linearise(x, state, w, CELL: tl.constexpr):
    """The next state and its Jacobian; what of it nobody uses is never computed."""
    if CELL == "tanh":
        found = tanh_linearise(x, state, w)
    elif CELL == "gru":
        found = gru_linearise(x, state, w)
    else:
        found = lstm_linearise(x, state, w)
    return found


@triton.jit
def pullback(x, state, w, g, CELL: tl.constexpr):
    """Gradients of x, of w and of the state, where g is that of the next state."""
    if CELL == "tanh":
        found = tanh_pullback(x, state, w, g)
    elif CELL == "gru":
        found = gru_pullback(x, state, w, g)
    else:
        found = lstm_pullback(x, state, w, g)
    return found
