"""`untie`: nothing changes at that moment, and then the head goes its own way."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ropewalk.llm import tie, untie


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


@pytest.mark.parametrize("output", ["identity", "swap", "shuffle", "orthogonal"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
@pytest.mark.parametrize("fused", [False, True])
def test_outputs_do_not_change_at_that_moment(make_model, tokens, tmp_path, name, output, fused):
    model = make_model(name, tie_word_embeddings=True)
    kinds = type(model.get_input_embeddings()), type(model.get_output_embeddings())
    embedding = tie(model, output=output, fused_loss=fused)
    expected = logits(model, tokens)
    head = untie(model)
    assert head is model.get_output_embeddings()
    assert (type(model.get_input_embeddings()), type(head)) == kinds
    assert model.get_input_embeddings().weight is embedding.weight
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-5, atol=1e-5)
    assert not model.config.tie_word_embeddings

    model.train()(tokens, labels=tokens).loss.backward()
    assert not torch.equal(head.weight.grad, embedding.weight.grad)
    with torch.no_grad():
        head.weight.add_(head.weight.grad)
    model.eval().tie_weights()
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, tokens), expected)


def test_every_architecture(architecture, make_model, tokens):
    model = make_model(architecture, tie_word_embeddings=True)
    expected = logits(model, tokens)
    tie(model)
    untie(model)
    assert torch.equal(logits(model, tokens), expected)


def test_a_model_that_its_own_class_tied(make_model, tokens):
    model = make_model(tie_word_embeddings=True)
    other, expected = copy.deepcopy(model), logits(model, tokens)
    head = untie(model)
    assert head.weight is not model.get_input_embeddings().weight
    assert torch.equal(logits(model, tokens), expected)
    model.tie_weights()
    assert head.weight is not model.get_input_embeddings().weight
    assert other.config.tie_word_embeddings


def test_an_optimizer_goes_on(make_model, tokens):
    model = make_model(tie_word_embeddings=True).train()
    tie(model, fused_loss=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(8):
        if step == 4:
            optimizer.param_groups[0]["params"].append(untie(model).weight)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_untied_models_can_be_tied_again(make_model, tokens):
    model = make_model(tie_word_embeddings=True)
    expected = logits(model, tokens)
    tie(model, fused_loss=True)
    untie(model)
    tie(model)  # both hold the same values yet
    assert torch.equal(logits(model, tokens), expected)


def test_the_bias_stays(tokens):
    from transformers import PhiConfig, PhiForCausalLM

    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
    ).eval()
    bias = nn.init.normal_(model.lm_head.bias)
    expected = logits(model, tokens)
    tie(model)
    assert untie(model).bias is bias
    assert torch.equal(logits(model, tokens), expected)


def test_refused(make_model):
    model = make_model()
    with pytest.raises(ValueError, match="expected a tied model, got one whose head has its own"):
        untie(model)
    with pytest.raises(TypeError, match="expected a transformers model, got Linear"):
        untie(nn.Linear(2, 2))
    model = make_model(tie_word_embeddings=True)
    tie(model).input_scale = 2.0
    with pytest.raises(ValueError, match="input embedding that was there before"):
        untie(model)
