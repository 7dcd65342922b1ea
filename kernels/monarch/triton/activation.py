"""The activations on a tile in float32, and their derivatives.

The tanh form of gelu is z · sigmoid(2 √(2/π) (z + 0.044715 z³)), the same function with one
exponential. What grows with z is bounded where it has long been 0 or 1, so that nothing overflows;
comparisons are written so that a NaN stays one. Named constants stand to the right of tensors, the
only place where Triton's interpreter multiplies by them.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

ROOT_HALF = tl.constexpr(0.7071067811865476)
"""√½"""
DENSITY = tl.constexpr(0.3989422804014327)
"""1 / √(2π)"""
SCALE = tl.constexpr(1.5957691216057308)
"""2 √(2/π)"""
CUBIC = tl.constexpr(0.044715)
FAR = tl.constexpr(16.0)
"""Where the cubic's sigmoid is 0 or 1 in float32."""


@triton.jit
def sigmoid(z):
    """1 / (1 + e⁻ᶻ), from an exponential that is at most 1."""
    decay = tl.exp(-tl.abs(z))
    return tl.where(z < 0, decay, 1.0) / (1.0 + decay)


@triton.jit
def bounded(z):
    """z, but not farther than FAR from 0."""
    return tl.where(z > FAR, FAR, tl.where(z < -FAR, -FAR, z))


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of z; z itself where ACTIVATION is None."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "silu":
        z *= sigmoid(z)
    elif ACTIVATION == "gelu":
        z *= 0.5 * (1.0 + tl.erf(z * ROOT_HALF))
    elif ACTIVATION == "gelu_tanh":
        near = bounded(z)
        z *= sigmoid(near * (near * near * CUBIC + 1.0) * SCALE)
    return z


@triton.jit
def derivative(z, ACTIVATION: tl.constexpr):
    """The activation's derivative at z; relu's is 0 at 0."""
    if ACTIVATION == "relu":
        slope = tl.where(z <= 0, 0.0, 1.0)
    elif ACTIVATION == "silu":
        gate = sigmoid(z)
        slope = gate * (1.0 + z * (1.0 - gate))
    elif ACTIVATION == "gelu":
        slope = 0.5 * (1.0 + tl.erf(z * ROOT_HALF)) + z * tl.exp(-0.5 * z * z) * DENSITY
    else:
        near = bounded(z)
        gate = sigmoid(near * (near * near * CUBIC + 1.0) * SCALE)
        steepness = (near * near * (3.0 * CUBIC) + 1.0) * SCALE
        slope = gate + near * gate * (1.0 - gate) * steepness
    return slope
