"""The projection by output: identities, and optimality against other ways."""

import itertools

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.monarch import monarch_project, monarch_to_dense
from ropewalk.blocks.monarch.conversion import monarch_project_weighted

CASES = [
    # out, in, nblocks, rank: even, padded on both sides, one block, more blocks on one side
    (48, 64, 4, 3),
    (50, 37, (3, 4), 4),
    (40, 64, 1, 5),
    (33, 70, (5, 2), 6),
    (21, 45, (1, 3), 2),
    (45, 21, (3, 1), 2),
]


def case(out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """A weight, and the moment of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(out_features)
    weight = torch.randn(out_features, in_features, generator=generator)
    rows = torch.randn(400, in_features, generator=generator)
    rows = rows @ torch.randn(in_features, in_features, generator=generator)
    rows = rows * torch.rand(in_features, generator=generator)
    return weight, rows.mT @ rows / len(rows)


def output_error(weight: Tensor, matrix: Tensor, moment: Tensor) -> float:
    """By its definition, in float64."""
    weight, matrix, moment = weight.double(), matrix.double(), moment.double()
    difference = weight - matrix
    lost = torch.trace(difference @ moment @ difference.mT)
    return float((lost / torch.trace(weight @ moment @ weight.mT)).sqrt())


def dense(found, weight: Tensor) -> Tensor:
    return monarch_to_dense(found.right, found.left)[: weight.shape[0], : weight.shape[1]]


@pytest.mark.parametrize(("out_features", "in_features", "nblocks", "rank"), CASES)
def test_reported_errors_are_those_of_the_factors(out_features, in_features, nblocks, rank) -> None:
    weight, moment = case(out_features, in_features)
    found = monarch_project_weighted(weight, moment, nblocks=nblocks, rank=rank)
    matrix = dense(found, weight)
    assert found.output_error == pytest.approx(output_error(weight, matrix, moment), rel=1e-4)
    assert found.relative_error == pytest.approx(
        float((weight - matrix).norm() / weight.norm()), rel=1e-4
    )
    assert found.right.shape == found.shape.right_shape
    assert found.left.shape == found.shape.left_shape


@pytest.mark.parametrize(("out_features", "in_features", "nblocks", "rank"), CASES)
def test_output_is_much_nearer_than_by_the_plain_projection(
    out_features, in_features, nblocks, rank
) -> None:
    weight, moment = case(out_features, in_features)
    plain = monarch_project(weight, nblocks=nblocks, rank=rank)
    found = monarch_project_weighted(weight, moment, nblocks=nblocks, rank=rank)
    assert found.output_error < 0.95 * output_error(weight, dense(plain, weight), moment)
    assert found.relative_error > plain.relative_error


@pytest.mark.parametrize(("out_features", "in_features", "nblocks", "rank"), CASES)
def test_where_inputs_are_white_it_is_the_plain_projection(
    out_features, in_features, nblocks, rank
) -> None:
    weight, _ = case(out_features, in_features)
    plain = monarch_project(weight, nblocks=nblocks, rank=rank)
    white = 3 * torch.eye(in_features)
    found = monarch_project_weighted(weight, white, nblocks=nblocks, rank=rank)
    torch.testing.assert_close(dense(found, weight), dense(plain, weight), atol=1e-4, rtol=0)
    assert found.output_error == pytest.approx(plain.relative_error, abs=1e-5)


@pytest.mark.parametrize(("out_features", "in_features", "nblocks", "rank"), CASES)
def test_a_monarch_matrix_stays_what_it_is(out_features, in_features, nblocks, rank) -> None:
    weight, moment = case(out_features, in_features)
    once = dense(monarch_project(weight.double(), nblocks=nblocks, rank=rank), weight)
    again = monarch_project_weighted(once, moment, nblocks=nblocks, rank=rank)
    assert again.relative_error < 1e-10
    torch.testing.assert_close(dense(again, weight), once)


@pytest.mark.parametrize("nblocks", [1, 4])
def test_more_sweeps_are_never_farther(nblocks) -> None:
    weight, moment = case(48, 64)
    errors = [
        monarch_project_weighted(
            weight, moment, nblocks=nblocks, rank=4, ridge=0, sweeps=sweeps
        ).output_error
        for sweeps in (0, 1, 2, 4, 8)
    ]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    # Slices meet in the moment only where there are several.
    assert (errors[-1] < 0.99 * errors[0]) == (nblocks > 1)


def test_one_block_is_the_whitened_low_rank_matrix() -> None:
    weight, moment = case(30, 20)
    weight, moment = weight.double(), moment.double()
    found = monarch_project_weighted(weight, moment, nblocks=1, rank=6, ridge=0)
    # Eckart and Young, in the coordinates in which inputs are white.
    root = torch.linalg.cholesky(moment)
    u, sigma, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    best = (u[:, :6] * sigma[:6]) @ vh[:6] @ torch.linalg.inv(root)
    torch.testing.assert_close(dense(found, weight), best)


def test_it_is_a_local_minimum_in_both_factors() -> None:
    weight, moment = case(24, 24)
    weight, moment = weight.double(), moment.double()
    found = monarch_project_weighted(weight, moment, nblocks=3, rank=2, ridge=0, sweeps=3000)
    best = output_error(weight, dense(found, weight), moment)
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        right, left = (
            factor + 0.03 * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
            for factor in (found.right, found.left)
        )
        assert output_error(weight, monarch_to_dense(right, left), moment) > best


def test_inputs_that_never_occur_and_inputs_that_are_copies_do_no_harm() -> None:
    weight, _ = case(24, 24)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(6, 24, generator=generator)  # fewer rows than features
    rows[:, :4] = 0
    rows[:, 5] = rows[:, 6]
    moment = rows.mT @ rows / 6
    found = monarch_project_weighted(weight, moment, nblocks=4, rank=2)
    plain = monarch_project(weight, nblocks=4, rank=2)
    assert found.right.isfinite().all()
    assert found.left.isfinite().all()
    assert found.output_error < output_error(weight, dense(plain, weight), moment)
    nothing = monarch_project_weighted(weight, torch.zeros(24, 24), nblocks=4, rank=2)
    torch.testing.assert_close(dense(nothing, weight), dense(plain, weight), atol=1e-5, rtol=0)
    assert nothing.output_error == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_are_in_the_dtype_of_the_weight_and_no_part_of_a_graph(dtype) -> None:
    weight, moment = case(48, 64)
    weight = weight.to(dtype).requires_grad_()
    found = monarch_project_weighted(weight, moment, nblocks=4, rank=3)
    assert found.right.dtype == found.left.dtype == dtype
    assert not found.right.requires_grad
    # Both factors carry the root of the size, so that half precision holds them.
    assert 0.2 < float(found.right.float().norm() / found.left.float().norm()) < 5


def test_what_is_no_moment_is_refused() -> None:
    weight = torch.randn(6, 8)
    good = torch.eye(8)
    skew = good + torch.triu(torch.ones(8, 8), 1)
    cases = [
        (torch.eye(6), "expected a floating-point"),
        (good.long(), "expected a floating-point"),
        (good * float("nan"), "NaN"),
        (-good, "symmetric"),
        (skew, "symmetric"),
    ]
    for moment, message in cases:
        with pytest.raises(ValueError, match=f"second_moment.*{message}"):
            monarch_project_weighted(weight, moment, nblocks=2, rank=1)
    with pytest.raises(TypeError, match="second_moment: expected a tensor"):
        monarch_project_weighted(weight, good.tolist(), nblocks=2, rank=1)
    with pytest.raises(ValueError, match="ridge"):
        monarch_project_weighted(weight, good, nblocks=2, rank=1, ridge=-1)
    with pytest.raises(ValueError, match="sweeps"):
        monarch_project_weighted(weight, good, nblocks=2, rank=1, sweeps=-1)
    with pytest.raises(ValueError, match="rank"):
        monarch_project_weighted(weight, good, nblocks=2, rank=9)
    with pytest.raises(ValueError, match="weight"):
        monarch_project_weighted(torch.randn(2, 6, 8), good, nblocks=2, rank=1)
