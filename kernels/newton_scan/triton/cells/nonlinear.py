"""σ and tanh from one exponential and one division, safe at both ends.

Far from 0 an exponential overflows to ∞ and its inverse is the 0 that it should be. Near 0, where
2 σ(2x) − 1 would cancel, tanh is its series, exact to float32 below NEAR. A NaN stays one.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

NEAR = tl.constexpr(0.3)


@triton.jit
def sigmoid(x):
    """1 / (1 + e⁻ˣ)."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """1 − 2 / (1 + e²ˣ), near 0 its series."""
    y = x * x
    series = y * (-0.05396825396825397 + y * (0.021869488536155203 + y * -0.0088632355299022))
    series = x + x * (y * (-0.3333333333333333 + y * 0.13333333333333333 + y * series))
    return tl.where(tl.abs(x) < NEAR, series, 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x)))
