"""The last layer's attention of few tokens: their logits are the same, others' are not computed."""

import pytest
import torch

from ropewalk.blocks.rotary import ReRoPE
from ropewalk.llm import attention_interface, plug
from ropewalk.llm.attention_interface import LAYER_ATTRIBUTE
from ropewalk.llm.last_queries import only_last_read

READ = 3


def logits(model, tokens, **inputs):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False, **inputs).logits


def queries_of_layers(monkeypatch):
    """Fills up with the number of queries that attention is called with."""
    seen, attention = [], attention_interface.rotary_attention

    def spy(query, *others, **options):
        seen.append(query.shape[2])
        return attention(query, *others, **options)

    monkeypatch.setattr(attention_interface, "rotary_attention", spy)
    return seen


def test_logits_that_are_read_are_the_same(make_model, architecture, tokens, monkeypatch):
    model = make_model(architecture)
    length = tokens.shape[1]
    with plug(model, distance=ReRoPE(window=4)):
        expected = logits(model, tokens)
        seen = queries_of_layers(monkeypatch)
        with only_last_read(model, READ):
            found = logits(model, tokens)
        assert seen == [length] * (len(seen) - 1) + [READ]
        torch.testing.assert_close(found[:, -READ:], expected[:, -READ:], rtol=0, atol=1e-5)
        # All again, once it is left.
        assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(make_model, tokens, side):
    model = make_model()
    mask = torch.ones_like(tokens)
    mask[0, slice(0, 2) if side == "left" else slice(-2, None)] = 0
    with plug(model, distance=ReRoPE(window=4), log_n_length=5):
        expected = logits(model, tokens, attention_mask=mask)
        with only_last_read(model, READ):
            found = logits(model, tokens, attention_mask=mask)
    read = mask[:, -READ:].bool()
    torch.testing.assert_close(found[:, -READ:][read], expected[:, -READ:][read], rtol=0, atol=1e-5)


def test_a_mask_of_ones_own(make_model, tokens):
    model = make_model()
    length = tokens.shape[1]
    mask = torch.ones(length, length).tril().bool()
    mask[-1, 1] = False
    with plug(model, distance=ReRoPE(window=4)):
        expected = logits(model, tokens, attention_mask=mask[None, None])
        with only_last_read(model, READ):
            found = logits(model, tokens, attention_mask=mask[None, None])
    torch.testing.assert_close(found[:, -READ:], expected[:, -READ:], rtol=0, atol=1e-5)


def test_more_than_there_are(make_model, tokens):
    model = make_model()
    with plug(model, distance=ReRoPE(window=4)):
        expected = logits(model, tokens)
        with only_last_read(model, tokens.shape[1] + 1):
            assert torch.equal(logits(model, tokens), expected)


def test_a_model_that_is_not_plugged_does_all_its_work(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    with only_last_read(model, READ):
        assert torch.equal(logits(model, tokens), expected)


def test_an_error_leaves_the_layer_as_it_was(make_model, tokens):
    model = make_model()
    with plug(model, distance=ReRoPE(window=4)):
        expected = logits(model, tokens)
        with pytest.raises(RuntimeError, match="stop"), only_last_read(model, READ):
            raise RuntimeError("stop")
        assert torch.equal(logits(model, tokens), expected)


def test_a_layer_that_is_unplugged_inside_stays_so(make_model, tokens):
    model = make_model()
    expected = logits(model, tokens)
    handle = plug(model, distance=ReRoPE(window=4))
    with only_last_read(model, READ):
        handle.unplug()
    assert torch.equal(logits(model, tokens), expected)
    assert not any(hasattr(module, LAYER_ATTRIBUTE) for module in model.modules())


def test_a_model_with_code_of_its_own_does_all_its_work(make_model, tokens):
    model = make_model()
    model.__class__ = type("Remote", (type(model),), {"__module__": "transformers_modules.remote"})
    with plug(model, distance=ReRoPE(window=4)):
        expected = logits(model, tokens)
        with only_last_read(model, READ):
            assert torch.equal(logits(model, tokens), expected)
