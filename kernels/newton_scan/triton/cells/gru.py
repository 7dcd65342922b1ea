"""The gated recurrent unit with diagonal recurrent matrices, in torch's convention.

r = σ(x_r + w_r h)    z = σ(x_z + w_z h)    n = tanh(x_n + r (w_n h + b_n))    h' = n + z (h − n)
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it in a function's module)

from ropewalk.kernels.newton_scan.triton.cells.nonlinear import sigmoid, tanh


@triton.jit
def _gates(x, h, w):
    inner = w[2] * h[0] + w[3]
    r = sigmoid(x[0] + w[0] * h[0])
    z = sigmoid(x[1] + w[1] * h[0])
    return r, z, tanh(x[2] + r * inner), inner


@triton.jit
def linearise(x, h, w):
    """The next state and its Jacobian."""
    r, z, n, inner = _gates(x, h, w)
    away = h[0] - n
    of_n = (1.0 - z) * (1.0 - n * n) * r
    slope = z + of_n * (w[2] + inner * (1.0 - r) * w[0]) + away * z * (1.0 - z) * w[1]
    return (n + z * away,), (slope,)


@triton.jit
def pullback(x, h, w, g):
    """Gradients of x, of w and of the state, where g is that of the next state."""
    r, z, n, inner = _gates(x, h, w)
    keep = g[0] * (1.0 - z)
    of_z = keep * (h[0] - n) * z
    of_n = keep * (1.0 - n * n)
    of_r = of_n * inner * r * (1.0 - r)
    through = of_n * r
    back = g[0] * z + of_r * w[0] + of_z * w[1] + through * w[2]
    return (of_r, of_z, of_n), (of_r * h[0], of_z * h[0], through * h[0], through), (back,)
