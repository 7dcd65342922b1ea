"""Long short-term memory with diagonal matrices, coupled gates and peepholes; a state is (c, h).

f = σ(x_f + a_f h + c_f c)    z = tanh(x_z + a_z h)    c' = z + f (c − z)
o = σ(x_o + a_o h + c_o c')   h' = o tanh(c')
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it in a function's module)

from ropewalk.kernels.newton_scan.triton.cells.nonlinear import sigmoid, tanh


@triton.jit
def _gates(x, state, w):
    c, h = state[0], state[1]
    f = sigmoid(x[0] + w[0] * h + w[3] * c)
    z = tanh(x[1] + w[1] * h)
    new = z + f * (c - z)
    o = sigmoid(x[2] + w[2] * h + w[4] * new)
    return f, z, new, o, tanh(new)


@triton.jit
def linearise(x, state, w):
    """The next state and its Jacobian."""
    f, z, new, o, shown = _gates(x, state, w)
    of_f = (state[0] - z) * f * (1.0 - f)
    c_of_c = f + of_f * w[3]
    c_of_h = of_f * w[0] + (1.0 - f) * (1.0 - z * z) * w[1]
    of_o = shown * o * (1.0 - o)
    through = o * (1.0 - shown * shown) + of_o * w[4]
    slopes = (c_of_c, c_of_h, through * c_of_c, through * c_of_h + of_o * w[2])
    return (new, o * shown), slopes


@triton.jit
def pullback(x, state, w, g):
    """Gradients of x, of w and of the state, where g is that of the next state."""
    c, h = state[0], state[1]
    f, z, new, o, shown = _gates(x, state, w)
    of_o = g[1] * shown * o * (1.0 - o)
    of_new = g[0] + g[1] * o * (1.0 - shown * shown) + of_o * w[4]
    of_f = of_new * (c - z) * f * (1.0 - f)
    of_z = of_new * (1.0 - f) * (1.0 - z * z)
    of_w = (of_f * h, of_z * h, of_o * h, of_f * c, of_o * new)
    back = (of_new * f + of_f * w[3], of_f * w[0] + of_z * w[1] + of_o * w[2])
    return (of_f, of_z, of_o), of_w, back
