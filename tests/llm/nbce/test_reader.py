"""`NBCE` says what a plain loop says that reads one context at a time, without any cache."""

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel, set_seed

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.blocks.rotary import LeakyReRoPE, NTKAware, ReRoPE
from ropewalk.llm import NBCE, plug
from ropewalk.llm.nbce import asking, cache, encode

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
MERGES = {
    "default": ContextMerge(),
    "no top-p": ContextMerge(top_p=1.0, eta=0.0, beta=1.0),
    "narrow": ContextMerge(top_p=0.6, eta=1.0),
    "beta -1": ContextMerge(beta=-1.0),
}


@pytest.fixture
def reader(model, tokenizer) -> NBCE:
    reader = NBCE(model, tokenizer, separator="\n")
    reader.encode(CONTEXTS, prefix=PREFIX)
    return reader


def states(encoded) -> list[torch.Tensor]:
    kept = (encoded.kept.base, *encoded.kept.contexts)
    return [part for layers in kept for layer in layers for part in layer]


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_those_of_the_loop(model, tokenizer, loop, same, merge, question):
    reader = NBCE(model, tokenizer, merge, separator="\n")
    reader.encode(CONTEXTS, prefix=PREFIX)
    same(reader.ask(question, max_new_tokens=8), loop(model, question, merge=merge))


def test_tokens_are_drawn_from_the_distribution_of_the_loop(reader, model, recorder, loop, same):
    set_seed(0)
    answer = reader.ask(
        QUESTIONS[0], max_new_tokens=10, do_sample=True, logits_processor=[recorder]
    )
    drawn = iter(answer.tokens)
    told = loop(model, QUESTIONS[0], steps=10, pick=lambda _: next(drawn))
    same(answer, told)
    got = torch.cat(recorder.scores).numpy()
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(told.log_probs))
    np.testing.assert_allclose(np.exp(got), np.exp(told.log_probs), atol=1e-6)


def test_several_questions_are_answered_as_each_alone(reader, model, loop, same):
    answers = reader.ask(QUESTIONS, max_new_tokens=8)
    assert [answer.question for answer in answers] == QUESTIONS
    for question, answer in zip(QUESTIONS, answers, strict=True):
        same(answer, loop(model, question))
        alone = reader.ask(question, max_new_tokens=8)
        assert (alone.text, alone.spans) == (answer.text, answer.spans)


def test_a_question_much_longer_than_the_others_and_than_a_context(reader, model, loop, same):
    # The rows of the short questions then begin within the shared prefix, or before it.
    questions = ["a?", "b" * 40 + "?", "c?"]
    for question, answer in zip(questions, reader.ask(questions, max_new_tokens=4), strict=True):
        same(answer, loop(model, question, steps=4))


def test_repetition_is_counted_in_the_question_whatever_else_is_asked(reader):
    options = {"max_new_tokens": 10, "repetition_penalty": 3.0}
    together = reader.ask(["who sat?", "b" * 40 + "?"], **options)
    assert together[0].tokens == reader.ask("who sat?", **options).tokens
    assert together[0].tokens != reader.ask("who sat?", max_new_tokens=10).tokens


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("separator", ["", "\n"])
def test_nothing_is_needed_around_a_context(model, make_tokenizer, prefix, separator, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    reader = NBCE(model, tokenizer, separator=separator)
    encoded = reader.encode(CONTEXTS, prefix=prefix)
    assert len(encoded.base) == len(prefix)
    both = reader.ask(QUESTIONS, max_new_tokens=6)
    # Whatever is put together of pieces is one text to this tokenizer.
    joined = NBCE(model, tokenizer, separator="")
    texts = [prefix + context + separator for context in CONTEXTS]
    for question, answer in zip(QUESTIONS, both, strict=True):
        joined.encode(texts)
        if not prefix and not separator:
            assert joined.ask(question, max_new_tokens=6).tokens == answer.tokens
        assert reader.ask(question, max_new_tokens=6).tokens == answer.tokens


def test_one_context_is_classifier_free_guidance(model, tokenizer, recorder):
    scale = 1.7
    reader = NBCE(model, tokenizer, ContextMerge.classifier_free_guidance(scale), separator="\n")
    reader.encode(CONTEXTS[:1], prefix=PREFIX)
    answer = reader.ask(
        QUESTIONS[0], max_new_tokens=8, min_new_tokens=8, logits_processor=[recorder]
    )
    texts = [PREFIX + CONTEXTS[0] + "\n" + QUESTIONS[0], PREFIX + "\n" + QUESTIONS[0]]
    rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    theirs = model.generate(
        rows[0],
        negative_prompt_ids=rows[1],
        guidance_scale=scale,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert answer.tokens == theirs.sequences[0, rows[0].shape[1] :].tolist()
    expected = torch.cat(theirs.scores).double().log_softmax(-1)
    scores = torch.cat(recorder.scores).double().log_softmax(-1)
    # The end-of-text token is held back in both, and by different means.
    torch.testing.assert_close(scores[:, 3:], expected[:, 3:], atol=1e-4, rtol=1e-4)


def test_a_context_twice_is_a_context_once(reader):
    once = reader.ask(QUESTIONS[0], CONTEXTS, max_new_tokens=8)
    twice = reader.ask(QUESTIONS[0], CONTEXTS + CONTEXTS[:2], max_new_tokens=8)
    assert twice.tokens == once.tokens
    assert torch.equal(twice.trace.chosen, once.trace.chosen)


def test_the_order_of_contexts_is_seen_in_the_trace_only(reader):
    order = [2, 0, 1]
    forward = reader.ask(QUESTIONS[1], CONTEXTS, max_new_tokens=8)
    turned = reader.ask(QUESTIONS[1], [CONTEXTS[place] for place in order], max_new_tokens=8)
    assert turned.tokens == forward.tokens
    assert [order[place] for place in turned.trace.chosen] == forward.trace.chosen.tolist()
    torch.testing.assert_close(turned.trace.entropies, forward.trace.entropies[:, order])


def test_one_encoding_serves_many_questions_and_stays_as_it_is(reader):
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


@pytest.mark.parametrize("merge", ["min_entropy", "mean", "max", "entropy_weighted"])
def test_weights_of_contexts(model, tokenizer, merge):
    reader = NBCE(model, tokenizer, ContextMerge(pooling=merge), separator="\n")
    reader.encode(CONTEXTS)
    only = reader.ask(QUESTIONS, CONTEXTS[1:2], max_new_tokens=6)
    reader.encode(CONTEXTS)
    weighed = reader.ask(QUESTIONS, prior=[0, 1.0, 0], max_new_tokens=6)
    assert [answer.tokens for answer in weighed] == [answer.tokens for answer in only]
    assert all((answer.trace.chosen == 1).all() for answer in weighed)
    each = reader.ask(QUESTIONS, prior=[[1.0, 0, 0], [0, 0, 2.0]], max_new_tokens=6)
    assert set(each[0].trace.chosen.tolist()) == {0}
    assert set(each[1].trace.chosen.tolist()) == {2}


def test_weights_are_those_of_the_loop(reader, model, loop, same):
    weights = [0.5, 3.0, 1.0]
    same(
        reader.ask(QUESTIONS[0], prior=weights, max_new_tokens=8),
        loop(model, QUESTIONS[0], weights=weights),
    )


def test_a_pooling_of_ones_own(model, tokenizer):
    named, own = (
        NBCE(model, tokenizer, ContextMerge(pooling=pooling), separator="\n").ask(
            QUESTIONS, CONTEXTS, max_new_tokens=6
        )
        for pooling in ("max", lambda log_probs, entropies: log_probs.amax(dim=-2))
    )
    assert [answer.tokens for answer in own] == [answer.tokens for answer in named]


def test_sampling_draws_one_token_a_question(reader):
    def draw(seed: int) -> list[list[int]]:
        set_seed(seed)
        answers = reader.ask(
            QUESTIONS, max_new_tokens=12, do_sample=True, temperature=1.5, top_k=20, top_p=0.9
        )
        return [answer.tokens for answer in answers]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_waves_of_one_and_questions_one_by_one_change_nothing(model, tokenizer):
    at_once, singly = (
        NBCE(model, tokenizer, separator="\n", rows_at_once=count) for count in (None, 1)
    )
    for reader in (at_once, singly):
        reader.encode(CONTEXTS, prefix=PREFIX)
    for one, other in zip(states(at_once.encoded), states(singly.encoded), strict=True):
        torch.testing.assert_close(one, other)
    answers = [reader.ask(QUESTIONS, max_new_tokens=6) for reader in (at_once, singly)]
    assert [a.tokens for a in answers[0]] == [a.tokens for a in answers[1]]


def test_waves_become_smaller_where_memory_fails(model, tokenizer, monkeypatch):
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


@pytest.mark.parametrize(
    "rules",
    [
        {"distance": ReRoPE(window=8)},
        {"distance": LeakyReRoPE(window=6, factor=4.0), "log_n_length": 16},
        {"frequency": NTKAware(factor=4.0)},
        {"frequency": NTKAware(factor=4.0), "distance": ReRoPE(window=8)},
    ],
    ids=["rerope", "leaky log-n", "ntk", "ntk rerope"],
)
def test_plugged_models_answer_as_the_loop_with_them_does(model, tokenizer, loop, same, rules):
    bare = loop(model, QUESTIONS[0])
    with plug(model, **rules):
        reader = NBCE(model, tokenizer, separator="\n")
        reader.encode(CONTEXTS, prefix=PREFIX)
        for question, answer in zip(
            QUESTIONS, reader.ask(QUESTIONS, max_new_tokens=8), strict=True
        ):
            same(answer, loop(model, question))
        assert not np.allclose(bare.entropies[0], loop(model, QUESTIONS[0]).entropies[0])


def test_contexts_longer_than_the_trained_length_under_a_plug(model, tokenizer, loop, same):
    long = ["the cat sat on a mat. " * 6, "a dog"]
    with plug(model, distance=ReRoPE(window=32)):
        answer = NBCE(model, tokenizer, separator="\n").ask(QUESTIONS[0], long, max_new_tokens=3)
        same(answer, loop(model, QUESTIONS[0], long, prefix="", steps=3))


def test_nothing_of_the_users_is_changed(model: PreTrainedModel, tokenizer):
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    config, generation = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    tokenizer.padding_side = "right"
    random = torch.get_rng_state()
    reader = NBCE(model, tokenizer)
    options = {"max_new_tokens": 3, "stopping_criteria": [], "logits_processor": []}
    reader.ask(QUESTIONS, CONTEXTS, **options)
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config.to_dict()
    assert model.generation_config.to_dict() == generation.to_dict()
    assert tokenizer.padding_side == "right"
    assert options["stopping_criteria"] == options["logits_processor"] == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not part.requires_grad for part in states(reader.encoded))


def test_a_model_in_training_is_read_without_dropout(make_model, tokenizer):
    model = make_model(attention_dropout=0.5).train()
    first, second = (
        NBCE(model, tokenizer).ask(QUESTIONS, CONTEXTS, max_new_tokens=4) for _ in "ab"
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.trace.entropies, other.trace.entropies)


def test_the_modes_come_back_after_an_error(model, tokenizer, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    model.train()
    monkeypatch.setattr(encode, "_forward", broken)
    with pytest.raises(RuntimeError):
        NBCE(model, tokenizer).encode(CONTEXTS)
    assert all(module.training for module in model.modules())


CHAT = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_chat_template_stands_around_context_and_question(model, tokenizer):
    tokenizer.chat_template = CHAT
    reader = NBCE(model, tokenizer, separator="\n")
    encoded = reader.encode(CONTEXTS, prefix=PREFIX, chat=True)
    chatted = reader.ask(QUESTIONS, max_new_tokens=6)
    tokenizer.chat_template = None
    assert tokenizer.decode(encoded.base) == "<s>user: " + PREFIX
    assert tokenizer.decode(encoded.ending) == "\nassistant: "
    # The same, written out; the tokenizer puts <s> first itself.
    reader.encode(CONTEXTS, prefix="user: " + PREFIX)
    for question, answer in zip(QUESTIONS, chatted, strict=True):
        plain = reader.ask(question + "\nassistant: ", max_new_tokens=6)
        assert answer.tokens == plain.tokens
        assert answer.question == question


def test_templates_that_cannot_be_used(model, tokenizer):
    reader = NBCE(model, tokenizer)
    with pytest.raises(ValueError, match="expected a tokenizer with a chat template"):
        reader.encode(CONTEXTS, chat=True)
    tokenizer.chat_template = "{{ messages[0].content }}{{ messages[0].content }}"
    with pytest.raises(ValueError, match="shows them 2 times"):
        reader.encode(CONTEXTS, chat=True)


def test_the_models_own_settings_of_generation_count(reader, model):
    expected = reader.ask(QUESTIONS, max_new_tokens=8)
    model.generation_config.return_dict_in_generate = True
    model.generation_config.output_scores = True
    model.generation_config.stop_strings = [expected[0].text[3:5]]
    stopped = reader.ask(QUESTIONS, max_new_tokens=8)
    assert stopped[0].text == expected[0].text[: expected[0].text.index(expected[0].text[3:5])]
    given = transformers.GenerationConfig(repetition_penalty=4.0, pad_token_id=0)
    penalised = reader.ask(QUESTIONS[0], max_new_tokens=8, generation_config=given)
    model.generation_config.stop_strings = None
    assert (
        penalised.tokens
        == reader.ask(QUESTIONS[0], max_new_tokens=8, repetition_penalty=4.0).tokens
    )


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


def test_numbers_of_numpy_are_numbers(model, tokenizer):
    reader = NBCE(model, tokenizer, rows_at_once=np.int64(2), max_length=np.int64(90))
    answer = reader.ask(
        QUESTIONS[0], CONTEXTS, prior=np.array([1.0, 2.0, 3.0]), max_new_tokens=np.int64(3)
    )
    assert len(answer.tokens) == 3
