"""What `tie` refuses, in which words, and that the model is as it was."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from ropewalk.llm import tie


def snapshot(model):
    """Everything that tying changes: modules, parameters, configuration, hooks."""
    return (
        {name: id(module) for name, module in model.named_modules()},
        {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()},
        id(model.config),
        model.config.to_dict(),
        dict(model.all_tied_weights_keys),
        [dict(module._forward_hooks) for module in model.modules()],
        [dict(module._forward_pre_hooks) for module in model.modules()],
        model.loss_function,
        vars(model).get("forward"),
        [module.training for module in model.modules()],
    )


def refused(model, error, words, **options):
    before = snapshot(model)
    with pytest.raises(error, match=words):
        tie(model, **options)
    after = snapshot(model)
    for name, (identity, values) in before[1].items():
        assert after[1][name][0] == identity
        assert torch.equal(after[1][name][1], values)
    assert [x for i, x in enumerate(after) if i != 1] == [x for i, x in enumerate(before) if i != 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "transpose"}, "output: expected one of identity"),
        ({"output": "untied"}, "expected a form that ties, got 'untied'; leave an untied model"),
        ({"source": "both"}, "source: expected 'embedding', 'head' or None, got 'both'"),
    ],
)
def test_options(make_model, options, words):
    refused(make_model(tie_word_embeddings=True), ValueError, words, **options)


def test_swap_of_an_odd_width():
    config = LlamaConfig(
        vocab_size=48, hidden_size=33, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=1, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    refused(LlamaForCausalLM(config), ValueError, "expected an even embedding_dim", output="swap")


@pytest.mark.parametrize("output", ["identity", "swap", "orthogonal"])
def test_weights_that_differ_are_not_forgotten(make_model, output):
    refused(make_model(), ValueError, "two matrices that differ; choose whose", output=output)


def test_not_a_model():
    for thing in (nn.Linear(2, 2), "llama", None):
        with pytest.raises(TypeError, match="expected a transformers model, got"):
            tie(thing)


def test_compiled(make_model):
    compiled = torch.compile(make_model(tie_word_embeddings=True))
    with pytest.raises(TypeError, match=r"before torch.compile \(it is model._orig_mod\)"):
        tie(compiled)


def test_no_head(make_model):
    refused(make_model(tie_word_embeddings=True).model, ValueError, "output head, found none")


def test_no_embedding(make_model):
    model = make_model()
    model.model.embed_tokens = None
    with pytest.raises(ValueError, match="expected an input embedding, found none"):
        tie(model)


def test_encoder_and_decoder():
    config = T5Config(
        vocab_size=48, d_model=32, d_ff=48, num_layers=1, num_heads=4, d_kv=8,
        decoder_start_token_id=0,
    )  # fmt: skip
    refused(T5ForConditionalGeneration(config), ValueError, "expected a decoder-only model")


def test_other_shapes_and_dtypes(make_model):
    model = make_model()
    model.lm_head = nn.Linear(32, 50, bias=False)
    refused(model, ValueError, r"the same shape, got \(48, 32\) and \(50, 32\)", source="head")
    model = make_model()
    model.lm_head.to(torch.bfloat16)
    refused(model, ValueError, "the same dtype, got torch.float32 and torch.bfloat16")


@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_hooks_would_be_lost(make_model, end):
    model = make_model(tie_word_embeddings=True)
    module = model.lm_head if end == "lm_head" else model.model.embed_tokens
    module.register_forward_hook(lambda *_: None)
    refused(model, ValueError, "without hooks, which replacing it would lose; tie the model first")


def test_checkpointing_hooks_the_embedding(make_model):
    model = make_model(tie_word_embeddings=True)
    model.activation_checkpointing_enable()
    words = r"expected an input embedding without hooks.*disable_input_require_grads removes it"
    refused(model, ValueError, words)
    model.disable_input_require_grads()
    tie(model)


def test_quantised_heads(make_model):
    class Packed(nn.Linear):
        """As quantisation libraries make them."""

    model = make_model()
    model.lm_head = Packed(32, 48, bias=False)
    model.lm_head.weight = nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    refused(
        model,
        ValueError,
        r"a head whose .* Parameter of torch.int8; leave it out of the quantisation",
    )
    model.lm_head = nn.Sequential(nn.Linear(32, 48))
    refused(model, ValueError, "expected an nn.Linear as head, got Sequential")


def test_ends_that_compute_something_else(make_model):
    class Doubled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    model = make_model()
    model.lm_head = Doubled(32, 48, bias=False)
    refused(model, ValueError, "Doubled computes something else", source="head")
    model = make_model()
    model.model.embed_tokens = Shifted(48, 32)
    refused(model, ValueError, "Shifted computes something else", source="head")
    model = make_model()
    model.model.embed_tokens = nn.Embedding(48, 32, max_norm=1.0)
    refused(model, ValueError, "without max_norm, got 1.0", source="head")


def test_a_third_owner_of_the_table(make_model):
    model = make_model(tie_word_embeddings=True)
    model.model.layers[0].table = model.lm_head.weight
    refused(model, ValueError, "found it as model.layers.0.table too")


def test_a_fused_loss_that_would_be_another(make_model):
    def doubled(logits, labels, vocab_size, **options):
        return 2 * nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        )

    model = make_model(tie_word_embeddings=True)
    model.loss_function = doubled
    refused(model, ValueError, "computes something else than the cross-entropy", fused_loss=True)
    assert tie(model).logit_scale == 1.0


def test_ties_that_are_described_by_patterns():
    config = BertConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4,
    )  # fmt: skip
    refused(
        BertForMaskedLM(config), ValueError, "expected a decoder-only model that names what it ties"
    )


def test_logits_that_are_changed_after_the_head(make_model, tokens):
    class Centred(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            logits = output["logits"]
            output["logits"] = logits - logits.mean(-1, keepdim=True)
            return output

    plain = make_model(tie_word_embeddings=True)
    model = Centred(copy.deepcopy(plain.config)).eval()
    model.load_state_dict(plain.state_dict())
    words = "expected logits that are the head's output, scaled or soft-capped"
    refused(model, ValueError, words, fused_loss=True)
    with torch.no_grad():
        expected = model(tokens).logits
        embedding = tie(model)
        assert torch.equal(model(tokens).logits, expected)
        hidden = torch.randn(3, 32)
        assert torch.equal(embedding.raw_logits(hidden), model.lm_head(hidden))
        for call in (embedding.logits, lambda x: embedding.loss(x, torch.arange(3))):
            with pytest.raises(ValueError, match=words):
                call(hidden)


def test_a_fused_loss_needs_memory(make_model):
    config = make_model(tie_word_embeddings=True).config
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    words = (
        "expected weights in memory, to find out what it does to its logits, got the meta device"
    )
    with pytest.raises(ValueError, match=words):
        tie(model, fused_loss=True)


def test_an_offloaded_embedding(make_model, tokens):
    """Offloading takes an embedding's weight away between its own calls."""
    model = make_model(tie_word_embeddings=True)
    embedding = tie(model)
    weight = embedding.weight
    handles = (
        embedding.register_forward_pre_hook(lambda module, _: setattr(module, "weight", weight)),
        embedding.register_forward_hook(
            lambda module, *_: setattr(module, "weight", nn.Parameter(weight.to("meta")))
        ),
    )
    with pytest.raises(ValueError, match=r"expected on meta.*keep the embedding in memory"):
        model(tokens)
    for handle in handles:
        handle.remove()
    embedding.weight = weight
    assert model(tokens).logits.isfinite().all()


@pytest.mark.parametrize("output", ["identity", "orthogonal"])
def test_a_refusal_draws_no_random_numbers(make_model, output):
    model = make_model(tie_word_embeddings=True)
    model.loss_function = lambda **_: torch.tensor(1.0)
    before = torch.get_rng_state()
    refused(model, ValueError, "computes something else", fused_loss=True, output=output)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_computes_its_loss_by_itself():
    config = BartConfig(
        vocab_size=48, d_model=32, decoder_ffn_dim=48, decoder_layers=1, decoder_attention_heads=4,
        encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=48, scale_embedding=True,
    )  # fmt: skip
    model = BartForCausalLM(config).eval()
    words = r"does nothing with the head's output.*tie it without fused_loss and call embedding"
    refused(model, ValueError, words, fused_loss=True)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        expected = model(tokens).logits
        tie(model)
        assert torch.equal(model(tokens).logits, expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(make_model, value, fused):
    model = make_model(tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight[20, 3] = value
    with pytest.raises(ValueError, match="expected finite weights, got NaN or infinity in the inp"):
        tie(model, fused_loss=fused)
    model = make_model(tie_word_embeddings=True)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(ValueError, match=r"a finite loss on a few tokens.* got nan; its weights h"):
        tie(model, fused_loss=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
