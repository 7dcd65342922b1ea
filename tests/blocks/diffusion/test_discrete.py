"""Mask and edit: the statistics of their corruption, of a step, and of what is drawn."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ropewalk.blocks.diffusion import (
    Cosine,
    Edit,
    LinearBeta,
    Mask,
    RectifiedFlow,
    Schedule,
    universal_step,
)
from ropewalk.blocks.diffusion.process import Discrete

V, COUNT = 5, 100_000
SCHEDULES: dict[str, Schedule] = {
    "flow": RectifiedFlow(),
    "cosine": Cosine(),
    "linear_beta": LinearBeta(),
}
scheduled = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def share_is(events: Tensor, probability: Tensor | float) -> bool:
    """Whether the share of true events is within five standard deviations of its probability."""
    p = float(probability)
    deviation = math.sqrt(p * (1 - p) / events.numel())
    return abs(float(events.double().mean()) - p) <= 5 * deviation + 1e-12


def edited_law(process: Edit, x: Tensor, x0: Tensor, t: float) -> float:
    """The p-value of x under F_t: x0 with 1 − m(t), each other token with m(t)/(V − 1)."""
    rate = float(process.rate(x0, t))
    counts = torch.bincount((x - x0).flatten() % V, minlength=V).numpy()
    expected = [COUNT * (1 - rate)] + [COUNT * rate / (V - 1)] * (V - 1)
    return float(stats.chisquare(counts, expected).pvalue)


@scheduled
def test_masks_are_as_frequent_as_the_severity(schedule: Schedule) -> None:
    process = Mask(V, schedule)
    x0 = torch.randint(V, (4, COUNT // 4))
    t = torch.tensor([0.0, 0.2, 0.7, 1.0])
    masked = process.corrupt(x0, process.fresh(x0), t) == process.mask_token
    for row in range(4):
        assert share_is(masked[row], schedule.severity(t[row]))
    assert not masked[0].any()
    assert masked[3].all()


@scheduled
def test_masks_stay_with_the_ratio_of_the_rates(schedule: Schedule) -> None:
    process = Mask(V, schedule)
    x0 = torch.randint(V, (1, COUNT))
    x_t = process.corrupt(x0, process.fresh(x0), 0.8)
    masked = x_t == process.mask_token
    for s in (0.5, 0.1):
        x_s = universal_step(process, x_t, x0, 0.8, s, 0.0)
        still = x_s == process.mask_token
        assert share_is(still[masked], schedule.severity(s) / schedule.severity(0.8))
        assert torch.equal(x_s[~masked], x0[~masked])  # what is seen stays seen
        assert torch.equal(x_s[~still], x0[~still])
    assert torch.equal(universal_step(process, x_t, x0, 0.8, 0.0, 0.0), x0)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_a_masking_step_keeps_the_marginal_law(rho: float) -> None:
    process = Mask(V, Cosine())
    x0 = torch.randint(V, (1, COUNT))
    x_t = process.corrupt(x0, process.fresh(x0), 0.8)
    x_s = universal_step(process, x_t, x0, 0.8, 0.4, rho)
    assert share_is(x_s == process.mask_token, process.schedule.severity(0.4))
    # With probability ρ² a place is decided anew.
    again = (x_s == process.mask_token)[x_t != process.mask_token]
    assert share_is(again, rho**2 * process.schedule.severity(0.4))


def test_predictions_carry_over_what_is_seen() -> None:
    process = Mask(V, RectifiedFlow())
    x_t = torch.tensor([[0, V, 3, V]])
    logits = torch.randn(1, 4, V, requires_grad=True)
    log_probs = process.predict(logits, x_t, 0.5)
    torch.testing.assert_close(log_probs[:, [1, 3]], logits[:, [1, 3]].log_softmax(-1))
    for place in (0, 2):
        token = int(x_t[0, place])
        assert log_probs[0, place, token] == 0
        others = log_probs[0, place, torch.arange(V) != token]
        assert (others == -math.inf).all()
    for temperature in (0.0, 0.3, 1.0, 10.0):
        drawn = process.draw(log_probs, x_t, 0.5, temperature=temperature)
        assert torch.equal(drawn[:, [0, 2]], x_t[:, [0, 2]])
        assert (drawn < V).all()
    log_probs.exp().sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_drawn_as_likely_as_they_are(temperature: float, dtype: torch.dtype) -> None:
    process = Edit(V, RectifiedFlow())
    logits = torch.tensor([2.0, 0.0, -1.0, 1.5, -4.0]).to(dtype).log_softmax(-1)
    x_t = torch.zeros(1, COUNT, dtype=torch.int32)
    drawn = process.draw(logits.expand(1, COUNT, V), x_t, 0.5, temperature=temperature)
    assert drawn.dtype == torch.int32
    expected = COUNT * (logits.double() / temperature).softmax(-1)
    counts = torch.bincount(drawn.flatten(), minlength=V).numpy()
    assert stats.chisquare(counts, expected.numpy()).pvalue > 1e-3
    cold = process.draw(logits.expand(1, COUNT, V), x_t, 0.5, temperature=0.0)
    assert (cold == 0).all()


def test_draws_use_the_whole_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform number next to 1, which float32 cannot tell from 1, makes an unlikely token win."""
    asked = []

    def rare(shape, *, dtype, device) -> Tensor:
        asked.append(dtype)
        uniform = torch.full(shape, 0.5, dtype=dtype, device=device)
        uniform[..., 1] = 2.0**-50
        return uniform

    monkeypatch.setattr(torch, "rand", rare)
    log_probs = torch.tensor([[[0.0, -30.0, -60.0]]])
    drawn = Edit(3, RectifiedFlow()).draw(log_probs, torch.zeros(1, 1, dtype=torch.int64), 0.5)
    assert asked == [torch.float64]
    assert drawn.item() == 1


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=repr)
def test_the_weighted_loss_bounds_the_likelihood(schedule: Schedule) -> None:
    """Uniform tokens and a model that knows nothing: every bound is log V nats per token."""
    process = Mask(V, schedule, elbo=True)
    x0 = torch.randint(V, (2_000, 50))
    t = (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000
    noise = process.fresh(x0)
    x_t = process.corrupt(x0, noise, t)
    logits = torch.zeros(2_000, 50, V)
    bound = process.loss(logits, x0, x_t, noise, t).mean()
    assert bound == pytest.approx(math.log(V), rel=0.03)
    plain = Mask(V, schedule).loss(logits, x0, x_t, noise, t)
    masked = (x_t == process.mask_token).double().mean(1)
    torch.testing.assert_close(plain.double(), masked * math.log(V), rtol=1e-5, atol=1e-6)
    at_zero = process.loss(logits[:2], x0[:2], x0[:2], noise[:2], torch.tensor([0.0, 0.5]))
    assert (at_zero == 0).all()


def test_the_loss_counts_what_is_masked_only() -> None:
    process = Mask(V, RectifiedFlow())
    x0, x_t = torch.tensor([[1, 2, 3]]), torch.tensor([[1, V, 3]])
    logits = torch.randn(1, 3, V)
    expected = -logits.log_softmax(-1)[0, 1, 2] / 3
    loss = process.loss(logits, x0, x_t, process.fresh(x0), 0.5)
    torch.testing.assert_close(loss, expected.reshape(1))
    edit = Edit(V, RectifiedFlow())
    every = -logits.log_softmax(-1)[0, torch.arange(3), x0[0]].mean()
    loss = edit.loss(logits, x0, x0, edit.fresh(x0), 0.5)
    torch.testing.assert_close(loss, every.reshape(1))


@scheduled
def test_edits_replace_by_any_other_token(schedule: Schedule) -> None:
    process = Edit(V, schedule)
    x0 = torch.randint(V, (1, COUNT))
    for t in (0.3, 0.8, 1.0):
        x_t = process.corrupt(x0, process.fresh(x0), t)
        assert share_is(x_t != x0, float(schedule.severity(t)) * (V - 1) / V)
        assert edited_law(process, x_t, x0, t) > 1e-3


def test_at_time_one_nothing_is_known_of_the_data() -> None:
    process = Edit(V, RectifiedFlow())
    x0 = torch.full((1, COUNT), 3)
    for x in (process.corrupt(x0, process.fresh(x0), 1.0), process.prior((1, COUNT))):
        counts = torch.bincount(x.flatten(), minlength=V).numpy()
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_an_editing_step_keeps_the_marginal_law(rho: float) -> None:
    """Given the true x₀, the state at s has the law of F_s whatever is renewed."""
    process = Edit(V, Cosine())
    x0 = torch.randint(V, (1, COUNT))
    x_t = process.corrupt(x0, process.fresh(x0), 0.8)
    x_s = universal_step(process, x_t, x0, 0.8, 0.4, rho)
    assert edited_law(process, x_s, x0, 0.4) > 1e-3
    if rho == 0:
        replaced = (x_t != x0) & (x_s != x0)
        assert torch.equal(x_s[replaced], x_t[replaced])  # the same wrong token, still there
        assert torch.equal(x_s[x_t == x0], x0[x_t == x0])
        ratio = process.rate(x0, 0.4) / process.rate(x0, 0.8)
        assert share_is((x_s != x0)[x_t != x0], ratio)


@pytest.mark.parametrize("process", [Mask(V, Cosine()), Edit(V, Cosine())], ids=str)
def test_the_rate_is_one_or_one_per_sample(process: Discrete) -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.int64)
    assert process.rate(x, 0.4).shape == ()
    rates = process.rate(x, torch.tensor([0.4, 0.6]))
    assert rates.shape == (2, 1, 1)
    assert rates.dtype == torch.float64
    one = process.rate(x, torch.tensor(0.4))
    torch.testing.assert_close(rates[0, 0, 0], one, rtol=1e-12, atol=0)
