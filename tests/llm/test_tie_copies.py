"""Copies of a tied model, and of its ends alone, which adapters make to train them."""

import copy
import gc
import pickle

import pytest
import torch
from transformers import LlamaForCausalLM, PhiConfig, PhiForCausalLM

from ropewalk.blocks.heads import TiedEmbedding
from ropewalk.llm import tie

FORMS = ["identity", "swap", "shuffle", "orthogonal"]


def make_phi():
    """Its head has a bias."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, pad_token_id=0, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    model = PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("output", FORMS)
def test_a_head_that_is_copied_alone_is_a_stock_one(output, fused):
    model = make_phi()
    tie(model, output=output, fused_loss=fused)
    hidden = torch.randn(3, 32)
    expected = model.lm_head(hidden)
    copied = copy.deepcopy(model.lm_head)
    assert type(copied) is torch.nn.Linear
    assert not copied.training
    torch.testing.assert_close(copied(hidden), expected)
    # Parameters of its own, to be trained.
    with torch.no_grad():
        for parameter in copied.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    assert {name for name, _ in copied.named_parameters()} == {"weight", "bias"}
    assert not copied(hidden).any()
    assert torch.equal(model.lm_head(hidden), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("output", FORMS)
def test_an_embedding_that_is_copied_alone_is_whole(output, fused):
    model = make_phi()
    embedding = tie(model, output=output, fused_loss=fused)
    hidden, ids = torch.randn(3, 32), torch.arange(48)
    expected = embedding.logits(hidden)
    size = sum(parameter.nbytes for parameter in (embedding.weight, *model.lm_head.parameters()))
    base = copy.deepcopy(model.model)
    for copied in (copy.deepcopy(embedding), base.embed_tokens):
        assert isinstance(copied, TiedEmbedding)
        torch.testing.assert_close(copied.logits(hidden), expected)
        assert torch.equal(copied(ids), embedding(ids))
        assert len(pickle.dumps(copied)) < size + 8000
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert not copied.logits(hidden).any()
    assert torch.equal(embedding.logits(hidden), expected)


@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_the_model_is_not_copied_with_its_ends(make_model, end):
    model = make_model(tie_word_embeddings=True)
    tie(model, fused_loss=True)

    def models():
        gc.collect()
        return sum(type(thing) is LlamaForCausalLM for thing in gc.get_objects())

    before = models()
    copied = copy.deepcopy(model.lm_head if end == "lm_head" else model.model.embed_tokens)
    assert models() == before
    assert copied.weight is not model.lm_head.weight


@pytest.mark.parametrize("fused", [False, True])
def test_a_pickled_model_is_tied(make_model, tokens, fused):
    model = make_model(tie_word_embeddings=True).train()
    tie(model, fused_loss=fused)
    loaded = pickle.loads(pickle.dumps(model))
    for other in (loaded, copy.deepcopy(loaded), copy.deepcopy([model])[0]):
        assert other.lm_head.embedding is other.model.embed_tokens
        got, expected = (m(tokens, labels=tokens) for m in (other, model))
        assert torch.equal(got.loss, expected.loss)
        assert (got.logits is None) == fused
        assert not fused or other.forward.model is other


def test_a_tied_model_is_freed_with_its_last_reference(make_model):
    import weakref

    model = make_model(tie_word_embeddings=True)
    tie(model)
    reference = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert reference() is None
    finally:
        gc.enable()
