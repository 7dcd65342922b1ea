"""Calibration by few rows: it helps as far as they tell, and never does harm."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.conversion import monarchize
from ropewalk.blocks.monarch.conversion.moments import Moment, shrunk

DIM, OUT = 96, 64
RATIOS = (0.25, 0.5, 1, 2, 4, 16)
# Deviations along the axes of a random basis; the last: features of very unequal size.
SPECTRA = {
    "even": torch.ones(DIM),
    "falling": torch.linspace(0.3, 2, DIM),
    "steep": torch.logspace(0, -2, DIM),
    "a few large": torch.cat([torch.full((3,), 30.0), torch.ones(DIM - 3)]),
}


def mixing(spectrum: str) -> Tensor:
    """Rows of ones' covariance times this have the spectrum's."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(DIM, DIM, generator=generator)
    if spectrum == "a few large":
        return SPECTRA[spectrum][:, None] * (torch.eye(DIM) + 0.05 * noise)
    return SPECTRA[spectrum][:, None] * torch.linalg.qr(noise).Q


def converted(rows: Tensor | None, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """The error of a layer's weight by the moment that fresh inputs have, and the report's row."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(DIM, OUT, bias=False))
    before = model[0].weight
    calibration = None if rows is None else [rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        (row,) = monarchize(model, match="*", nblocks=4, calibration=calibration, **options).layers
    assert row.relative_error is not None
    return before.detach(), model[0].weight.detach(), row


def fresh_error(before: Tensor, after: Tensor, mix: Tensor) -> float:
    """On infinitely many fresh inputs: their moment is known."""
    return float((mix @ (before - after).mT).norm() / (mix @ before.mT).norm())


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_calibrated_is_never_noticeably_worse_than_plain_on_fresh_inputs(spectrum) -> None:
    mix = mixing(spectrum)
    before, after, _ = converted(None, rank=4)
    plain = fresh_error(before, after, mix)
    errors = []
    for ratio in RATIOS:
        generator = torch.Generator().manual_seed(int(100 * ratio))
        rows = torch.randn(int(ratio * DIM), DIM, generator=generator) @ mix
        before, after, row = converted(rows, rank=4)
        errors.append(fresh_error(before, after, mix))
        assert errors[-1] < 1.02 * plain
        # What the report says is not much better than what comes, and not far worse: with few
        # rows it is the error of a fit to half of them.
        assert 0.85 * errors[-1] < row.output_error < 1.6 * errors[-1]
        # With many rows it may be above: what has next to no part in the output is free.
        assert row.relative_error < 1 or ratio > 1
    if spectrum != "even":
        assert errors[-1] < 0.93 * plain


def test_a_warning_says_how_many_rows_would_be_enough() -> None:
    model = nn.Sequential(nn.Linear(DIM, OUT), nn.Linear(OUT, DIM))
    rows = torch.randn(4 * OUT, DIM)
    layers = list(model)
    # Where warnings are errors, as they are in these tests, nothing has been converted.
    with pytest.raises(
        UserWarning, match=r"1 layer saw .* such as 0: 256 for 96; 384 would be enough"
    ):
        monarchize(model, match="*", nblocks=4, rank=2, calibration=[rows])
    assert list(model) == layers
    with pytest.warns(UserWarning, match="would be enough") as seen:
        report = monarchize(model, match="*", nblocks=4, rank=2, calibration=[rows])
    assert [str(warning.filename) for warning in seen] == [__file__]
    assert "384 would be enough" in (report.layers[0].note or "")
    assert report.layers[1].note is None
    # Enough, and no warning, which would be an error.
    model = nn.Sequential(nn.Linear(DIM, OUT))
    monarchize(model, match="*", nblocks=4, rank=2, calibration=[torch.randn(4 * DIM, DIM)])


def test_where_plain_is_nearer_it_is_kept_and_said() -> None:
    rows = torch.randn(24, DIM, generator=torch.Generator().manual_seed(2)) @ mixing("falling")
    _, plain, _ = converted(None, rank=4)
    kept = 0
    for seed in range(4):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
        _, after, row = converted(rows[order], rank=4)
        same = torch.equal(after, plain)
        assert same == ("was kept" in row.note)
        kept += same
    assert kept > 0


def test_one_row_says_nothing() -> None:
    _, plain, _ = converted(None, rank=4)
    x = torch.randn(1, DIM)
    before, after, row = converted(x, rank=4)
    assert torch.equal(after, plain)
    assert row.calibration_rows == 1
    assert "was kept" in row.note
    expected = float((x @ (before - after).mT).norm() / (x @ before.mT).norm())
    assert row.output_error == pytest.approx(expected, rel=1e-4)


def test_an_error_asked_for_holds_on_fresh_inputs() -> None:
    mix = mixing("steep")
    rows = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1)) @ mix
    before, after, row = converted(rows, max_relative_error=0.4)
    assert row.output_error <= 0.4
    assert fresh_error(before, after, mix) < 0.44


def test_halves_are_of_other_texts_whatever_the_batches() -> None:
    rows = torch.randn(41, 6)
    for parts in (rows.split(41), rows.split(8), rows.split(1)):
        moment = Moment()
        for part in parts:
            moment.add(part)
        assert moment.rows == 41
        assert moment.counts == [21, 20]
        torch.testing.assert_close(moment.mean(), rows.mT @ rows / 41)
        both = sum(moment.half(i) * moment.counts[i] for i in (0, 1)) / 41
        torch.testing.assert_close(both, moment.mean())
    whole = Moment()
    whole.add(rows)
    torch.testing.assert_close(whole.half(0), rows[:21].mT @ rows[:21] / 21)


def test_the_share_is_near_the_one_that_is_best() -> None:
    """Against the shares there are, by the covariance that is known here."""
    mix = mixing("falling")
    true = mix.mT @ mix
    for count in (48, 192, 768):
        moment = Moment()
        moment.add(torch.randn(count, DIM, generator=torch.Generator().manual_seed(count)) @ mix)
        scale = moment.mean().diagonal().rsqrt()

        def away(share: float, moment: Moment = moment, scale: Tensor = scale) -> float:
            difference = (shrunk(moment.mean(), share) - true) * scale * scale[:, None]
            return float((difference - torch.diag(difference.diagonal())).norm())

        best = min(away(share / 100) for share in range(101))
        assert away(moment.doubt()) < 1.05 * best
        # Units of features change nothing, and a feature that never occurs does no harm.
        other = Moment()
        units = torch.logspace(-2, 2, DIM)
        assert moment.halves is not None
        other.halves, other.counts = moment.halves * units * units[:, None], moment.counts
        assert other.doubt() == pytest.approx(moment.doubt(), rel=1e-3)
        other.halves = torch.nn.functional.pad(moment.halves, (0, 2, 0, 2))
        assert other.doubt() == pytest.approx(moment.doubt(), rel=1e-5)
