"""Files that may not hold the shared table twice, and state dicts that have one of its keys."""

import copy

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from transformers import PhiConfig, PhiForCausalLM

from ropewalk.llm import tie, untie

FORMS = ["identity", "swap", "shuffle", "orthogonal"]


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


def make_pair(make_model, name, output):
    """Two tied models with different weights."""
    if name == "phi":
        config = PhiConfig(
            vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=4, pad_token_id=0, eos_token_id=None, tie_word_embeddings=True,
        )  # fmt: skip
        model = PhiForCausalLM(config).eval()
        torch.nn.init.normal_(model.lm_head.bias)
    else:
        model = make_model(name, tie_word_embeddings=True)
    tie(model, output=output)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model, other


@pytest.mark.parametrize("output", FORMS)
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "phi"])
def test_a_file_without_aliases_round_trips(make_model, tokens, tmp_path, name, output):
    model, other = make_pair(make_model, name, output)
    expected, path = logits(model, tokens), tmp_path / "file.safetensors"
    save_model(model, path)
    assert load_model(other, path) == (set(), [])
    assert torch.equal(logits(other, tokens), expected)
    head = other.get_output_embeddings()
    assert head is not None
    assert head.embedding is other.get_input_embeddings()
    # Into a model within another one, too.
    outer = torch.nn.ModuleDict({"inner": make_pair(make_model, name, output)[1]})
    prefixed = {f"inner.{key}": value for key, value in load_file(path).items()}
    outer.load_state_dict(prefixed, strict=False)
    assert torch.equal(logits(outer["inner"], tokens), expected)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("absent", [(), ("embedding",), ("head",), ("embedding", "head")])
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "phi"])
def test_keys_are_missing_as_in_a_stock_model(make_model, tokens, name, absent, assign):
    model, other = make_pair(make_model, name, "identity")
    ends = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    paths = {module: path for path, module in model.named_modules()}
    keys = {f"{paths[ends[end]]}.weight" for end in absent}
    state = {k: v for k, v in copy.deepcopy(model.state_dict()).items() if k not in keys}
    if keys:
        with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict"):
            copy.deepcopy(other).load_state_dict(state, assign=assign)
    missing, unexpected = other.load_state_dict(state, strict=not keys, assign=assign)
    assert (sorted(missing), unexpected) == (sorted(keys), [])
    assert set(state) == set(model.state_dict()) - keys  # nothing is added to the caller's own
    assert torch.equal(logits(other, tokens), logits(model, tokens)) == (len(absent) < 2)


def test_an_untied_model_loads_for_itself(make_model):
    model, other = make_pair(make_model, "llama", "identity")
    untie(other)
    state = copy.deepcopy(model.state_dict())
    del state["model.embed_tokens.weight"]
    before = other.model.embed_tokens.weight.detach().clone()
    missing, _ = other.load_state_dict(state, strict=False)
    assert missing == ["model.embed_tokens.weight"]
    assert torch.equal(other.model.embed_tokens.weight, before)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
    # The model that it was copied from has not lost anything.
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.load_state_dict(state, strict=False)
    assert model.lm_head.weight.any()


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("cohere", {"logit_scale": 0.25}, (0.25, None)),
        ("llama", {}, (1.0, None)),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_model_tied_without_memory_is_found_out_later(
    make_model, tokens, name, options, found, fused
):
    stock = make_model(name, tie_word_embeddings=True, **options)
    with torch.device("meta"):
        model = type(stock)(stock.config).eval()
    embedding = tie(model)
    hidden = torch.randn(2, 3, 32)
    for call in (embedding.logits, lambda hidden: embedding.loss(hidden, tokens[:, :3])):
        with pytest.raises(ValueError, match=r"expected weights in memory.*tie\(model\) again"):
            call(hidden)
    assert tie(model) is embedding  # no earlier than it can be
    with pytest.raises(ValueError, match="expected weights in memory"):
        embedding.logits(hidden)
    model.to_empty(device="cpu").load_state_dict(stock.state_dict())
    for layer, original in zip(model.modules(), stock.modules(), strict=True):
        for key, buffer in original._buffers.items():  # not in the state dict
            layer._buffers[key] = buffer
    assert torch.equal(logits(model, tokens), logits(stock, tokens))
    assert tie(model, fused_loss=fused) is embedding
    assert (embedding.logit_scale, embedding.softcap) == found
    raw = stock.get_output_embeddings()(hidden)
    torch.testing.assert_close(embedding.logits(hidden), raw * found[0])
