"""Sizes: what they are, what is counted, and which are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.blocks.monarch import MonarchShape


def test_a_square_layer_keeps_two_of_nblocks_of_its_parameters():
    for nblocks in (2, 4, 8, 16, 32):
        shape = MonarchShape.of(1024, 1024, nblocks=nblocks)
        assert shape.width == 1024
        assert shape.parameters / shape.dense_parameters == 2 / nblocks
        assert shape.flops == 2 * shape.parameters


@pytest.mark.parametrize(
    ("sizes", "nblocks", "rank"),
    [((768, 3072), 4, 48), ((3072, 768), 4, 48), ((4096, 4096), 64, 1), ((30, 50), (3, 5), 2)],
)
def test_the_default_rank_makes_the_hidden_layer_as_wide_as_the_smaller_side(sizes, nblocks, rank):
    shape = MonarchShape.of(*sizes, nblocks=nblocks)
    assert shape.rank == rank
    assert shape.width == min(sizes)


def test_a_matrix_of_one_slice_is_a_low_rank_one():
    shape = MonarchShape.of(100, 60, nblocks=1, rank=7)
    assert shape.parameters == 7 * (100 + 60)
    assert shape.full_rank == 60


def test_mirrored_twice_is_the_same():
    shape = MonarchShape.of(31, 50, nblocks=(3, 5), rank=2)
    assert shape.mirrored.mirrored == shape
    assert shape.mirrored.right_shape == (5, 3 * 2, 10)
    assert shape.mirrored.parameters == shape.parameters


@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 20), st.integers(1, 20),
    st.none() | st.integers(1, 8),
)  # fmt: skip
def test_what_is_accepted_has_no_empty_slice(inputs, outputs, k, blocks, rank):
    try:
        shape = MonarchShape.of(inputs, outputs, nblocks=(k, blocks), rank=rank)
    except ValueError as error:
        words = str(error)
        assert "expected" in words
        assert "got" in words
        return
    assert (k - 1) * shape.input_size < inputs <= shape.padded_in
    assert (blocks - 1) * shape.output_size < outputs <= shape.padded_out
    assert 1 <= shape.rank <= shape.full_rank
    assert shape.parameters == sum(a * b * c for a, b, c in (shape.right_shape, shape.left_shape))
    if rank is None:
        assert shape.width <= min(inputs, outputs)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nblocks": 64}, ValueError, r"64·64 = 4096.*leave slices empty; take nblocks ≤ 32"),
        ({"nblocks": 64, "rank": 1}, ValueError, "leave slices empty; take nblocks ≤ 32"),
        ({"nblocks": 0}, ValueError, "nblocks: expected at least 1, got 0"),
        ({"nblocks": 2000}, ValueError, "at most 1024 input blocks"),
        ({"nblocks": (2, 2, 2)}, ValueError, "expected a number or"),
        ({"nblocks": 4.0}, TypeError, r"nblocks: .*got 4.0; convert it with int"),
        ({"nblocks": True}, TypeError, "nblocks: expected an integer"),
        ({"nblocks": (4, "a")}, TypeError, "nblocks: expected an integer"),
        ({"nblocks": 4, "rank": 257}, ValueError, r"rank: expected at most 256.*got 257"),
        ({"nblocks": 4, "rank": 0}, ValueError, "rank: expected an integer ≥ 1"),
        ({"nblocks": 4, "rank": 1.5}, TypeError, "rank: expected an integer"),
    ],
)
def test_refused(options, error, words):
    with pytest.raises(error, match=words):
        MonarchShape.of(1024, 1024, **options)


def test_blocks_of_nothing_but_padding_are_refused():
    with pytest.raises(ValueError, match="4 blocks of 3 for 9 features; take 3"):
        MonarchShape.of(9, 16, nblocks=(4, 2), rank=1)
    assert MonarchShape.of(10, 16, nblocks=(4, 2), rank=1).input_size == 3


def test_a_wide_hidden_layer_is_offered_by_name():
    with pytest.raises(ValueError, match="or say rank=1"):
        MonarchShape.of(64, 1024, nblocks=16)
    assert MonarchShape.of(64, 1024, nblocks=16, rank=1).width == 256


@pytest.mark.parametrize("features", [0, -1, 2.0, True])
def test_features_are_counted(features):
    with pytest.raises((ValueError, TypeError), match="in_features: expected an integer ≥ 1"):
        MonarchShape.of(features, 8, nblocks=2)
