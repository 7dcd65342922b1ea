"""Rules survive a transformers config, and configs that exist are read."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from ropewalk.blocks.rotary import (
    Default,
    DynamicNTK,
    FrequencyRule,
    Linear,
    Llama3,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    YaRN,
    from_rope_parameters,
)

DIM = 16
SHARED = [
    Default(),
    Linear(4.0),
    DynamicNTK(2.0, 512),
    YaRN(4.0, 512),
    YaRN(4.0, 512, beta_fast=16.0, truncate=False, mscale=1.0, mscale_all_dim=0.5),
    YaRN(4.0, 512, attention_scaling=1.25),
    Llama3(8.0, 1.0, 4.0, 512),
    LongRoPE([1.0] * 8, [2.0] * 8, 512, 4.0),
    LongRoPE([1.0] * 8, [2.0] * 8, 512, attention_scaling=1.25),
]
WRITTEN_AS_OTHERS = [NTKAware(4.0), NTKFixed(4.0), NTKMixed(4.0), NTKMixed(4.0, 0.3)]


def config_with(parameters: dict) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=2048,
        rope_parameters=parameters,
    )


def saved_and_read(rule: FrequencyRule, folder: Path) -> tuple[FrequencyRule, float]:
    """The rule and the base that come back from a config on disk."""
    config_with(rule.to_rope_parameters(base=5000.0, rotary_dim=DIM)).save_pretrained(folder)
    loaded = LlamaConfig.from_pretrained(folder)
    parameters: dict = dict(loaded.rope_parameters or {})
    again = from_rope_parameters(parameters, max_position_embeddings=loaded.max_position_embeddings)
    return again, parameters["rope_theta"]


@pytest.mark.parametrize("rule", SHARED, ids=repr)
def test_shared_rules_come_back_as_themselves(rule, tmp_path):
    again, base = saved_and_read(rule, tmp_path)
    assert again == rule
    assert base == 5000.0


@pytest.mark.parametrize("rule", SHARED + WRITTEN_AS_OTHERS, ids=repr)
@pytest.mark.parametrize("length", [None, 512, 4096])
def test_frequencies_of_every_rule_come_back(rule, length, tmp_path):
    again, base = saved_and_read(rule, tmp_path)
    expected = rule.inverse_frequencies(DIM, 5000.0, length)
    actual = again.inverse_frequencies(DIM, base, length)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert again.attention_factor(length) == pytest.approx(rule.attention_factor(length), rel=1e-6)


@pytest.mark.parametrize("rule", SHARED + WRITTEN_AS_OTHERS, ids=repr)
def test_parameters_are_plain_json_and_enough_by_themselves(rule):
    parameters = rule.to_rope_parameters(rotary_dim=DIM)
    assert json.loads(json.dumps(parameters)) == parameters
    again = FrequencyRule.from_rope_parameters(parameters)
    torch.testing.assert_close(
        again.inverse_frequencies(DIM, parameters["rope_theta"]),
        rule.inverse_frequencies(DIM, 10000.0),
        rtol=1e-6,
        atol=0,
    )


def test_the_trained_length_can_be_written_beside_a_rule_that_has_none():
    parameters = NTKMixed(4.0).to_rope_parameters(rotary_dim=DIM, original_length=512)
    assert parameters["original_max_position_embeddings"] == 512
    assert parameters["attention_factor"] == 1.0


@pytest.mark.parametrize("rule", WRITTEN_AS_OTHERS, ids=repr)
def test_rules_written_as_others_need_the_dimension(rule):
    with pytest.raises(ValueError, match="expected rotary_dim, got None"):
        rule.to_rope_parameters()


def test_phi3_takes_its_temperature_from_the_two_lengths():
    config = Phi3Config(
        hidden_size=2 * DIM,
        num_attention_heads=2,
        max_position_embeddings=4096,
        original_max_position_embeddings=512,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    )
    rule = from_rope_parameters(dict(config.rope_parameters or {}), max_position_embeddings=4096)
    assert rule == LongRoPE([1.0] * 8, [2.0] * 8, 512, factor=8.0)
    assert rule.attention_factor() == pytest.approx((1 + 3 / 9) ** 0.5)


def test_older_and_foreign_spellings():
    assert from_rope_parameters({"type": "linear", "factor": 2.0}) == Linear(2.0)
    assert from_rope_parameters({}) == Default()
    assert from_rope_parameters({"rope_type": "ntk", "factor": 2.0}) == NTKFixed(2.0)
    mixed = from_rope_parameters({"rope_type": "ntk", "factor": 2.0, "mixed_b": 0.5})
    assert mixed == NTKMixed(2.0, 0.5)
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512}
    assert from_rope_parameters(yarn, max_position_embeddings=2048) == YaRN(4.0, 512)
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    assert from_rope_parameters(dynamic, max_position_embeddings=512) == DynamicNTK(2.0, 512)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "spiral"}, "expected one of default, dynamic, .*yarn, got 'spiral'"),
        ({"rope_type": "linear"}, "rope_type 'linear': 'factor' is missing"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 512}, "expected 'factor'"),
        ({"rope_type": "dynamic", "factor": 2.0}, "'original_max_position_embeddings'"),
        ({"rope_type": "llama3", "factor": 2.0}, "'low_freq_factor' is missing"),
        ({"full_attention": {"rope_type": "default"}}, "nested under full_attention"),
        ({"rope_type": "linear", "factor": -2.0}, "Linear.factor"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        from_rope_parameters(parameters)
