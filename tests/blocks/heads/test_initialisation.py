"""The loss that a head starts at: measured, by the formula, and in the article's table."""

import itertools
import math

import pytest
import torch

from ropewalk.blocks.heads import (
    INITIALISATIONS,
    OUTPUT_FORMS,
    TiedEmbedding,
    expected_initial_loss,
    initial_std,
)

VOCABULARY, DIM = 20000, 768
# MATH.md §2; of σ = ln(n)/d only the tied form is given there.
TABLE = {
    "inverse_sqrt": [27.63, 10.43, 10.47, 10.37, 10.46],
    "normal": [15.38, 10.04, 10.08, 10.06, 10.06],
    "vocab": [10.64],
}
FORMS = ["identity", "swap", "shuffle", "orthogonal", "untied"]


@pytest.fixture(scope="module")
def measured():
    """At initialisation a hidden state is its token's embedding, normalised; targets are random."""
    torch.manual_seed(0)
    ids, targets = torch.randint(VOCABULARY, (2, 1024))
    losses = {}
    for init, output in itertools.product(INITIALISATIONS, FORMS):
        head = TiedEmbedding(VOCABULARY, DIM, init=init, output=output)
        with torch.no_grad():
            hidden = torch.nn.functional.rms_norm(head(ids), (DIM,))
            losses[init, output] = float(head.loss(hidden, targets))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("init", TABLE)
def test_initial_losses_are_those_of_the_table(measured, init):
    for output, loss in zip(FORMS, TABLE[init], strict=False):
        assert measured[init, output] == pytest.approx(loss, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("init", INITIALISATIONS)
def test_initial_losses_are_the_expected_ones(measured, init):
    std = initial_std(init, VOCABULARY, DIM)
    for output in OUTPUT_FORMS:
        expected = expected_initial_loss(VOCABULARY, DIM, std, output=output)
        assert measured[init, output] == pytest.approx(expected, rel=0.01)


def test_the_formula():
    n, d, std = 50, 8, 0.3
    expected = math.log(math.exp(d * std) + (n - 1) * math.exp(d * std**2 / 2))
    assert expected_initial_loss(n, d, std) == pytest.approx(expected)
    floor = math.log(n) + d * std**2 / 2
    assert expected_initial_loss(n, d, std, output="swap") == pytest.approx(floor)


def test_nothing_overflows():
    assert expected_initial_loss(100, 4096, 1.0) == pytest.approx(4096)


def test_the_scale_of_the_logits_counts():
    torch.manual_seed(0)
    head = TiedEmbedding(2000, 64, init="normal", std=0.1, logit_scale=0.5)
    ids, targets = torch.randint(2000, (2, 4096))
    with torch.no_grad():
        loss = float(head.loss(torch.nn.functional.rms_norm(head(ids), (64,)), targets))
    expected = expected_initial_loss(2000, 64, 0.1, logit_scale=0.5)
    assert loss == pytest.approx(expected, rel=0.01)
    assert abs(expected - expected_initial_loss(2000, 64, 0.1)) > 0.2


def test_a_vocabulary_initialisation_starts_near_the_logarithm():
    std = initial_std("vocab", 128256, 4096)
    assert expected_initial_loss(128256, 4096, std) < math.log(128256) + 0.75


@pytest.mark.parametrize(
    ("options", "std"),
    [
        ({}, math.log(3000) / 64),
        ({"init": "normal"}, 0.02),
        ({"init": "normal", "std": 0.5}, 0.5),
        ({"init": "inverse_sqrt"}, 1 / 8),
    ],
)
@pytest.mark.parametrize("output", ["identity", "untied"])
def test_tables_have_the_standard_deviation_that_is_asked_for(options, std, output):
    torch.manual_seed(0)
    head = TiedEmbedding(3000, 64, output=output, padding_idx=-1, bias=True, **options)
    head.requires_grad_(False)
    state = head.state_dict()
    names = ["weight", "output_weight"] if output == "untied" else ["weight"]
    for table in (state[name][:-1] for name in names):
        assert float(table.std()) == pytest.approx(std, rel=0.02)
        assert abs(float(table.mean())) < 0.01 * std
    assert not head.weight[2999].any()
    assert not state["bias"].any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TiedEmbedding(9, 4, init="xavier"), ValueError, "init: expected one of vocab"),
        (lambda: TiedEmbedding(9, 4, std=0.02), ValueError, "take init='normal', std=0.02"),
        (lambda: TiedEmbedding(9, 4, init="normal", std=-1.0), ValueError, "number > 0, got -1.0"),
        (lambda: TiedEmbedding(9, 4, init="normal", std="big"), TypeError, "std: expected a numb"),
        (lambda: expected_initial_loss(0, 4, 0.1), ValueError, "n: expected an integer ≥ 1"),
        (lambda: expected_initial_loss(9, 4.0, 0.1), TypeError, "d: expected an integer"),
        (lambda: expected_initial_loss(9, 4, 0.0), ValueError, "std: expected a finite number > 0"),
        (
            lambda: expected_initial_loss(9, 4, 0.1, logit_scale=math.nan),
            ValueError,
            "logit_scale: expected a finite number, got nan",
        ),
        (lambda: expected_initial_loss(9, 4, 0.1, output="x"), ValueError, "expected one of iden"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
