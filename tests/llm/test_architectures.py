"""On every architecture: rules that say nothing new leave the model's outputs as they are.

These identities cover what differs between architectures: layout, partial rotary, where the rotated
dimensions lie, temperature, softcap, sinks, sliding windows, several rotations, latent attention.
"""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from ropewalk.blocks.rotary import LeakyReRoPE, Linear, NTKAware, Plain, ReRoPE, SelfExtend
from ropewalk.llm import is_plugged, plug

WIDE = ReRoPE(window=4096)
TRIVIAL = [WIDE, LeakyReRoPE(window=3, factor=1.0)]
TRUE_RULES = [
    {"distance": ReRoPE(window=4)},
    {"distance": LeakyReRoPE(window=4, factor=8.0), "log_n_length": 4},
    {"distance": SelfExtend(group=3, window=5), "frequency": NTKAware(factor=2.0)},
]


def logits(model: PreTrainedModel, tokens: torch.Tensor, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, **inputs).logits


def test_trivial_rules_equal_the_unplugged_model(architecture, make_model, tokens) -> None:
    model = make_model(architecture)
    expected = logits(model, tokens)
    for rule in TRIVIAL:
        with plug(model, distance=rule):
            torch.testing.assert_close(logits(model, tokens), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, tokens), expected)


def test_a_small_window_changes_the_output(architecture, make_model, tokens) -> None:
    # Otherwise the identities above would also hold for a plug that does nothing.
    model = make_model(architecture)
    expected = logits(model, tokens)
    with plug(model, distance=ReRoPE(window=3)):
        assert (logits(model, tokens) - expected).abs().max() > 1e-3


def test_padded_batch_equals_the_unplugged_model(architecture, make_model, tokens) -> None:
    model = make_model(architecture)
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for inputs in ({"attention_mask": mask}, {"attention_mask": mask, "position_ids": positions}):
        expected = logits(model, tokens, **inputs)
        with plug(model, distance=WIDE):
            got = logits(model, tokens, **inputs)
        torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rules", TRUE_RULES, ids=str)
def test_left_padding_does_not_change_a_row(architecture, make_model, tokens, rules) -> None:
    model = make_model(architecture)
    if architecture == "phi3-longrope" and "frequency" not in rules:
        pytest.skip("length-dependent frequencies follow the longest row of the batch")
    mask = torch.ones_like(tokens)
    mask[0, :8] = 0
    padded = tokens * mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with plug(model, **rules):
        alone = logits(model, tokens[:1, 8:])
        for inputs in ({}, {"position_ids": positions}):
            row = logits(model, padded, attention_mask=mask, **inputs)[:1, 8:]
            torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rules", TRUE_RULES, ids=str)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_prefill_equals_stepwise_decoding(architecture, make_model, tokens, rules, static) -> None:
    model = make_model(architecture)
    if architecture == "phi3-longrope" and "frequency" not in rules:
        pytest.skip("length-dependent frequencies follow the call's length")
    with plug(model, **rules):
        expected = logits(model, tokens)
        cache = (
            StaticCache(model.config, max_cache_len=24)
            if static
            else DynamicCache(config=model.config)
        )
        pieces = [tokens[:, :9], tokens[:, 9:12], *tokens[:, 12:].split(1, dim=-1)]
        got = [logits(model, piece, past_key_values=cache) for piece in pieces]
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rules", TRUE_RULES[:2], ids=str)
def test_padded_stepwise_decoding_equals_the_row_alone(
    architecture, make_model, tokens, rules
) -> None:
    model = make_model(architecture)
    if architecture == "phi3-longrope":
        pytest.skip("length-dependent frequencies follow the longest row of the batch")
    mask = torch.ones_like(tokens)
    mask[0, :8] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with plug(model, **rules):
        expected = logits(model, tokens[:1, 8:])
        cache = DynamicCache(config=model.config)
        got, start = [], 0
        for piece in (tokens[:, :12], *tokens[:, 12:].split(1, dim=-1)):
            stop = start + piece.shape[-1]
            got.append(
                logits(
                    model,
                    piece,
                    attention_mask=mask[:, :stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                )
            )
            start = stop
    torch.testing.assert_close(torch.cat(got, dim=1)[:1, 8:], expected, atol=1e-5, rtol=1e-5)


def test_a_frequency_rule_alone_equals_it_with_a_wide_window(
    architecture, make_model, tokens
) -> None:
    # The first runs in the model's own code, the second in the attention function.
    model = make_model(architecture)
    native = logits(model, tokens)
    for rule in (NTKAware(factor=4.0), Linear(factor=3.0)):
        with plug(model, frequency=rule):
            alone = logits(model, tokens)
        with plug(model, frequency=rule, distance=WIDE):
            moved = logits(model, tokens)
        torch.testing.assert_close(moved, alone, atol=1e-5, rtol=1e-5)
        assert (alone - native).abs().max() > 1e-3
    assert torch.equal(logits(model, tokens), native)


def test_plain_is_nothing(architecture, make_model, tokens) -> None:
    model = make_model(architecture)
    expected = logits(model, tokens)
    with plug(model, distance=Plain()):
        assert is_plugged(model)
        assert torch.equal(logits(model, tokens), expected)
    assert not is_plugged(model)


def test_half_precision_stays_within_twice_the_native_error(
    architecture, make_model, tokens
) -> None:
    exact = logits(make_model(architecture), tokens)
    model = make_model(architecture).to(torch.bfloat16)
    native = logits(model, tokens).float()
    with plug(model, distance=WIDE):
        got = logits(model, tokens).float()
    assert (got - exact).square().mean() <= 4 * (native - exact).square().mean() + 1e-6
