"""`generate(custom_generate=MergedDecoding(…))` on rows that were padded by hand."""

import pytest
import torch

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.llm import MergedDecoding

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
END = 2


@pytest.fixture
def rows(tokenizer) -> dict[str, torch.Tensor]:
    tokenizer.padding_side = "left"
    texts = [
        PREFIX + context + "\n" + question for question in QUESTIONS for context in ("", *CONTEXTS)
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def test_rows_in_one_row_a_question_out(model, rows, loop):
    decoding = MergedDecoding(ContextMerge(), contexts=3)
    tokens = model.generate(**rows, custom_generate=decoding, max_new_tokens=8, do_sample=False)
    width = rows["input_ids"].shape[1]
    assert torch.equal(tokens[:, :width], rows["input_ids"][::4])
    assert decoding.chosen.shape == (2, tokens.shape[1] - width)
    for question, row, chosen, entropies, steps in zip(
        QUESTIONS,
        tokens[:, width:].tolist(),
        decoding.chosen.tolist(),
        decoding.entropies,
        decoding.lengths.tolist(),
        strict=True,
    ):
        told = loop(model, question)
        assert row[:steps] == told.tokens
        assert chosen[:steps] == told.chosen
        assert entropies.shape[-1] == 3


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("cache", [None, "static"])
def test_every_cache(model, rows, use_cache, cache):
    if cache and not use_cache:
        pytest.skip("no cache of any kind")
    options = {"cache_implementation": cache} if cache else {}
    expected, got = (
        model.generate(
            **rows,
            custom_generate=MergedDecoding(ContextMerge(), contexts=3),
            max_new_tokens=6,
            disable_compile=True,
            **arguments,
        )
        for arguments in ({}, {"use_cache": use_cache, **options})
    )
    assert torch.equal(got, expected)
