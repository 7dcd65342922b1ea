"""Perplexity scores the same tokens at every length."""

import numpy as np
import pytest
import torch

from ropewalk.evals.documents import TokenDocument
from ropewalk.evals.tasks.perplexity import ROWS_AT_ONCE, Perplexity


def documents(count=2, length=20):
    generator = np.random.default_rng(0)
    return [
        TokenDocument(f"d{n}", generator.integers(0, 50, length), 2 * np.arange(1, length + 1))
        for n in range(count)
    ]


def test_the_scored_tokens_do_not_depend_on_the_length():
    task = Perplexity(documents(), score_tokens=4)
    for short, long in zip(task.samples(8), task.samples(20), strict=True):
        assert short.key == long.key
        assert short.about == long.about
        assert short.scored == long.scored == 4
        assert len(short.tokens) == 8
        assert len(long.tokens) == 20
        assert np.array_equal(short.tokens, long.tokens[-8:])


def test_a_prefix_stands_first_at_every_length_and_counts():
    task = Perplexity(documents(length=19), score_tokens=4, prefix=[99])
    for length in (8, 20):
        for sample, document in zip(task.samples(length), documents(length=19), strict=True):
            assert len(sample.tokens) == length
            assert sample.tokens[0] == 99
            assert np.array_equal(sample.tokens[1:], document.tokens[-(length - 1) :])


@pytest.mark.parametrize("scored", [1, 7, ROWS_AT_ONCE, ROWS_AT_ONCE + 5])
def test_the_loss_is_the_mean_negative_log_probability(scored):
    task = Perplexity(documents(length=scored + 1), score_tokens=scored)
    sample = task.samples(scored + 1)[0]
    logits = torch.randn(scored, 50, dtype=torch.float64)
    targets = torch.from_numpy(sample.tokens[-scored:])
    expected = -logits.log_softmax(-1).gather(-1, targets[:, None]).mean()
    measured = task.measure(sample, logits.float())
    assert measured["nats"] == pytest.approx(expected.item(), rel=1e-6)
    assert measured["tokens"] == scored
    assert sample.about["bytes"] == 2 * scored


def test_a_loss_that_is_not_finite_is_none():
    task = Perplexity(documents(), score_tokens=2)
    sample = task.samples(8)[0]
    assert task.measure(sample, torch.full((2, 50), float("nan")))["nats"] is None


def test_settings_change_with_the_text():
    first = Perplexity(documents(), score_tokens=4).settings()
    changed = documents()
    changed[1].tokens[3] += 1
    assert first == Perplexity(documents(), score_tokens=4).settings()
    assert first != Perplexity(changed, score_tokens=4).settings()
