"""`tie` on every architecture: the same function, one table, and files that stock classes read."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from ropewalk.blocks.heads import TiedEmbedding
from ropewalk.blocks.heads.output_forms import permute
from ropewalk.llm import tie

FORMS = ["identity", "swap", "shuffle", "orthogonal"]


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


def make_phi(tied=True):
    """Its head has a bias."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, pad_token_id=0, eos_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    model = PhiForCausalLM(config).eval()
    nn.init.normal_(model.lm_head.bias)
    return model


def test_a_tied_model_computes_what_it_did(architecture, make_model, tokens):
    model = make_model(architecture, tie_word_embeddings=True)
    expected, table = logits(model, tokens), model.get_input_embeddings().weight
    names = {name for name, _ in model.named_parameters()}
    embedding = tie(model)
    assert isinstance(embedding, TiedEmbedding)
    assert embedding is model.get_input_embeddings()
    assert embedding.weight is table
    assert torch.equal(logits(model, tokens), expected)
    assert {name for name, _ in model.named_parameters()} == names


@pytest.mark.parametrize("source", ["embedding", "head"])
def test_an_untied_model_keeps_the_one_that_is_chosen(architecture, make_model, tokens, source):
    model = make_model(architecture)
    other = copy.deepcopy(model)
    kept = model.get_input_embeddings() if source == "embedding" else model.get_output_embeddings()
    table = kept.weight
    assert tie(model, source=source).weight is table
    # The same by hand, in the stock class.
    values = table.detach().clone()
    other.get_input_embeddings().weight.data = values
    other.get_output_embeddings().weight.data = values
    assert torch.equal(logits(model, tokens), logits(other, tokens))
    assert model.config.tie_word_embeddings


def test_the_whole_head_is_the_models_own(architecture, make_model, tokens):
    """Scale and soft cap of the model included, so that a loss can be computed by hand."""
    model = make_model(architecture, tie_word_embeddings=True)
    embedding, head = tie(model), model.get_output_embeddings()
    seen = []
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    expected = logits(model, tokens)
    handle.remove()
    torch.testing.assert_close(embedding.logits(seen[0]), expected)
    own = nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(embedding.loss(seen[0], tokens, shift=True), own)


def test_scaled_logits_are_found_out(make_model, tokens):
    assert tie(make_model("cohere", tie_word_embeddings=True, logit_scale=0.25)).logit_scale == 0.25
    gemma = tie(make_model("gemma2", tie_word_embeddings=True, final_logit_softcapping=2.5))
    assert gemma.softcap == 2.5
    assert gemma.input_scale == pytest.approx(32**0.5)


@pytest.mark.parametrize("output", FORMS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt-neox", "phi"])
def test_stock_classes_load_what_is_saved(make_model, tokens, tmp_path, name, output):
    model = make_phi() if name == "phi" else make_model(name, tie_word_embeddings=True)
    tie(model, output=output)
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert loaded.config.tie_word_embeddings == (output == "identity")
    # A stock head multiplies with the permuted table, in another order of summation.
    tolerance = 0 if output == "identity" else 1e-5
    torch.testing.assert_close(logits(loaded, tokens), expected, rtol=tolerance, atol=tolerance)
    saved = load_file(tmp_path / "model.safetensors")
    key = "embed_out.weight" if name == "gpt-neox" else "lm_head.weight"  # renamed on saving
    assert (key in saved) == (output != "identity")

    # And back: the forms without parameters are recognised, the projection is loaded.
    tie(loaded, output=output, source="embedding" if output == "orthogonal" else None)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(logits(loaded, tokens), expected)
    assert loaded.lm_head.embedding.output == output


@pytest.mark.parametrize("output", FORMS)
def test_state_dict_round_trips_and_is_checked(output, tokens):
    model, other = make_phi(), make_phi()
    tie(model, output=output)
    tie(other, output=output)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = copy.deepcopy(model.state_dict())
    assert set(state) >= set(make_phi().state_dict())
    for assign in (False, True):
        fresh = copy.deepcopy(other)
        fresh.load_state_dict(state, assign=assign)
        assert torch.equal(logits(fresh, tokens), logits(model, tokens))
        assert fresh.lm_head.embedding.weight is fresh.model.embed_tokens.weight
    state["lm_head.weight"] = state["lm_head.weight"].flip(0)
    with pytest.raises(RuntimeError, match="expected the output matrix that the loaded embedding"):
        other.load_state_dict(state)
    state["lm_head.weight"] = state["lm_head.weight"][:-1]
    with pytest.raises(RuntimeError, match=r"lm_head.weight: expected \(48, 32\), got \(47, 32\)"):
        other.load_state_dict(state)
    del state["lm_head.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"lm_head.bias"'):
        other.load_state_dict(state)


@pytest.mark.parametrize("output", FORMS)
def test_the_tie_survives_copies_and_the_meta_device(make_model, tokens, output):
    model = make_model(tie_word_embeddings=True)
    tie(model, output=output)
    state, expected = copy.deepcopy(model.state_dict()), logits(model, tokens)
    copied = copy.deepcopy(model)
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    for other in (copied, empty):
        embedding = other.get_input_embeddings()
        assert other.lm_head.embedding is embedding
        assert embedding is not model.get_input_embeddings()
    empty.load_state_dict(state)
    for layer, original in zip(empty.modules(), model.modules(), strict=True):
        for name, buffer in layer._buffers.items():  # not in the state dict
            if buffer is not None:
                buffer.copy_(original._buffers[name])
    assert torch.equal(logits(empty, tokens), expected)
    with torch.no_grad():
        copied.get_input_embeddings().weight.zero_()
    assert not logits(copied, tokens).any()
    assert torch.equal(logits(model, tokens), expected)


def test_a_model_without_memory_is_tied(tokens):
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, tie_word_embeddings=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tie(model, output="swap")
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.get_input_embeddings().reset_parameters()
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], permute(state["model.embed_tokens.weight"], "swap"))


@pytest.mark.parametrize("output", FORMS)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_generate(make_model, tokens, name, output):
    model = make_model(name, tie_word_embeddings=True)
    stock = copy.deepcopy(model)
    tie(model, output=output)
    # An untied stock model with the output matrix as its head.
    stock.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    options = {"max_new_tokens": 9, "do_sample": False}
    assert torch.equal(model.generate(tokens, **options), stock.generate(tokens, **options))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("output", FORMS)
def test_resizing_keeps_the_tie(tokens, output, tied):
    model = make_phi(tied)
    tie(model, output=output, source="embedding")
    expected = logits(model, tokens)
    model.resize_token_embeddings(60, mean_resizing=False)
    embedding = model.get_input_embeddings()
    assert embedding.weight.shape == model.lm_head.weight.shape == (60, 32)
    assert embedding.bias.shape == (60,)
    assert torch.equal(logits(model, tokens)[..., :48], expected)
    model.resize_token_embeddings(40)
    assert torch.equal(logits(model, tokens % 40), logits(model, tokens % 40)[..., :40])
    assert model.config.vocab_size == embedding.num_embeddings == model.lm_head.out_features == 40


def test_transformers_may_tie_again(architecture, make_model, tokens):
    model = make_model(architecture, tie_word_embeddings=True)
    embedding = tie(model)
    expected = logits(model, tokens)
    model.tie_weights()
    assert model.get_output_embeddings().embedding is embedding
    assert torch.equal(logits(model, tokens), expected)


def test_gradient_checkpointing(make_model, tokens):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(tie_word_embeddings=True).train()
        embedding = tie(model)
        if checkpointing:
            model.activation_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        gradients.append(embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_tying_again_is_the_same(make_model):
    model = make_model(tie_word_embeddings=True)
    assert tie(model) is tie(model)
    with pytest.raises(ValueError, match=r"tied with output 'identity'; untie\(model\) first"):
        tie(model, output="swap")


class Bare(nn.Module):
    """No transformers model, but it answers the two questions; its head comes first."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 11)
        self.table = nn.Embedding(11, 8)
        self.out.weight = self.table.weight

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return self.out

    def forward(self, input_ids):
        return self.out(self.table(input_ids).tanh())


def test_any_model_that_says_where_its_ends_are(tmp_path):
    model, ids = Bare(), torch.arange(11)
    expected, state = model(ids), copy.deepcopy(model.state_dict())
    tie(model)
    assert torch.equal(model(ids), expected)
    # No class would tie them on loading, so both are written.
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    for other in (load_file(tmp_path / "file.safetensors"), state):
        fresh = Bare()
        tie(fresh)
        fresh.load_state_dict(other)
        assert torch.equal(fresh(ids), expected)


def test_a_configuration_that_two_models_share_is_not_changed(make_model):
    model = make_model(tie_word_embeddings=True)
    config = model.config
    tie(model, output="swap")
    assert config.tie_word_embeddings
    assert not model.config.tie_word_embeddings
    assert model.model.config is model.config


def test_a_model_to_be_trained_starts_near_the_logarithm(make_model, tokens):
    """The remedies, on a model whose own initialisation is far off."""
    model = make_model(tie_word_embeddings=True, hidden_size=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.zero_()  # a residual stream of embeddings alone
            if "norm" in name:
                parameter.fill_(1.0)
    stock = float(model(tokens, labels=tokens[:, torch.randperm(21)]).loss.detach())
    tie(model).reset_parameters()
    fixed = float(model(tokens, labels=tokens[:, torch.randperm(21)]).loss.detach())
    assert stock > 8
    assert fixed < 4.9  # ln 48 = 3.9


def test_no_random_numbers_are_drawn(make_model):
    model = make_model(tie_word_embeddings=True)
    before = torch.get_rng_state()
    tie(model, output="swap", fused_loss=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
