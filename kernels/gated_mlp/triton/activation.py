"""An activation on a tile in float32, and with it its derivative from the same exponential."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.monarch.triton.activation import (
    CUBIC,
    DENSITY,
    ROOT_HALF,
    SCALE,
    bounded,
    sigmoid,
)
from ropewalk.kernels.monarch.triton.activation import activate as common


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The activation of z."""
    if ACTIVATION == "sigmoid":
        z = sigmoid(z)
    elif ACTIVATION != "identity":
        z = common(z, ACTIVATION)
    return z


@triton.jit
def activate_and_derive(z, ACTIVATION: tl.constexpr):
    """The activation of z and its derivative there; relu's is 0 at 0."""
    if ACTIVATION == "silu":
        gate = sigmoid(z)
        value = z * gate
        slope = gate + value * (1.0 - gate)
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(z * ROOT_HALF))
        value = z * share
        slope = share + z * tl.exp(-0.5 * z * z) * DENSITY
    elif ACTIVATION == "gelu_tanh":
        near = bounded(z)
        gate = sigmoid(near * (near * near * CUBIC + 1.0) * SCALE)
        steepness = (near * near * (3.0 * CUBIC) + 1.0) * SCALE
        value = z * gate
        slope = gate + near * gate * (1.0 - gate) * steepness
    elif ACTIVATION == "sigmoid":
        value = sigmoid(z)
        slope = value * (1.0 - value)
    elif ACTIVATION == "relu":
        value = tl.where(z < 0, 0.0, z)
        slope = tl.where(z <= 0, 0.0, 1.0)
    else:
        value = z
        slope = tl.full(z.shape, 1.0, tl.float32)
    return value, slope
