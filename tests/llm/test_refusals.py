"""What cannot be plugged is refused with the reason, before anything is changed."""

import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM, StaticCache
from transformers.models.llama import modeling_llama

from ropewalk.blocks.rotary import DynamicNTK, NTKAware, ReRoPE
from ropewalk.llm import attention_interface, is_plugged, plug, unplug

RULE = ReRoPE(window=4)
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def refused(model, match, error=ValueError, **rules):
    """Asserts the refusal and that every module's attributes are the same objects as before."""
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    children = dict(model.named_modules())
    with pytest.raises(error, match=match):
        plug(model, **(rules or {"distance": RULE}))
    assert dict(model.named_modules()) == children
    for name, module in model.named_modules():
        assert set(vars(module)) == set(before[name])
        assert all(
            value is before[name][key] or value == before[name][key]
            for key, value in vars(module).items()
        )
    assert not is_plugged(model)


def test_not_a_transformers_model(make_model):
    refused(nn.Linear(2, 2), "expected a transformers model, got Linear", error=TypeError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
def test_a_compiled_model(make_model):
    with pytest.raises(TypeError, match=r"before torch\.compile"):
        plug(torch.compile(make_model()), distance=RULE)


def test_rules_of_the_wrong_kind(make_model):
    model = make_model()
    refused(model, "frequency: expected a frequency rule", TypeError, frequency=4.0)
    refused(model, "distance: expected a distance rule", TypeError, distance="rerope")
    refused(model, "log_n_length: expected", TypeError, log_n_length=True)
    refused(model, "length", ValueError, log_n_length=1)
    refused(model, "got the class ReRoPE; call it", TypeError, distance=ReRoPE)
    refused(model, "got the class NTKAware; call it", TypeError, frequency=NTKAware)
    with pytest.raises(ValueError, match="give at least one rule"):
        plug(model)


def test_a_backend_that_does_not_exist_or_has_nothing_to_compute(make_model):
    model = make_model()
    refused(model, "backend: expected one of auto, .* got 'fast'", distance=RULE, backend="fast")
    rule = NTKAware(factor=2.0)
    refused(model, "has nothing to compute: .* leave backend out", frequency=rule, backend="flash")


def test_already_plugged(make_model, tokens):
    model = make_model()
    with plug(model, distance=RULE), torch.no_grad():
        expected = model(tokens).logits
        with pytest.raises(ValueError, match="already plugged; unplug it first"):
            plug(model, frequency=NTKAware(factor=2.0))
        assert torch.equal(model(tokens).logits, expected)
    with pytest.raises(ValueError, match="is not plugged"):
        unplug(model)


def test_without_rotary_position():
    config = transformers.GPT2Config(
        vocab_size=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1
    )
    refused(transformers.GPT2LMHeadModel(config), "no rotary position embedding")


def test_with_an_encoder():
    config = transformers.T5Config(
        vocab_size=48, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=4
    )
    refused(transformers.T5ForConditionalGeneration(config), "has an encoder")


def test_on_the_meta_device(make_model):
    with torch.device("meta"):
        model = make_model()
    refused(model, "meta device")


def test_not_causal():
    config = transformers.LlamaConfig(**SIZES, intermediate_size=32)
    config.is_causal = False
    refused(LlamaForCausalLM(config).eval(), "not causal")


def test_several_position_axes():
    config = transformers.Qwen2VLTextConfig(
        **SIZES,
        intermediate_size=32,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 2],
        },
    )
    refused(transformers.Qwen2VLTextModel(config).eval(), "several axes")


class OwnAttention(modeling_llama.LlamaAttention):
    """Rotates, and then attends by itself."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **_):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, *position_embeddings)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


class NormAfterRotation(modeling_llama.LlamaAttention):
    """A norm with learned weights between the rotation and the attention."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.weight = nn.Parameter(torch.rand(self.head_dim) + 0.5)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, *position_embeddings)
        attention = modeling_llama.ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, modeling_llama.eager_attention_forward
        )
        out, _ = attention(
            self, q * self.weight, k * self.weight, v, attention_mask, scaling=1.0, **kwargs
        )
        return self.o_proj(out.flatten(2)), None


def with_attention(make_model, attention, layers):
    model = make_model(num_key_value_heads=4)
    for index in layers:
        layer = attention(model.config, index)
        nn.init.normal_(layer.q_proj.weight)
        model.model.layers[index].self_attn = layer
    return model.eval()


def test_a_model_that_never_reaches_the_interface(make_model, tokens):
    model = with_attention(make_model, OwnAttention, (0, 1))
    refused(model, "never calls transformers' attention interface")
    refused(model, "never calls", frequency=DynamicNTK(factor=2.0, original_length=16))
    # A frequency rule alone needs no attention function.
    with torch.no_grad():
        expected = model(tokens).logits
        with plug(model, frequency=NTKAware(factor=4.0)):
            assert (model(tokens).logits - expected).abs().max() > 1e-4


def test_a_single_layer_that_does_not_reach_the_interface(make_model):
    model = with_attention(make_model, OwnAttention, (1,))
    refused(model, "in layers that never reach")


def test_something_after_the_rotation(make_model):
    model = with_attention(make_model, NormAfterRotation, (1,))
    refused(model, r"layers.1.self_attn .* after the rotation")


def test_queries_that_say_nothing(make_model):
    model = make_model()
    nn.init.zeros_(model.model.layers[0].self_attn.q_proj.weight)
    refused(model, "layers.0.self_attn")


def test_weights_that_are_not_finite(make_model):
    model = make_model()
    nn.init.constant_(model.model.layers[0].self_attn.q_proj.weight, torch.nan)
    refused(model, "not finite")


def test_chunked_attention():
    config = transformers.Llama4TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        intermediate_size_mlp=32,
        num_local_experts=2,
        attention_chunk_size=3,
        pad_token_id=0,
    )
    refused(transformers.Llama4ForCausalLM(config).eval(), "neither causal nor a sliding window")


def test_attention_asked_for_without_plugging(make_model, tokens):
    attention_interface.register()
    model = make_model()
    model.set_attn_implementation("ropewalk")
    with pytest.raises(ValueError, match=r"use ropewalk\.llm\.plug"):
        model(tokens)


def test_what_only_shows_when_it_runs(make_model, tokens):
    model = make_model()
    with plug(model, distance=RULE):
        with pytest.raises(ValueError, match="attention weights"):
            model(tokens, output_attentions=True)
        four = torch.ones(2, 1, 21, 21, dtype=torch.bool).tril()
        with pytest.raises(ValueError, match="see later keys"):
            model(tokens, attention_mask=torch.ones_like(four))
        cache = StaticCache(model.config, max_cache_len=32)
        with pytest.raises(ValueError, match="does not say where those keys are"):
            model(tokens, attention_mask=four, past_key_values=cache)
        model.train()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        with pytest.raises(ValueError, match="dropout"):
            model(tokens)


def test_other_code_that_uses_the_mask():
    config = transformers.FalconConfig(**SIZES, alibi=False)
    model = transformers.FalconForCausalLM(config).eval()
    refused(model, "would be replaced: .*; only frequency rules")
    with plug(model, frequency=NTKAware(factor=4.0)):
        assert is_plugged(model)


def test_positions_that_do_not_reach_the_attention():
    config = transformers.PersimmonConfig(**SIZES, intermediate_size=32)
    refused(transformers.PersimmonForCausalLM(config).eval(), "does not hand position_ids")
