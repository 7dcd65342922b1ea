"""Blocks and rank by what is asked for."""

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import MonarchShape, monarch_project, monarch_to_dense
from ropewalk.blocks.monarch.conversion import monarchize
from ropewalk.blocks.monarch.conversion.sizes import AUTO_BLOCKS


@pytest.fixture
def weight() -> torch.Tensor:
    """(40, 24) with a decaying spectrum and structure in its slices."""
    generator = torch.Generator().manual_seed(5)
    smooth = torch.randn(40, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    sparse = torch.randn(40, 24, generator=generator)
    return smooth + 4 * sparse * (torch.rand(40, 24, generator=generator) < 0.1)


def converted(weight: torch.Tensor, **options):
    model = nn.Sequential(nn.Linear(24, 40))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    (row,) = monarchize(model, match="*", **options).layers
    return row


def possible(weight: torch.Tensor):
    """Every shape with as many blocks on either side, and its error."""
    for blocks in (1, 2, 4):
        for rank in range(1, min(-(-24 // blocks), -(-40 // blocks)) + 1):
            found = monarch_project(weight, nblocks=blocks, rank=rank)
            yield found.shape, found.relative_error


@pytest.mark.parametrize("times", [1, 1.3, 1.7, 2, 3])
def test_compression_takes_the_greatest_rank_that_fits(weight, times) -> None:
    row = converted(weight, nblocks=4, target_compression=times)
    assert row.parameters_before / row.parameters_after >= times
    assert row.rank is not None
    if row.rank < MonarchShape.of(24, 40, nblocks=4, rank=1).full_rank:
        more = MonarchShape.of(24, 40, nblocks=4, rank=row.rank + 1)
        assert row.parameters_before / more.parameters < times


@pytest.mark.parametrize("times", [2, 3, 5])
def test_compression_with_any_blocks_takes_the_least_error(weight, times) -> None:
    row = converted(weight, nblocks="auto", target_compression=times)
    fitting = [error for shape, error in possible(weight) if shape.parameters <= 24 * 40 / times]
    assert row.relative_error == pytest.approx(min(fitting), rel=1e-5)


@pytest.mark.parametrize("error", [0.7, 0.5, 0.35])
def test_an_error_takes_the_least_rank_that_keeps_it(weight, error) -> None:
    row = converted(weight, nblocks=4, max_relative_error=error)
    assert row.relative_error <= error
    assert row.rank is not None
    if row.rank > 1:
        assert monarch_project(weight, nblocks=4, rank=row.rank - 1).relative_error > error


@pytest.mark.parametrize("error", [0.7, 0.4, 0.2])
def test_an_error_with_any_blocks_takes_the_fewest_parameters(weight, error) -> None:
    row = converted(weight, nblocks="auto", max_relative_error=error)
    fitting = [shape.parameters for shape, found in possible(weight) if found <= error]
    assert row.relative_error <= error
    assert row.parameters_after == min(fitting)


def test_with_calibration_the_error_is_that_of_the_output(weight, inputs) -> None:
    rows = {}
    for rank in (None, *range(1, 7)):
        options = {"rank": rank} if rank else {"max_relative_error": 0.35}
        rows[rank] = converted(weight, nblocks=4, calibration=[inputs], **options)
    least = rows[None].rank
    assert rows[None].output_error <= 0.35
    assert rows[None].output_error == pytest.approx(rows[least].output_error)
    assert least == 1 or rows[least - 1].output_error > 0.35
    assert least < converted(weight, nblocks=4, max_relative_error=0.35).rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("calibrated", [False, True])
@torch.no_grad()
def test_in_half_precision_the_errors_are_those_of_the_rounded_factors(dtype, calibrated) -> None:
    generator = torch.Generator().manual_seed(3)
    # Of rank 8, but for numbers that fall off: rounding and rank are as large in some of them.
    sizes = torch.cat([torch.ones(8), 0.02 * 0.8 ** torch.arange(56.0)])
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q for _ in range(2))
    x = torch.randn(400, 64, generator=generator)
    by_rounding = False
    for goal in ({"rank": 8}, {"max_relative_error": 0.01}, {"max_relative_error": 0.004}):
        model = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=dtype))
        model[0].weight.copy_((u * sizes) @ v.mT)
        weight = model[0].weight.double()
        options = {"calibration": [x.to(dtype)]} if calibrated else {}
        (row,) = monarchize(model, match="*", nblocks=1, **goal, **options).layers
        rest = weight - monarch_to_dense(model[0].right.double(), model[0].left.double())
        assert row.relative_error == pytest.approx(float(rest.norm() / weight.norm()), rel=1e-3)
        error = row.relative_error
        if calibrated:
            seen = x.to(dtype).double()
            error = float((seen @ rest.mT).norm() / (seen @ weight.mT).norm())
            assert row.output_error == pytest.approx(error, rel=1e-3)
        assert row.rank is not None
        limit = goal.get("max_relative_error", 1)
        assert error <= limit
        if limit < 1 and not calibrated:  # the rank before does not keep it, be it for rounding
            less = monarch_project(weight.to(dtype), nblocks=1, rank=row.rank - 1)
            rest = weight - monarch_to_dense(less.right.double(), less.left.double())
            assert float(rest.norm() / weight.norm()) > limit
            by_rounding |= less.relative_error <= limit
    assert by_rounding or calibrated or dtype == torch.float16


def test_an_error_less_than_that_of_rounding_is_said_to_be_out_of_reach(inputs) -> None:
    for options in ({}, {"calibration": [inputs.bfloat16()]}):
        model = nn.Sequential(nn.Linear(24, 40, dtype=torch.bfloat16))
        with torch.no_grad():
            model[0].weight.copy_(torch.ones(40, 1) + torch.arange(24.0) / 7)
        with pytest.raises(ValueError, match=r"1e-05 is kept at no rank, as the factors are round"):
            monarchize(model, match="*", nblocks=1, max_relative_error=1e-5, **options)
        assert type(model[0]) is nn.Linear


def test_what_a_layer_cannot_reach_is_skipped_with_the_reason(weight) -> None:
    cases = [
        ({"nblocks": 4, "max_relative_error": 1e-3}, "and dense has 960"),
        ({"nblocks": "auto", "max_relative_error": 1e-3}, "and dense has 960"),
        ({"nblocks": 4, "target_compression": 100}, "more than 1/100 of 960"),
        ({"nblocks": 4, "rank": 7}, "rank: expected at most 6"),
        ({"nblocks": 7, "rank": 1}, "nblocks: expected k·l ≤ 40"),
        ({"nblocks": 6, "max_relative_error": 0.1}, "and dense"),
    ]
    for options, message in cases:
        model = nn.Sequential(nn.Linear(24, 40), nn.Linear(832, 832))
        with torch.no_grad():
            model[0].weight.copy_(weight)
            model[1].weight.zero_()  # any goal is reached
        row, other = monarchize(model, match="*", **options).layers
        assert other.skipped is None
        assert message in row.skipped
        assert row.parameters_after == row.parameters_before == 960
        # Where no layer reaches it, that is a mistake.
        model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(24, 40))
        with torch.no_grad():
            model[0].weight.copy_(weight)
            model[2].weight.copy_(weight)
        layers = list(model)
        with pytest.raises(ValueError, match=f"some layer reaches.*none of 2 .*{message}.*nothing"):
            monarchize(model, match="*", **options)
        assert list(model) == layers


def test_more_blocks_than_a_layer_has_features_are_left_out_of_auto() -> None:
    assert max(AUTO_BLOCKS) > 7
    model = nn.Sequential(nn.Linear(7, 3))
    (row,) = monarchize(model, match="*", nblocks="auto", target_compression=2).layers
    assert row.skipped is None


def test_weights_of_zeros_are_converted_without_an_error(inputs) -> None:
    zeros = torch.zeros(40, 24)
    for options in (
        {"rank": 1},
        {"target_compression": 2},
        {"max_relative_error": 0.5},
        {"max_relative_error": 0.5, "calibration": [inputs]},
    ):
        row = converted(zeros, nblocks=2, **options)
        assert row.relative_error == 0
