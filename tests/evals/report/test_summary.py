"""Aggregation of results, and the sentence that is made of it."""

import math

import pytest

from ropewalk.evals.report.conclusion import conclusion
from ropewalk.evals.report.summary import summarise


def test_cells_hold_means_and_intervals(telling_run):
    summary = summarise(telling_run)
    loss = summary.losses["rope", 1024]
    assert loss.bits_per_byte.value == pytest.approx(1.7)
    assert loss.nats.value == pytest.approx(1.7 * 2 * math.log(2))
    # Three documents at -0.01, 0, +0.01: standard deviation 0.01, t = 4.303.
    assert loss.bits_per_byte.half_width == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    assert summary.retrieval["rope", 1024, 0.0].value == 0.5
    assert summary.retrieval["rope", 1024, 1.0].value == 0.0
    assert summary.retrieval_by_length["rope", 1024].value == 0.1
    assert summary.depths == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert summary.trained_length == 512
    assert summary.seconds == 90.0


def test_the_change_is_paired_so_that_the_documents_spread_cancels(made_up_run):
    wide = summarise(made_up_run({"rope": {512: 1.5, 1024: 1.4}}, spread=1.0))
    loss = wide.losses["rope", 1024]
    assert loss.bits_per_byte.half_width > 1.0
    assert loss.change.value == pytest.approx(-0.1)
    assert loss.change.half_width == pytest.approx(0.0, abs=1e-9)


def test_a_loss_that_is_not_finite_shows(telling_run):
    telling_run["results"][0]["nats"] = None
    summary = summarise(telling_run)
    assert math.isnan(summary.losses["rope", 512].bits_per_byte.value)
    assert "nan" not in conclusion(summary)
    assert conclusion(summary).endswith("The loss of rope at 512 tokens is not finite.")


def test_losses_that_are_all_not_finite_are_what_is_concluded(made_up_run):
    run = made_up_run({"rope": {512: 1.5, 1024: 1.5}, "yarn": {512: 1.5, 1024: 1.5}})
    for result in run["results"]:
        result["nats"] = None
    assert conclusion(summarise(run)) == (
        "The loss of rope at 512 and 1024 tokens and of yarn at 512 and 1024 tokens is not finite."
    )


def test_an_incomplete_run_says_so_and_compares_whole_cells_only(telling_run):
    telling_run["complete"] = False
    dropped = ("rerope+log-n", 2048)
    telling_run["results"] = [
        result
        for result in telling_run["results"]
        if (result["variant"], result["length"]) != dropped
        or result["sample"] in ("document 0", "depth 0.0 trial 0")
    ]
    text = conclusion(summarise(telling_run))
    assert text.endswith(". Not complete: 106 of 117 samples.")
    assert "rerope" not in text
    assert "ntk-aware, the lowest of 2" in text
    telling_run["results"] = telling_run["results"][:1]
    assert conclusion(summarise(telling_run)) == "Not complete: 1 of 117 samples."


def test_losses_inside_the_interval_are_tied(made_up_run):
    run = made_up_run({"rope": {512: 1.51}, "yarn": {512: 1.5}, "linear": {512: 1.9}})
    text = conclusion(summarise(run))
    assert "that of yarn, the lowest of 3," in text
    for result in run["results"]:
        if result["variant"] == "yarn":
            # The documents disagree about which variant is better.
            result["nats"] += {"document 0": 0.2, "document 1": -0.2}.get(result["sample"], 0.0)
    assert conclusion(summarise(run)) == (
        "The loss of rope, tied with yarn for the lowest of 3, is 1.510 bits per byte at 512 "
        "tokens."
    )


def test_equal_losses_have_no_lowest(made_up_run):
    values = {name: {512: 1.5} for name in ("rope", "a", "b", "c", "d")}
    assert "tied with 4 others for the lowest of 5" in conclusion(summarise(made_up_run(values)))


def test_shares_inside_the_interval_are_said_to_be(made_up_run):
    ahead = made_up_run(None, {"rope": {512: 0.5}, "rerope": {512: 0.4}})
    assert "50% (its confidence interval includes rerope)" in conclusion(summarise(ahead))
    behind = made_up_run(None, {"rope": {512: 0.4}, "rerope": {512: 0.5}})
    assert "rerope 50% (inside the confidence interval)" in conclusion(summarise(behind))


def test_variants_in_words(telling_run):
    summary = summarise(telling_run)
    assert summary.settings_of("rope") == "the model as it is"
    assert (
        summary.settings_of("rerope+log-n") == "rerope(window=128) + log-n(length=512, clamp=true)"
    )


def test_the_conclusion_says_what_the_figures_say(telling_run):
    assert conclusion(summarise(telling_run)) == (
        "The loss of rope rises from 1.500 bits per byte at 512 tokens to 2.200 at 2048, that of "
        "rerope+log-n, the lowest of 3, falls from 1.500 bits per byte at 512 tokens to 1.450 at "
        "2048; at 2048 tokens rope finds 0% of the pass keys, rerope+log-n 100%."
    )


@pytest.mark.parametrize(
    ("losses", "shares", "expected"),
    [
        (
            {"rope": {512: 1.5, 1024: 1.4}, "rerope": {512: 1.5, 1024: 1.9}},
            None,
            "The loss of rope, the lowest of 2, falls from 1.500 bits per byte at 512 tokens to "
            "1.400 at 1024.",
        ),
        (
            {"rope": {512: 1.5, 1024: 1.501}},
            None,
            "The loss of rope stays at 1.501 bits per byte from 512 to 1024 tokens.",
        ),
        ({"rope": {512: 1.5}}, None, "The loss of rope is 1.500 bits per byte at 512 tokens."),
        (None, {"rope": {512: 0.0}, "rerope": {512: 0.0}}, "no variant finds the pass key"),
        (
            None,
            {"rope": {512: 0.5}, "rerope": {512: 0.5}},
            "rope finds 50% of the pass keys and no variant finds more",
        ),
        (None, {"rope": {512: 0.5}, "rerope": {512: 0.1}}, "rope finds the most pass keys, 50%"),
        (
            None,
            {"rope": {512: 0.5}, "rerope": {512: 1.0}, "ntk": {512: 1.0}},
            "rope finds 50% of the pass keys, rerope and ntk 100%",
        ),
    ],
)
def test_the_conclusion_follows_the_data(made_up_run, losses, shares, expected):
    assert expected in conclusion(summarise(made_up_run(losses, shares)))


def test_a_run_without_results_says_so(telling_run):
    telling_run["results"] = []
    assert conclusion(summarise(telling_run)) == "This run has no results yet."
