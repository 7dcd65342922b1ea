"""What a plugged model computes: transformers' own rules, log n, packed rows, masks, padding."""

import pytest
import torch

from ropewalk.blocks.rotary import DynamicNTK, LogN, LongRoPE, NTKAware, NTKMixed, ReRoPE, YaRN
from ropewalk.llm import plug


@torch.no_grad()
def logits(model, tokens, **inputs):
    return model(tokens, **inputs).logits


def test_replacing_a_native_scaling_starts_from_the_models_base(make_model, tokens):
    # A Llama 3 checkpoint's scaling is replaced, not multiplied.
    scaled, plain = make_model("llama3-scaled"), make_model("llama")
    plain.load_state_dict(scaled.state_dict())
    rule = NTKMixed(factor=4.0)
    with plug(scaled, frequency=rule), plug(plain, frequency=rule):
        assert torch.equal(logits(scaled, tokens), logits(plain, tokens))


@pytest.mark.parametrize(
    ("architecture_name", "rope_parameters", "rule"),
    [
        (
            "llama",
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            YaRN(factor=4.0, original_length=16),
        ),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, DynamicNTK(2.0, original_length=64)),
        (
            "deepseek-v3",
            {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 16,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            },
            YaRN(factor=2.0, original_length=16, mscale=1.0, mscale_all_dim=0.5),
        ),
        (
            "phi3",
            {
                "rope_type": "longrope",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.0, 4.0],
            },
            LongRoPE((1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 3.0, 4.0), 16, factor=4.0),
        ),
    ],
)
@pytest.mark.parametrize("length", [9, 16, 17, 80])
def test_a_plugged_rule_equals_transformers_own(
    make_model, architecture_name, rope_parameters, rule, length
):
    # Phi 3 takes the trained length from here.
    lengths = {"original_max_position_embeddings": 16} if architecture_name == "phi3" else {}
    native = make_model(
        architecture_name, rope_parameters={"rope_theta": 10000.0, **rope_parameters}, **lengths
    )
    model = make_model(
        architecture_name, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    )
    model.load_state_dict(native.state_dict())
    tokens = torch.randint(2, 48, (1, length))
    with plug(model, frequency=rule):
        torch.testing.assert_close(
            logits(model, tokens), logits(native, tokens), atol=2e-5, rtol=1e-4
        )


def test_log_n_scales_the_queries_of_later_positions_only(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    with plug(model, log_n_length=12):
        got = logits(model, tokens)
    torch.testing.assert_close(got[:, :12], expected[:, :12], atol=1e-5, rtol=1e-5)
    assert (got[:, 12:] - expected[:, 12:]).abs().amax() > 1e-3
    with plug(model, log_n_length=LogN(12, clamp=False)):
        assert (logits(model, tokens)[:, 1:12] - expected[:, 1:12]).abs().amax() > 1e-3


def test_gemma3_extends_only_the_layers_with_full_attention(make_model):
    model = make_model("gemma3")
    rotary = model.model.rotary_emb
    local = rotary.sliding_attention_inv_freq.clone()
    with plug(model, frequency=NTKAware(factor=4.0)):
        assert torch.equal(model.model.rotary_emb.sliding_attention_inv_freq, local)
        assert model.config.rope_parameters["full_attention"]["rope_theta"] > 500000.0
        assert model.config.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0


def test_packed_sequences_equal_the_sequences_alone(make_model, tokens):
    model = make_model()
    packed = torch.cat((tokens[:1, :9], tokens[1:, :12]), dim=1)
    positions = torch.cat((torch.arange(9), torch.arange(12)))[None]
    with plug(model, distance=ReRoPE(window=4)):
        with pytest.raises(ValueError, match="use_cache=False"):
            logits(model, packed, position_ids=positions)
        got = logits(model, packed, position_ids=positions, use_cache=False)
        first, second = logits(model, tokens[:1, :9]), logits(model, tokens[1:, :12])
    torch.testing.assert_close(got, torch.cat((first, second), dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_ones_own_says_everything(make_model, tokens, additive):
    # Not even the sliding window of the model is added to it.
    model = make_model("mistral")
    mask = torch.ones(2, 1, 21, 21, dtype=torch.bool).tril()
    mask[:, :, 5:, 2] = False
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = logits(model, tokens, attention_mask=mask)
    with plug(model, distance=ReRoPE(window=4096)):
        got = logits(model, tokens, attention_mask=mask)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_right_padding_between_calls_is_counted_out(make_model, tokens):
    # A right-padded prompt, then a token: the cache has a hole that positions do not have.
    model = make_model()
    mask = torch.ones(2, 22, dtype=torch.int64)
    mask[0, 15:21] = 0
    padded = tokens * mask[:, :21]
    step = torch.tensor([[5], [6]])
    positions = mask[:, :21].sum(-1, keepdim=True)
    with plug(model, distance=ReRoPE(window=4), log_n_length=6):
        past = model(padded, attention_mask=mask[:, :21]).past_key_values
        got = logits(model, step, attention_mask=mask, position_ids=positions, past_key_values=past)
        alone = logits(model, torch.cat((tokens[:1, :15], step[:1]), dim=1))[:, -1:]
        full = logits(model, torch.cat((tokens[1:], step[1:]), dim=1))[:, -1:]
    torch.testing.assert_close(got, torch.cat((alone, full)), atol=1e-5, rtol=1e-5)
