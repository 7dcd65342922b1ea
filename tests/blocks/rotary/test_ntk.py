"""Identities of the NTK family (MATH 1.1)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.blocks.rotary import Default, DynamicNTK, Linear, NTKAware, NTKFixed, NTKMixed

DIMENSIONS = st.integers(2, 80).map(lambda pairs: 2 * pairs)
BASES = st.floats(50, 1e6)
FACTORS = st.floats(0.5, 64)


def close(actual, expected, rtol=2e-6):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


@given(rotary_dim=DIMENSIONS, base=BASES, factor=FACTORS)
def test_aware_keeps_the_highest_and_interpolates_the_lowest(rotary_dim, base, factor):
    aware = NTKAware(factor).inverse_frequencies(rotary_dim, base)
    assert aware[0] == 1.0
    close(aware[-1], Linear(factor).inverse_frequencies(rotary_dim, base)[-1])


@given(rotary_dim=DIMENSIONS, base=BASES, factor=FACTORS)
def test_fixed_interpolates_the_lowest_and_follows_its_printed_form(rotary_dim, base, factor):
    fixed = NTKFixed(factor).inverse_frequencies(rotary_dim, base)
    close(fixed[-1], Linear(factor).inverse_frequencies(rotary_dim, base)[-1])
    beta, lam = base ** (2 / rotary_dim), factor ** (2 / rotary_dim)
    plane = torch.arange(1, rotary_dim // 2 + 1, dtype=torch.float64)
    close(fixed, (1 / (lam * (beta * lam) ** (plane - 1))).float())


@given(rotary_dim=DIMENSIONS, base=BASES, factor=FACTORS)
def test_mixed_runs_from_linear_to_fixed(rotary_dim, base, factor):
    at = {c: NTKMixed(factor, c).inverse_frequencies(rotary_dim, base) for c in (0.0, 0.625, 1.0)}
    close(at[1.0], NTKFixed(factor).inverse_frequencies(rotary_dim, base))
    close(at[0.0], Linear(factor).inverse_frequencies(rotary_dim, base))
    a = math.log(factor) / (rotary_dim / 2) ** 0.625
    plane = torch.arange(1, rotary_dim // 2 + 1, dtype=torch.float64)
    printed = base ** (-2 * (plane - 1) / rotary_dim) * torch.exp(-a * plane**0.625)
    close(at[0.625], printed.float())


@given(rotary_dim=DIMENSIONS, base=BASES)
def test_factor_one_changes_nothing(rotary_dim, base):
    default = Default().inverse_frequencies(rotary_dim, base)
    for rule in (NTKAware(1.0), NTKFixed(1.0), NTKMixed(1.0), Linear(1.0)):
        assert torch.equal(rule.inverse_frequencies(rotary_dim, base), default)


@given(rotary_dim=DIMENSIONS, factor=st.floats(0.5, 16), length=st.integers(1, 512))
def test_dynamic_changes_nothing_within_the_trained_length(rotary_dim, factor, length):
    default = Default().inverse_frequencies(rotary_dim, 10000.0)
    rule = DynamicNTK(factor, 512)
    assert torch.equal(rule.inverse_frequencies(rotary_dim, 10000.0, length), default)


@pytest.mark.parametrize("multiple", [2, 5])
def test_dynamic_with_factor_one_is_ntk_aware_for_the_present_length(multiple):
    dynamic = DynamicNTK(1.0, 512).inverse_frequencies(64, 10000.0, 512 * multiple)
    close(dynamic, NTKAware(float(multiple)).inverse_frequencies(64, 10000.0))


def test_the_best_exponent_of_the_article_is_the_default():
    assert NTKMixed(8.0).exponent == 0.625
