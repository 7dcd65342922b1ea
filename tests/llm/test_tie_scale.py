"""Models that scale their embeddings by a tensor, which they round to the weights' dtype."""

import copy

import pytest
import torch

from ropewalk.blocks.heads.tying.parts import rounded
from ropewalk.llm import tie, untie

HALVES = [torch.bfloat16, torch.float16]


@torch.no_grad()
def logits(model, tokens):
    return model(tokens).logits


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_the_scale_is_rounded_to_the_dtype_of_the_moment(make_model, tokens, name, dtype):
    stock = make_model(name, tie_word_embeddings=True)
    model = copy.deepcopy(stock)
    embedding = tie(model)
    expected = logits(stock.to(dtype), tokens)
    assert torch.equal(logits(model.to(dtype), tokens), expected)
    ids = torch.arange(48)
    call = torch.compile(lambda ids: embedding(ids), fullgraph=True, backend="aot_eager")
    assert torch.equal(call(ids), stock.get_input_embeddings()(ids))
    untie(model)
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_scale_that_has_been_rounded(make_model, tokens, dtype):
    model = make_model("gemma3", tie_word_embeddings=True).to(dtype).float()
    expected = logits(model, tokens)
    embedding = tie(model)
    assert embedding.input_scale == float(torch.tensor(32**0.5).to(dtype))
    assert torch.equal(logits(model, tokens), expected)


def test_rounding_is_torchs():
    for dtype in (*HALVES, torch.float32, torch.float64):
        for exponent in range(-3, 9):
            values = (1 + torch.rand(500, dtype=torch.float64)) * 2.0**exponent
            got = torch.tensor([rounded(float(x), dtype) for x in values], dtype=torch.float64)
            assert torch.equal(got, values.to(dtype).double())
