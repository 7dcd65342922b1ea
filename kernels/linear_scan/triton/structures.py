"""Coefficients and states of the three structures, as tuples of tensors in registers.

structure   coefficient            state
real        (a,)                   (x,)
complex     (real, imaginary)      (real, imaginary)
block2      (a00, a01, a10, a11)   (x0, x1)
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)
OF_STATE = tl.constexpr(1)
OF_PRODUCT = tl.constexpr(2)
"""What may have left float32 in a multiplication: neither factor, p, or either of them."""


@triton.jit
def times(p, x, KIND: tl.constexpr):
    """The product p x, where zero times a product that left float32 is 0.

    A product of coefficients may overflow where states do not, and the zeros around it must stay
    zeros. A state that is infinite or not a number is truly so: times 0 it is not a number.
    """
    y = p * x
    if KIND == OF_STATE:
        y = tl.where(x == 0.0, 0.0, y)
    elif KIND == OF_PRODUCT:
        y = tl.where((p == 0.0) | (x == 0.0), 0.0, y)
    return y


@triton.jit
def apply(a, x, STRUCTURE: tl.constexpr, KIND: tl.constexpr = PLAIN):
    """The state a x."""
    if STRUCTURE == "real":
        y = (times(a[0], x[0], KIND),)
    elif STRUCTURE == "complex":
        y = (
            times(a[0], x[0], KIND) - times(a[1], x[1], KIND),
            times(a[1], x[0], KIND) + times(a[0], x[1], KIND),
        )
    else:
        y = (
            times(a[0], x[0], KIND) + times(a[1], x[1], KIND),
            times(a[2], x[0], KIND) + times(a[3], x[1], KIND),
        )
    return y


@triton.jit
def compose(a, b, STRUCTURE: tl.constexpr, KIND: tl.constexpr = PLAIN):
    """The coefficient a b, of which b comes first."""
    if STRUCTURE == "block2":
        left = apply(a, (b[0], b[2]), STRUCTURE, KIND)
        right = apply(a, (b[1], b[3]), STRUCTURE, KIND)
        y = (left[0], right[0], left[1], right[1])
    else:  # numbers: a coefficient is what a state is
        y = apply(a, b, STRUCTURE, KIND)
    return y


@triton.jit
def add(x, y, STRUCTURE: tl.constexpr):
    """The state x + y."""
    return (x[0] + y[0],) if STRUCTURE == "real" else (x[0] + y[0], x[1] + y[1])


@triton.jit
def adjoint(a, STRUCTURE: tl.constexpr):
    """The coefficient aᴴ."""
    if STRUCTURE == "complex":
        y = (a[0], -a[1])
    elif STRUCTURE == "block2":
        y = (a[0], a[2], a[1], a[3])
    else:
        y = a
    return y


@triton.jit
def outer(g, x, STRUCTURE: tl.constexpr):
    """The coefficient g xᴴ."""
    if STRUCTURE == "real":
        y = (g[0] * x[0],)
    elif STRUCTURE == "complex":
        y = (g[0] * x[0] + g[1] * x[1], g[1] * x[0] - g[0] * x[1])
    else:
        y = (g[0] * x[0], g[0] * x[1], g[1] * x[0], g[1] * x[1])
    return y


@triton.jit
def choose(condition, x, y, STRUCTURE: tl.constexpr):
    """The state x where the condition holds, else y."""
    if STRUCTURE == "real":
        z = (tl.where(condition, x[0], y[0]),)
    else:
        z = (tl.where(condition, x[0], y[0]), tl.where(condition, x[1], y[1]))
    return z


@triton.jit
def zero(GROUPS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr):
    """The state 0."""
    nothing = tl.zeros([GROUPS, CHANNELS], tl.float32)
    return (nothing,) if STRUCTURE == "real" else (nothing, nothing)


@triton.jit
def identity(GROUPS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr):
    """The coefficient 1."""
    nothing = tl.zeros([GROUPS, CHANNELS], tl.float32)
    one = nothing + 1.0
    if STRUCTURE == "real":
        z = (one,)
    elif STRUCTURE == "complex":
        z = (one, nothing)
    else:
        z = (one, nothing, nothing, one)
    return z
