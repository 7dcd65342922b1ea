"""h' = tanh(x + w h)."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it in a function's module)

from ropewalk.kernels.newton_scan.triton.cells.nonlinear import tanh


@triton.jit
def linearise(x, h, w):
    """The next state and its Jacobian."""
    new = tanh(x[0] + w[0] * h[0])
    return (new,), ((1.0 - new * new) * w[0],)


@triton.jit
def pullback(x, h, w, g):
    """Gradients of x, of w and of the state, where g is that of the next state."""
    new = tanh(x[0] + w[0] * h[0])
    delta = g[0] * (1.0 - new * new)
    return (delta,), (delta * h[0],), (delta * w[0],)
