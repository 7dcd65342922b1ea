"""The projection: nearest, idempotent, in the layout of the product, honest about its error."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.blocks.monarch import (
    MonarchShape,
    monarch_matmul,
    monarch_project,
    monarch_to_dense,
)

# Rows, columns, blocks, rank: square, tall, wide, filled up, one block, full rank.
SHAPES = [
    (16, 16, 4, 1),
    (16, 16, 4, None),
    (24, 12, 2, 2),
    (12, 30, (5, 3), 2),
    (13, 11, (3, 2), 2),
    (9, 7, 1, 3),
    (8, 8, 2, 4),
]


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(found):
    shape = found.shape
    whole = monarch_to_dense(found.right, found.left)
    return whole[: shape.out_features, : shape.in_features]


@pytest.mark.parametrize(("rows", "columns", "nblocks", "rank"), SHAPES)
def test_the_error_is_that_of_the_result(rows, columns, nblocks, rank):
    weight = gaussian(rows, columns)
    found = monarch_project(weight, nblocks=nblocks, rank=rank)
    error = (weight - dense(found)).norm() / weight.norm()
    assert found.relative_error == pytest.approx(float(error), abs=1e-12)
    assert found.right.shape == found.shape.right_shape
    assert found.left.shape == found.shape.left_shape


@pytest.mark.parametrize(("rows", "columns", "nblocks", "rank"), SHAPES)
def test_the_error_is_what_the_slices_drop(rows, columns, nblocks, rank):
    """Slice by slice, with no padding: the sum of the dropped squares of singular values."""
    weight = gaussian(rows, columns)
    found = monarch_project(weight, nblocks=nblocks, rank=rank)
    p, s = found.shape.input_size, found.shape.output_size
    dropped = 0.0
    for row in range(0, rows, s):
        for column in range(0, columns, p):
            sigma = torch.linalg.svdvals(weight[row : row + s, column : column + p])
            dropped += float(sigma[found.shape.rank :].square().sum())
    assert found.relative_error**2 * float(weight.square().sum()) == pytest.approx(
        dropped, abs=1e-12
    )


@pytest.mark.parametrize(("rows", "columns", "nblocks", "rank"), SHAPES)
def test_projecting_twice_changes_nothing(rows, columns, nblocks, rank):
    once = monarch_project(gaussian(rows, columns), nblocks=nblocks, rank=rank)
    twice = monarch_project(dense(once), nblocks=nblocks, rank=rank)
    torch.testing.assert_close(dense(twice), dense(once))
    assert twice.relative_error < 1e-7


@pytest.mark.parametrize(("rows", "columns", "nblocks", "rank"), SHAPES)
def test_what_is_filled_up_stays_zero(rows, columns, nblocks, rank):
    found = monarch_project(gaussian(rows, columns), nblocks=nblocks, rank=rank)
    whole = monarch_to_dense(found.right, found.left)
    torch.testing.assert_close(whole[rows:], torch.zeros_like(whole[rows:]))
    torch.testing.assert_close(whole[:, columns:], torch.zeros_like(whole[:, columns:]))


@pytest.mark.parametrize(("rows", "columns", "nblocks", "rank"), SHAPES)
def test_projection_and_product_are_cut_alike(rows, columns, nblocks, rank):
    weight, x = gaussian(rows, columns), gaussian(5, columns, seed=1)
    found = monarch_project(weight, nblocks=nblocks, rank=rank)
    padded = torch.nn.functional.pad(x, (0, found.shape.padded_in - columns))
    y = monarch_matmul(padded, found.right, found.left, backend="reference")[:, :rows]
    torch.testing.assert_close(y, x @ dense(found).T)


def test_full_rank_is_the_matrix_itself():
    weight = gaussian(12, 20)
    found = monarch_project(weight, nblocks=(4, 3), rank=4)
    torch.testing.assert_close(dense(found), weight)
    assert found.relative_error == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_no_random_search_and_no_descent_finds_a_nearer_one(seed):
    weight = gaussian(12, 12, seed=seed)
    found = monarch_project(weight, nblocks=3, rank=1)
    least = found.relative_error
    generator = torch.Generator().manual_seed(seed)

    def error(right, left):
        return (weight - monarch_to_dense(right, left)).norm() / weight.norm()

    for _ in range(200):  # near and far
        scale = 10 ** float(torch.empty(()).uniform_(-4, 0.5, generator=generator))
        right, left = (
            f + scale * torch.randn(f.shape, generator=generator, dtype=f.dtype)
            for f in (found.right, found.left)
        )
        assert error(right, left) >= least
    factors = [torch.randn(f.shape, generator=generator, dtype=f.dtype) / 2 for f in found[:2]]
    for factor in factors:
        factor.requires_grad_()
    optimizer = torch.optim.LBFGS(factors, max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = error(*factors)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert error(*factors).item() >= least - 1e-9


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 20), st.integers(2, 20), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99)
)
def test_a_greater_rank_is_never_further(rows, columns, k, blocks, seed):
    weight, errors = gaussian(rows, columns, seed=seed), []
    try:
        full = MonarchShape.of(columns, rows, nblocks=(k, blocks), rank=1).full_rank
    except ValueError:
        return
    for rank in range(1, full + 1):
        errors.append(monarch_project(weight, nblocks=(k, blocks), rank=rank).relative_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0


def test_half_precision_is_decomposed_in_float32():
    weight = gaussian(64, 64).to(torch.bfloat16)
    low = monarch_project(weight, nblocks=4, rank=4)
    wide = monarch_project(weight.float(), nblocks=4, rank=4)
    assert low.right.dtype == torch.bfloat16
    assert low.relative_error == wide.relative_error
    torch.testing.assert_close(low.right, wide.right.to(torch.bfloat16), rtol=0, atol=0)


def test_a_dense_gaussian_at_half_the_parameters():
    """0.61, about what a singular value decomposition of as many parameters leaves."""
    weight = gaussian(256, 256)
    found = monarch_project(weight, nblocks=4)
    assert found.shape.parameters == 256 * 256 // 2
    assert found.relative_error == pytest.approx(0.614, abs=0.01)
    sigma = torch.linalg.svdvals(weight)
    best = math.sqrt(float(sigma[64:].square().sum() / sigma.square().sum()))
    assert found.relative_error == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-170, torch.float64), (1e150, torch.float64), (1e30, torch.float32)]
)
def test_the_error_does_not_hang_on_the_scale(scale, dtype):
    weight = gaussian(12, 12).to(dtype)
    expected = monarch_project(weight, nblocks=3, rank=1).relative_error
    found = monarch_project(weight * scale, nblocks=3, rank=1)
    assert found.relative_error == pytest.approx(expected, rel=1e-5)


def test_either_factor_has_half_of_each_slice():
    found = monarch_project(gaussian(12, 20), nblocks=(4, 3), rank=2)
    right = found.right.unflatten(1, (3, 2)).transpose(0, 1)  # (l, k, r, p)
    left = found.left.unflatten(2, (4, 2)).transpose(1, 2)  # (l, k, s, r)
    torch.testing.assert_close(right.norm(dim=-1), left.norm(dim=-2))


def test_a_weight_of_zeros_and_one_that_is_part_of_a_graph():
    found = monarch_project(torch.zeros(8, 8), nblocks=2)
    assert found.relative_error == 0.0
    assert not dense(found).any()
    leaf = torch.randn(8, 8, requires_grad=True)
    found = monarch_project(leaf * 2, nblocks=2)
    assert not found.right.requires_grad


@pytest.mark.parametrize(
    ("weight", "error", "words"),
    [
        ([[1.0]], TypeError, "weight: expected a tensor, got list"),
        (torch.randn(8), ValueError, r"expected \(out_features, in_features\), got \(8,\)"),
        (torch.randn(2, 8, 8), ValueError, "one by one"),
        (torch.ones(8, 8, dtype=torch.int32), ValueError, r"got torch.int32; use \.float\(\)"),
        (torch.ones(8, 8).to(torch.float8_e4m3fn), ValueError, "expected float16, bfloat16"),
        (torch.full((8, 8), 3e38), ValueError, "divide the weight before"),
        (torch.ones(8, 8, device="meta"), ValueError, "meta device; load it first"),
        (torch.full((8, 8), math.nan), ValueError, "expected finite numbers"),
        (torch.full((8, 8), math.inf), ValueError, "expected finite numbers"),
        (torch.empty(0, 8), ValueError, r"got \(0, 8\)"),
    ],
)
def test_refused(weight, error, words):
    with pytest.raises(error, match=words):
        monarch_project(weight, nblocks=2)
