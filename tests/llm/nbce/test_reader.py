"""`NBCE` says what a plain loop says that reads one context at a time, without any cache."""

import numpy as np
import pytest
import torch

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.llm import NBCE

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
MERGES = {
    "default": ContextMerge(),
    "no top-p": ContextMerge(top_p=1.0, eta=0.0, beta=1.0),
    "narrow": ContextMerge(top_p=0.6, eta=1.0),
    "beta -1": ContextMerge(beta=-1.0),
}
EIGHT = {"max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture
def reader(model, tokenizer) -> NBCE:
    reader = NBCE(model, tokenizer, separator="\n")
    reader.encode(CONTEXTS, prefix=PREFIX)
    return reader


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_those_of_the_loop(model, tokenizer, loop, same, merge, question):
    reader = NBCE(model, tokenizer, merge, separator="\n")
    reader.encode(CONTEXTS, prefix=PREFIX)
    same(reader.ask(question, max_new_tokens=8), loop(model, question, merge=merge))
