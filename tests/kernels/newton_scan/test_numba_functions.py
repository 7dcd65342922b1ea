"""Sigmoid and tanh of compiled loops against float64, over all float32 numbers' range."""

import re

import numba
import numpy as np
import pytest

from ropewalk.kernels.compiled.compiler import OPTIONS
from ropewalk.kernels.compiled.functions import sigmoid, tanh

UNITS = 3.0
LEAST_NORMAL = np.finfo(np.float32).tiny


@numba.njit(**OPTIONS)
def sigmoids(x, y):
    for i in range(x.size):
        y[i] = sigmoid(x[i])


@numba.njit(**OPTIONS)
def tanhs(x, y):
    for i in range(x.size):
        y[i] = tanh(x[i])


def exact_sigmoid(x):
    with np.errstate(all="ignore"):
        return 1 / (1 + np.exp(-x))


FUNCTIONS = {"sigmoid": (sigmoids, exact_sigmoid), "tanh": (tanhs, np.tanh)}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return request.param


def values(name, x):
    y = np.empty_like(x)
    FUNCTIONS[name][0](x, y)
    return y


def everything():
    """Every exponent with many mantissas, both signs, and the steps where a branch is."""
    bits = np.arange(0, 0x7F800000, 1009, dtype=np.uint32)
    edges = np.linspace(-110, 110, 1_000_003).astype(np.float32)
    positive = bits.view(np.float32)
    return np.concatenate([positive, -positive, edges])


def test_float32_is_right_to_three_units_in_the_last_place(function):
    x = everything()
    expected = FUNCTIONS[function][1](x.astype(np.float64))
    unit = np.spacing(np.maximum(np.abs(expected), LEAST_NORMAL).astype(np.float32))
    error = np.abs(values(function, x) - expected) / unit
    if function == "sigmoid":
        # It ends at the least normal number and a bit: nothing that a sum with one would see.
        ends = x < -87
        assert values(function, x[ends]).max() < 2 * LEAST_NORMAL
        error = error[~ends]
    assert error.max() <= UNITS


def test_what_is_not_finite(function):
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38], np.float32)
    y = values(function, x)
    assert y[0] == y[3] == 1
    assert np.isnan(y[2])
    if function == "tanh":
        assert y[1] == y[4] == -1
    else:
        assert 0 <= y[1] == y[4] < 2 * LEAST_NORMAL


def test_never_beyond_their_limits(function):
    y = values(function, everything())
    assert y.max() <= 1
    assert y.min() >= (-1 if function == "tanh" else 0)


def test_odd_and_symmetric(function):
    x = np.linspace(0, 60, 100_001).astype(np.float32)
    there, back = values(function, x), values(function, -x)
    mirrored = -back if function == "tanh" else 1 - back
    assert np.abs(there - mirrored).max() <= UNITS * np.finfo(np.float32).eps


def test_float64_is_the_librarys(function):
    x = np.concatenate([np.linspace(-50, 50, 10_001), [np.inf, -np.inf, np.nan, -800.0]])
    expected = FUNCTIONS[function][1](x)
    np.testing.assert_allclose(values(function, x), expected, rtol=1e-15, atol=1e-300)


def test_loops_over_them_are_vectors():
    """Which is why they are there."""
    assembly = "".join(sigmoids.inspect_asm().values())
    assert re.search(r"divps|fdiv\s+v\d+\.4s", assembly)
