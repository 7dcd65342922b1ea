"""The handle: what is changed, what is put back, and that models do not see each other."""

import copy
import gc
import weakref

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ropewalk.blocks.rotary import (
    DualChunk,
    DynamicNTK,
    LogN,
    LongRoPE,
    NTKAware,
    NTKMixed,
    ReRoPE,
    YaRN,
)
from ropewalk.llm import is_plugged, plug, plug_of, trained_length, unplug

PLUGS = {
    "frequency": {"frequency": NTKAware(factor=4.0)},
    "distance": {"distance": ReRoPE(window=4)},
    "log-n": {"log_n_length": 4},
    "all": {
        "frequency": YaRN(factor=4.0, original_length=16),
        "distance": DualChunk(chunk=8, local=2),
        "log_n_length": LogN(4, clamp=False),
    },
    "dynamic": {"frequency": DynamicNTK(factor=2.0, original_length=8)},
}


@pytest.fixture(params=list(PLUGS))
def rules(request):
    return PLUGS[request.param]


@torch.no_grad()
def logits(model, tokens, **inputs):
    return model(tokens, **inputs).logits


def test_unplugging_restores_bit_identical_outputs_and_objects(
    architecture, make_model, tokens, rules
):
    model = make_model(architecture)
    expected = logits(model, tokens)
    modules = dict(model.named_modules())
    settings = model.config.to_dict()
    attributes = {name: dict(vars(module)) for name, module in modules.items()}
    with plug(model, **rules):
        assert not torch.equal(logits(model, tokens), expected)
    assert torch.equal(logits(model, tokens), expected)
    assert dict(model.named_modules()) == modules
    assert model.config.to_dict() == settings
    for name, module in modules.items():
        left = {key: value for key, value in vars(module).items() if key[:1] != "_"}
        for key, value in left.items():
            assert value is attributes[name][key] or value == attributes[name][key]
    assert not is_plugged(model)


def test_an_exception_inside_with_unplugs(make_model, tokens, rules):
    model = make_model()
    expected = logits(model, tokens)
    with pytest.raises(RuntimeError, match="from inside"), plug(model, **rules):
        raise RuntimeError("from inside")
    assert torch.equal(logits(model, tokens), expected)


def test_unplugging_twice_is_harmless(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    handle = plug(model, distance=ReRoPE(window=4))
    handle.unplug()
    other = plug(model, distance=ReRoPE(window=3))
    handle.unplug()
    assert plug_of(model) is other
    other.unplug()
    assert torch.equal(logits(model, tokens), expected)


def test_two_models_of_one_config_object_are_plugged_differently_at_once(tokens, make_model):
    first = make_model()
    config = first.config
    second, third = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    second.load_state_dict(first.state_dict())
    third.load_state_dict(first.state_dict())
    native = logits(third, tokens)
    with plug(first, distance=ReRoPE(window=4)):
        alone = logits(first, tokens)
    with plug(second, frequency=NTKAware(factor=4.0), log_n_length=5):
        other = logits(second, tokens)
    with (
        plug(first, distance=ReRoPE(window=4)),
        plug(second, frequency=NTKAware(factor=4.0), log_n_length=5),
    ):
        assert torch.equal(logits(first, tokens), alone)
        assert torch.equal(logits(second, tokens), other)
        assert torch.equal(logits(third, tokens), native)
    assert torch.equal(logits(first, tokens), native)


def test_a_copy_of_a_plugged_model_is_plugged_on_its_own(architecture, make_model, tokens, rules):
    model = make_model(architecture)
    native = logits(model, tokens)
    with plug(model, **rules):
        expected = logits(model, tokens)
        twin = copy.deepcopy(model)
        assert is_plugged(twin)
        assert plug_of(twin) is not plug_of(model)
        assert torch.equal(logits(twin, tokens), expected)
        unplug(twin)
        assert torch.equal(logits(twin, tokens), native)
        assert torch.equal(logits(model, tokens), expected)
    assert torch.equal(logits(model, tokens), native)


def test_a_state_dict_does_not_change(make_model, rules):
    model = make_model()
    before = model.state_dict()
    with plug(model, **rules):
        during = model.state_dict()
    assert list(before) == list(during)


def test_what_the_user_sets_in_the_config_meanwhile_stays(make_model):
    model = make_model()
    original = model.config
    with plug(model, frequency=NTKAware(factor=4.0)):
        model.config.pad_token_id = 7
        assert model.config.rope_parameters["rope_theta"] > 10000.0
    assert model.config is original
    assert model.config.pad_token_id == 7
    assert model.config.rope_parameters["rope_theta"] == 10000.0


def test_plugged_in_half_precision_and_moved(make_model, tokens, rules):
    model = make_model()
    with plug(model, **rules):
        expected = logits(model, tokens)
        model.to(torch.float64)
        got = logits(model, tokens)
        model.to(torch.float32)
    torch.testing.assert_close(got.float(), expected, atol=1e-4, rtol=1e-4)


def test_a_plugged_part_counts_as_plugged(make_model, tokens):
    model = make_model()
    with plug(model.model, distance=ReRoPE(window=4)):
        assert is_plugged(model)
        with pytest.raises(ValueError, match="already plugged"):
            plug(model, log_n_length=8)
    with plug(model, distance=ReRoPE(window=4)):
        with pytest.raises(ValueError, match="already plugged"):
            plug(model.model, log_n_length=8)
        with pytest.raises(ValueError, match="as a whole"):
            unplug(model.model)


def test_a_dropped_model_is_freed(make_model):
    model = make_model()
    plug(model, distance=ReRoPE(window=4))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


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


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def test_only_the_text_decoder_of_a_multimodal_model_is_plugged(make_model, tokens, rules):
    text = make_model().config
    vision = transformers.PixtralVisionConfig(**VISION)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision)
    ).eval()
    tower = model.model.vision_tower
    frequencies = tower.patch_positional_embedding.inv_freq
    expected, implementation = logits(model, tokens), tower.config._attn_implementation
    with plug(model, **rules):
        assert tower.patch_positional_embedding.inv_freq is frequencies
        assert tower.config._attn_implementation == implementation
        assert not torch.equal(logits(model, tokens), expected)
    assert torch.equal(logits(model, tokens), expected)


def test_trained_length(make_model):
    assert trained_length(make_model()) == 64
    assert trained_length(make_model("llama3-scaled")) == 16
    assert trained_length(make_model("phi3-longrope")) == 16
    assert trained_length(make_model("gemma3")) == 64


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


def test_a_models_own_checkpoint_is_reloaded_unplugged(make_model, tokens, tmp_path):
    model = make_model()
    expected = logits(model, tokens)
    with plug(model, distance=ReRoPE(window=4)):
        model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(reloaded, tokens), expected)
