"""`MonarchAdapter` inside of transformers models."""

import pytest
import torch
import transformers

from ropewalk.blocks.monarch import (
    activate_adapters,
    adapter_state_dict,
    add_adapters,
    attach_adapter,
    remove_adapters,
)
from ropewalk.blocks.monarch.adapter import adapters_of


def teach(model):
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapters_of(model):
        left = layer.branch("default").left
        left.data.copy_(0.3 * torch.randn(left.shape, generator=generator))
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_a_tied_head_is_tied_again(make_model, tokens, tmp_path):
    model = make_model(tie_word_embeddings=True)
    bare = logits(model, tokens)
    add_adapters(model, match=["lm_head", "*.q_proj"], nblocks=2)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(".adapters." in name for name in learning)
    expected = logits(teach(model), tokens)
    model.tie_weights()
    assert model.lm_head.base_layer.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model, tokens), expected)
    other = make_model(tie_word_embeddings=True)
    attach_adapter(other, adapter_state_dict(model))
    assert torch.equal(logits(other, tokens), expected)
    activate_adapters(model, [])
    assert torch.equal(logits(model, tokens), bare)
    remove_adapters(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again, tokens), bare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_asks_for_the_weight_s_dtype(dtype):
    """T5 casts what it gives to `wo` to the dtype of that layer's weight."""
    torch.manual_seed(0)
    settings = transformers.T5Config(
        vocab_size=48, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(settings).to(dtype).eval()
    tokens = torch.arange(2, 10)[None]
    with torch.no_grad():
        bare = model(input_ids=tokens, labels=tokens).logits
        add_adapters(model, match="*.wo", nblocks=2)
        assert torch.equal(model(input_ids=tokens, labels=tokens).logits, bare)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(layer.branch("default").left.grad is not None for _, layer in adapters_of(model))
