"""Times of training: their laws, their ends, their seeds."""

import pytest
import torch

from ropewalk.blocks.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow
from ropewalk.blocks.diffusion.train import Knots, LogitNormal, LogSNRNormal, Uniform

EVERY = [
    Uniform(),
    Uniform(stratified=True),
    LogitNormal(),
    LogitNormal(-50.0, 1.0),
    LogitNormal(50.0, 1.0),
    LogSNRNormal(),
    LogSNRNormal(200.0),
    Knots(7),
]


@pytest.mark.parametrize("times", EVERY, ids=str)
def test_times_are_float64_within_bounds_and_as_the_generator_says(times):
    schedule = RectifiedFlow()
    drawn = times(1000, schedule, generator=torch.Generator().manual_seed(3))
    again = times(1000, schedule, generator=torch.Generator().manual_seed(3))
    other = times(1000, schedule, generator=torch.Generator().manual_seed(4))
    assert drawn.shape == (1000,)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn, again)
    extreme = isinstance(times, LogitNormal | LogSNRNormal) and abs(times.mean) >= 50
    assert extreme or not torch.equal(drawn, other)
    # Float32 tells the first from 0 and the last from 1; a table's last knot is 1 itself.
    assert float(drawn.float().min()) > 0
    assert float(drawn.float().max()) < 1 or isinstance(times, Knots)
    assert times(0, schedule).shape == (0,)
    assert times(1, schedule).shape == (1,)


def test_uniform_fills_its_range():
    drawn = Uniform(0.2, 0.6)(20000, RectifiedFlow())
    assert 0.2 <= float(drawn.min()) < 0.201
    assert 0.599 < float(drawn.max()) <= 0.6
    torch.testing.assert_close(drawn.mean().item(), 0.4, rtol=0, atol=4e-3)
    torch.testing.assert_close(drawn.var().item(), 0.4**2 / 12, rtol=0.03, atol=0)


def test_stratified_times_lie_one_in_each_part_in_random_order():
    drawn = Uniform(stratified=True)(64, RectifiedFlow())
    assert sorted((drawn * 64).long().tolist()) == list(range(64))
    assert (drawn * 64).long().tolist() != list(range(64))


def test_logit_normal_has_normal_logits():
    logits = LogitNormal(-0.5, 1.5)(40000, RectifiedFlow()).logit()
    torch.testing.assert_close(logits.mean().item(), -0.5, rtol=0, atol=0.04)
    torch.testing.assert_close(logits.std().item(), 1.5, rtol=0.02, atol=0)


def test_log_snr_normal_is_edms_law_of_sigma_by_default():
    schedule = Karras()
    logs = schedule.sigma(LogSNRNormal()(40000, schedule)).log()
    torch.testing.assert_close(logs.mean().item(), -1.2, rtol=0, atol=0.03)
    torch.testing.assert_close(logs.std().item(), 1.2, rtol=0.02, atol=0)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta(), RectifiedFlow()], ids=str)
def test_log_snr_normal_has_the_same_law_under_every_schedule(schedule):
    snr = schedule.log_snr(LogSNRNormal(0.5, 1.0)(40000, schedule))
    torch.testing.assert_close(snr.mean().item(), 0.5, rtol=0, atol=0.02)
    torch.testing.assert_close(snr.std().item(), 1.0, rtol=0.02, atol=0)


def test_knots_are_the_times_of_a_table():
    drawn = Knots(4)(4000, RectifiedFlow())
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert counts.min() > 900


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0.5, 0.5), "0 ≤ low < high ≤ 1"),
        (lambda: Uniform(-0.1, 0.5), "0 ≤ low < high ≤ 1"),
        (lambda: Uniform(0.1, 1.5), "0 ≤ low < high ≤ 1"),
        (lambda: LogitNormal(0, 0), r"LogitNormal\.std"),
        (lambda: LogSNRNormal(0, -1), r"LogSNRNormal\.std"),
        (lambda: Knots(0), "expected an integer ≥ 1"),
    ],
    ids=["empty", "below 0", "above 1", "logit std", "snr std", "no steps"],
)
def test_refuses_empty_laws(make, message):
    with pytest.raises(ValueError, match=message):
        make()
