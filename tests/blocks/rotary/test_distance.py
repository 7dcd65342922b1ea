"""Distance rules: identities of MATH 1.2 and each rule against a loop over pairs."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.blocks.rotary import (
    DISTANCE_RULES,
    DualChunk,
    LeakyReRoPE,
    Plain,
    ReRoPE,
    SelfExtend,
)
from ropewalk.kernels.rotary_attention.protocols import DistanceRule

LENGTHS = st.integers(1, 40)
WINDOWS = st.integers(1, 50)
EVERY_RULE = [
    Plain(),
    ReRoPE(5),
    LeakyReRoPE(5, 3.0),
    LeakyReRoPE(5, 0.125),
    SelfExtend(3, 5),
    DualChunk(9, 3),
    DualChunk(9, 0),
]


def matrix_of(function, query_length: int, key_length: int) -> torch.Tensor:
    """The matrix of `function(i, j)` over causal pairs, NaN elsewhere, by a loop."""
    result = torch.full((query_length, key_length), math.nan, dtype=torch.float64)
    for row in range(query_length):
        i = key_length - query_length + row
        for j in range(i + 1):
            result[row, j] = function(i, j)
    return result


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, equal_nan=True, rtol=0, atol=1e-9)


@given(length=LENGTHS)
def test_plain_is_the_distance(length):
    same(Plain().relative_positions(length, length), matrix_of(lambda i, j: i - j, length, length))


@given(length=LENGTHS, window=WINDOWS)
def test_rerope_is_the_distance_up_to_the_window(length, window):
    expected = Plain().relative_positions(length, length).clamp(max=window)
    same(ReRoPE(window).relative_positions(length, length), expected)


@given(length=LENGTHS, window=WINDOWS, factor=st.floats(0.05, 50))
def test_leaky_grows_by_one_over_its_factor(length, window, factor):
    def law(i: int, j: int) -> float:
        return i - j if i - j < window else window + (i - j - window) / factor

    actual = LeakyReRoPE(window, factor).relative_positions(length, length)
    same(actual, matrix_of(law, length, length))


@given(length=LENGTHS, window=WINDOWS)
def test_leaky_runs_from_plain_to_rerope(length, window):
    plain, rerope = Plain(), ReRoPE(window)
    at_one, at_infinity = LeakyReRoPE(window, 1.0), LeakyReRoPE(window, math.inf)
    same(at_one.relative_positions(length, length), plain.relative_positions(length, length))
    same(at_infinity.relative_positions(length, length), rerope.relative_positions(length, length))


@given(length=LENGTHS, window=WINDOWS, group=st.integers(1, 9))
def test_self_extend_groups_far_positions(length, window, group):
    def law(i: int, j: int) -> int:
        near = i - j
        far = (i // group + window - window // group) - j // group
        return near if near < window else far

    actual = SelfExtend(group, window).relative_positions(length, length)
    same(actual, matrix_of(law, length, length))


@given(length=LENGTHS, window=WINDOWS)
def test_self_extend_in_groups_of_one_is_plain(length, window):
    actual = SelfExtend(1, window).relative_positions(length, length)
    same(actual, Plain().relative_positions(length, length))


@given(length=LENGTHS, chunk=st.integers(1, 20), data=st.data())
def test_dual_chunk_block_by_block(length, chunk, data):
    local = data.draw(st.integers(0, chunk - 1))
    block = chunk - local

    def law(i: int, j: int) -> int:
        query_block, key_block = i // block, j // block
        if query_block == key_block:
            return i % block - j % block
        if query_block == key_block + 1:
            return min(i % block + block, chunk) - j % block
        return chunk - j % block

    matrix = DualChunk(chunk, local).relative_positions(length, length)
    same(matrix, matrix_of(law, length, length))
    # The purpose of the rule: nothing beyond `chunk`, and true distances near the diagonal.
    assert matrix.nan_to_num().max() <= chunk
    near = Plain().relative_positions(length, length) <= min(local, block)
    same(matrix[near], Plain().relative_positions(length, length)[near])


@given(length=LENGTHS, beyond=st.integers(0, 5))
def test_a_window_that_holds_the_context_changes_nothing(length, beyond):
    plain = Plain().relative_positions(length, length)
    window = length + beyond
    for rule in (ReRoPE(window), LeakyReRoPE(window, 7.0), SelfExtend(4, window)):
        same(rule.relative_positions(length, length), plain)
    same(DualChunk(window + 1, 1).relative_positions(length, length), plain)


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_fewer_queries_are_the_last_rows(rule):
    whole = rule.relative_positions(23, 23)
    for queries in (1, 7, 22):
        same(rule.relative_positions(queries, 23), whole[-queries:])


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_growing_the_context_changes_no_earlier_row(rule):
    same(rule.relative_positions(23, 23)[:15, :15], rule.relative_positions(15, 15))


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_rules_satisfy_the_protocol(rule):
    assert len(rule.edges) == len(rule.branches) - 1
    assert list(rule.edges) == sorted(rule.edges)
    assert DISTANCE_RULES[rule.name] is type(rule)
    assert rule.paper
    assert dataclasses.replace(rule) == rule
    assert hash(dataclasses.replace(rule)) == hash(rule)
    assert isinstance(rule, DistanceRule)


def test_the_list_of_rules_is_complete():
    assert set(DISTANCE_RULES) == {"plain", "rerope", "leaky-rerope", "self-extend", "dual-chunk"}
    assert {rule.name for rule in EVERY_RULE} == set(DISTANCE_RULES)


def test_inverse_leaky_trains_as_far_as_inference_will_read():
    rule = LeakyReRoPE.inverse(expansion=8, train_length=512)
    assert rule == LeakyReRoPE(window=128, factor=1 / 16)
    # Plain RoPE at 8 × 512 is within what training saw.
    assert rule.relative_positions(1, 512).max() >= 8 * 512 - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReRoPE(0), "ReRoPE.window: expected an integer ≥ 1, got 0"),
        (lambda: ReRoPE(-3), "ReRoPE.window: .* got -3"),
        (lambda: LeakyReRoPE(0, 2.0), "LeakyReRoPE.window"),
        (lambda: LeakyReRoPE(4, 0.0), "LeakyReRoPE.factor: expected a finite number > 0, got 0.0"),
        (lambda: LeakyReRoPE(4, math.nan), "LeakyReRoPE.factor"),
        (lambda: LeakyReRoPE.inverse(0.5, 512), "expansion: expected ≥ 1, got 0.5"),
        (lambda: LeakyReRoPE.inverse(8, 3), "train_length: expected an integer ≥ 4, got 3"),
        (lambda: SelfExtend(0, 4), "SelfExtend.group"),
        (lambda: SelfExtend(2, 0), "SelfExtend.window"),
        (lambda: DualChunk(0, 0), "DualChunk.chunk"),
        (lambda: DualChunk(4, -1), "DualChunk.local: expected an integer ≥ 0, got -1"),
        (lambda: DualChunk(4, 4), "DualChunk.local: expected less than chunk = 4, got 4"),
        (lambda: Plain().relative_positions(0, 3), "query_length: expected an integer ≥ 1"),
        (lambda: Plain().relative_positions(4, 3), "at most key_length = 3 .* got 4"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_windows_are_whole_tokens():
    with pytest.raises(TypeError, match=r"ReRoPE\.window: expected an integer ≥ 1, got 2\.5"):
        ReRoPE(2.5)  # pyright: ignore[reportArgumentType]
