"""Sigmoid and tanh inside compiled loops; in float32 they become vector instructions.

The compiler calls the C library's exponential once for every number, which is several times slower
than a polynomial on a whole vector. In float32, with y = n ln 2 + r and |r| ≤ ln 2 / 2:

    e^y − 1 = 2ⁿ (e^r − 1) + (2ⁿ − 1),   e^r − 1 by its series to r⁷
    σ(x) = 1 / (1 + e^(−x)),   tanh x = e / (e + 2)  with  e = e^(2x) − 1

which keeps the relative error at small arguments. Both are within 3 units in the last place
(tests/kernels/newton_scan/test_numba_functions.py). σ ends at 1.6e-38, the least that is no
subnormal number, and does not go to 0. NaN stays NaN. float64 takes the C library's functions.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload

from ropewalk.kernels.compiled.compiler import PART, inlined

ONE = np.float32(1)
TWO = np.float32(2)
HALF = np.float32(0.5)

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: n times the first one is exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# Added to a number below 2²², it leaves the nearest integer in the mantissa's last bits.
_ROUNDING = np.float32(1.5 * 2**23)
_MANTISSA_BITS = np.int32(23)
_EXPONENT_OF_ONE = np.int32(127 << 23)
_SERIES = tuple(np.float32(1 / math.factorial(n)) for n in range(2, 8))
_C2, _C3, _C4, _C5, _C6, _C7 = _SERIES

_LARGEST_EXPONENT = np.float32(87)
_TANH_IS_ONE = np.float32(20)
"""Twice an argument from which on tanh is 1 in float32."""


@inlined
def _exponential_parts(y):
    """2ⁿ and e^r − 1 of y, where |y| ≤ 87."""
    shifted = y * _LOG2_E + _ROUNDING
    n = shifted - _ROUNDING
    r = (y - n * _LN2_HIGH) - n * _LN2_LOW
    series = _C7 * r + _C6
    series = series * r + _C5
    series = series * r + _C4
    series = series * r + _C3
    series = series * r + _C2
    bits = np.float32(shifted).view(np.int32) << _MANTISSA_BITS
    power = np.int32(bits + _EXPONENT_OF_ONE).view(np.float32)
    return power, series * (r * r) + r


# Comparisons are written so that NaN fails them and stays.
def _sigmoid_float32(x):
    y = -x
    y = _LARGEST_EXPONENT if y > _LARGEST_EXPONENT else y
    y = -_LARGEST_EXPONENT if y < -_LARGEST_EXPONENT else y
    power, rest = _exponential_parts(y)
    return ONE / (ONE + (rest * power + power))


def _tanh_float32(x):
    y = TWO * x
    y = _TANH_IS_ONE if y > _TANH_IS_ONE else y
    y = -_TANH_IS_ONE if y < -_TANH_IS_ONE else y
    power, rest = _exponential_parts(y)
    e = rest * power + (power - ONE)
    return e / (e + TWO)


def sigmoid(x: float) -> float:
    """1 / (1 + e^(−x)), in the dtype of x."""
    return 1 / (1 + math.exp(-x))


def tanh(x: float) -> float:
    """The hyperbolic tangent, in the dtype of x."""
    return math.tanh(x)


def _sigmoid_float64(x):
    return ONE / (ONE + math.exp(-x))


def _tanh_float64(x):
    return math.tanh(x)


@overload(sigmoid, jit_options=PART)
def _choose_sigmoid(x):
    return _sigmoid_float32 if x == types.float32 else _sigmoid_float64


@overload(tanh, jit_options=PART)
def _choose_tanh(x):
    return _tanh_float32 if x == types.float32 else _tanh_float64
