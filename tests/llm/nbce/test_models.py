"""Every scheme of positions and every kind of cache: answers are those of the loop."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.evals.default_model import bundled_models
from ropewalk.evals.tasks import passkey_prompt
from ropewalk.llm import NBCE
from ropewalk.llm.nbce import encode, reader

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
# Eager attention takes its softmax in float32, and experts multiply in float32 at most.
FLOAT32 = (
    "gemma2",
    "deepseek-v3",
    "gpt2 eager",
    "llama eager",
    "bloom",
    "mpt",
    "falcon-alibi",
    "qwen3-next",
)
CUT = (
    "llama",
    "llama eager",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "deepseek-v3",
    "gemma3n",
    "llama4",
    "gpt2",
    "gpt2 eager",
    "opt",
    "bloom",
    "mpt",
    "falcon-alibi",
)


@pytest.mark.parametrize("name", CUT)
def test_contexts_are_read_once(make_model, tokenizer, loop, same, recorder, name):
    family, _, attention = name.partition(" ")
    model = make_model(family, **({"attn_implementation": attention} if attention else {}))
    if name in FLOAT32:
        model.float()
    asked = NBCE(model, tokenizer, separator="\n")
    encoded = asked.encode(CONTEXTS, prefix=PREFIX)
    assert encoded.reusable
    answers = asked.ask(QUESTIONS, max_new_tokens=8, logits_processor=[recorder])
    for place, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
        told = loop(model, question)
        same(answer, told)
        for scores, expected in zip(recorder.scores, told.log_probs, strict=False):
            np.testing.assert_allclose(scores[place].exp(), np.exp(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["mamba", "qwen3-next"])
def test_models_with_a_state_read_contexts_with_every_question(
    make_model, tokenizer, loop, same, recorder, name
):
    model = make_model(name)
    if name in FLOAT32:
        model.float()
    asked = NBCE(model, tokenizer, separator="\n")
    encoded = asked.encode(CONTEXTS, prefix=PREFIX)
    assert not encoded.reusable
    assert encoded.nbytes == 0
    answers = asked.ask(QUESTIONS, max_new_tokens=8, logits_processor=[recorder])
    for place, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
        told = loop(model, question)
        same(answer, told)
        for scores, expected in zip(recorder.scores, told.log_probs, strict=False):
            np.testing.assert_allclose(scores[place].exp(), np.exp(expected), atol=1e-5)


def test_a_model_that_reads_padding_is_refused(make_model, tokenizer):
    model = make_model("rwkv").float()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            # Versions of transformers differ in how large they make these.
            torch.nn.init.orthogonal_(parameter.data)
    with pytest.raises(ValueError, match="RwkvForCausalLM reads padding as text"):
        NBCE(model, tokenizer).encode(CONTEXTS)


def test_a_cache_that_turns_out_otherwise_is_not_cut(model, tokenizer, monkeypatch):
    expected = NBCE(model, tokenizer).ask(QUESTIONS, CONTEXTS, max_new_tokens=5)

    def ignoring(model, rows, cache, start=0):
        return encode._checked(cache, len(rows), start + max(map(len, rows)))

    monkeypatch.setattr(encode, "_forward", ignoring)
    asked = NBCE(model, tokenizer)
    assert not asked.encode(CONTEXTS).reusable
    answers = asked.ask(QUESTIONS, max_new_tokens=5)
    assert [a.tokens for a in answers] == [a.tokens for a in expected]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bloom"])
def test_both_ways_of_reading_give_the_same_answers(make_model, tokenizer, monkeypatch, name):
    model = make_model(name).float()
    options = {"max_new_tokens": 8, "repetition_penalty": 1.5}
    once = NBCE(model, tokenizer).ask(QUESTIONS, CONTEXTS, **options)
    monkeypatch.setattr(reader, "can_be_cut", lambda model: False)
    every_time = NBCE(model, tokenizer)
    assert not every_time.encode(CONTEXTS).reusable
    for one, other in zip(once, every_time.ask(QUESTIONS, **options), strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(one.trace.entropies, other.trace.entropies, atol=1e-5, rtol=1e-5)


def test_the_bundled_model_finds_a_key_in_one_of_many_contexts():
    folder = bundled_models()["default"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cycle = list(passkey_prompt.FILLER_SENTENCES)
    filler = ["".join(cycle[turn:] + cycle[:turn]) * 2 for turn in range(5)]
    keys = ["52817", "40936"]
    reader = NBCE(trained, tokenizer, separator="")
    for place, key in enumerate(keys):
        contexts = list(filler)
        contexts[place + 1] += passkey_prompt.needle(key)
        answer = reader.ask(passkey_prompt.QUESTION, contexts, max_new_tokens=6, stop="\n")
        assert answer.text == key
        assert [span.context for span in answer.spans] == [place + 1]
