"""The handle: what is changed, what is put back, and that models do not see each other."""

import copy
import gc
import weakref

import numpy
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ropewalk.blocks.rotary import (
    DualChunk,
    DynamicNTK,
    LogN,
    NTKAware,
    ReRoPE,
    YaRN,
)
from ropewalk.kernels.rotary_attention import flash, reference
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


def test_a_models_own_checkpoint_is_reloaded_unplugged(make_model, tokens, tmp_path):
    model = make_model()
    expected = logits(model, tokens)
    with plug(model, distance=ReRoPE(window=4)):
        model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(reloaded, tokens), expected)
    # Which rules were plugged is noted, which only this library reads.
    assert reloaded.config.ropewalk == {"variant": "rerope:window=4"}
    assert not hasattr(model.config, "ropewalk")


@pytest.mark.parametrize("how", ["method", "config"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_another_attention_while_plugged_is_refused(make_model, tokens, how, implementation):
    # It would run, without any positions.
    model = make_model()
    expected = logits(model, tokens)
    with plug(model, distance=ReRoPE(window=4)):
        if how == "method":
            model.set_attn_implementation(implementation)
        else:
            model.config._attn_implementation = implementation
        with pytest.raises(ValueError, match="unplug first, then change the attention"):
            logits(model, tokens)
    assert torch.equal(logits(model, tokens), expected)
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-5, rtol=1e-5)


def test_plugged_in_inference_mode_and_trained_later(make_model, tokens, rules):
    model = make_model()
    with torch.inference_mode():
        handle = plug(model, **rules)
        model(tokens)
    with handle:
        model(tokens, labels=tokens, use_cache=False).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.isfinite().all()


def test_numpys_integers_are_lengths(make_model, tokens):
    model = make_model()
    with plug(model, log_n_length=5):
        expected = logits(model, tokens)
    with plug(model, log_n_length=numpy.int64(5)) as handle:
        assert handle.log_n == LogN(5)
        assert torch.equal(logits(model, tokens), expected)


@torch.no_grad()
def test_unpadded_tokens_take_the_fused_path_in_prefill_and_decoding(
    make_model, tokens, monkeypatch
):
    """Positions that count up are recognised on a CPU; padding takes the general path."""
    taken = []
    for module in (flash, reference):
        forward = module.forward

        def spy(problem, module=module, forward=forward):
            taken.append(module)
            return forward(problem)

        monkeypatch.setattr(module, "forward", spy)
    model = make_model("llama")
    layers = model.config.num_hidden_layers
    with plug(model, distance=ReRoPE(window=4)):
        cache = model(tokens[:, :-1], use_cache=True).past_key_values
        model(tokens[:, -1:], past_key_values=cache, use_cache=True)
        assert taken == [flash] * 2 * layers
        padding = torch.ones_like(tokens)
        padding[0, :3] = 0
        model(tokens, attention_mask=padding)
        assert taken[2 * layers :] == [reference] * layers
