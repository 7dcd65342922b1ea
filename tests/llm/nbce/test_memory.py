"""Contexts are kept and read again, in waves and groups that fit into memory; answers stay."""

import pytest
import torch

from ropewalk.llm import NBCE
from ropewalk.llm.nbce import asking, cache, encode

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]


def test_one_encoding_serves_many_questions_and_stays_as_it_is(reader, states):
    encoded = reader.encoded
    before = [part.clone() for part in states(encoded)]
    first = [reader.ask(question, encoded, max_new_tokens=8) for question in QUESTIONS]
    for question, answer in zip(QUESTIONS, first, strict=True):
        reader.encode(CONTEXTS, prefix=PREFIX)
        assert reader.ask(question, max_new_tokens=8).tokens == answer.tokens
    assert all(map(torch.equal, states(encoded), before))
    assert encoded.reusable
    assert encoded.lengths == tuple(map(len, CONTEXTS))
    assert encoded.nbytes == sum(part.nbytes for part in states(encoded))
    keys_and_values = 2 * 2 * 8 * 8 * 2
    assert encoded.bytes_per_token == keys_and_values


def test_waves_of_one_and_questions_one_by_one_change_nothing(model, tokenizer, states):
    at_once, singly = (
        NBCE(model, tokenizer, separator="\n", rows_at_once=count) for count in (None, 1)
    )
    for reader in (at_once, singly):
        reader.encode(CONTEXTS, prefix=PREFIX)
    for one, other in zip(states(at_once.encoded), states(singly.encoded), strict=True):
        torch.testing.assert_close(one, other)
    answers = [reader.ask(QUESTIONS, max_new_tokens=6) for reader in (at_once, singly)]
    assert [a.tokens for a in answers[0]] == [a.tokens for a in answers[1]]


def test_waves_become_smaller_where_memory_fails(model, tokenizer, monkeypatch, states):
    expected = NBCE(model, tokenizer).encode(CONTEXTS * 2)
    sizes = []
    forward = encode._forward

    def scarce(model, rows, *others):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, rows, *others)

    monkeypatch.setattr(encode, "_forward", scarce)
    encoded = NBCE(model, tokenizer).encode(CONTEXTS * 2)
    # The shared beginning, six that do not fit, three that do not either, then as many tokens as
    # one of the longest has.
    assert sizes == [1, 6, 3, 1, 1, 1, 1, 2]
    for one, other in zip(states(encoded), states(expected), strict=True):
        torch.testing.assert_close(one, other)


def test_a_failure_that_is_not_about_memory_is_not_hidden(model, tokenizer, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(encode, "_forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        NBCE(model, tokenizer).encode(CONTEXTS)


def test_groups_of_questions_become_smaller_where_memory_fails(reader, monkeypatch):
    expected = reader.ask(QUESTIONS * 2, max_new_tokens=5)
    generate = asking._generate
    sizes = []

    def scarce(model, encoded, tails, *others):
        sizes.append(len(tails))
        if len(tails) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, encoded, tails, *others)

    monkeypatch.setattr(asking, "_generate", scarce)
    answers = reader.ask(QUESTIONS * 2, max_new_tokens=5)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert [a.tokens for a in answers] == [a.tokens for a in expected]


def test_the_cache_grows_with_the_answer(reader, monkeypatch):
    expected = reader.ask(QUESTIONS, max_new_tokens=20)
    monkeypatch.setattr(asking, "ROOM", 2)
    monkeypatch.setattr(cache, "STEP", 1)
    answers = reader.ask(QUESTIONS, max_new_tokens=20)
    assert [a.tokens for a in answers] == [a.tokens for a in expected]
    assert max(len(a.tokens) for a in answers) > 5


# Earlier versions of transformers take the meta device for the one that computes.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
def test_models_whose_weights_are_brought_in_layer_by_layer(make_model, tokenizer, reader):
    from accelerate import cpu_offload

    offloaded = make_model()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert offloaded.device.type == "meta"
    answers = NBCE(offloaded, tokenizer, separator="\n", cache_device="cpu").ask(
        QUESTIONS, CONTEXTS, max_new_tokens=6
    )
    expected = reader.ask(QUESTIONS, CONTEXTS, max_new_tokens=6)
    assert [a.tokens for a in answers] == [a.tokens for a in expected]
