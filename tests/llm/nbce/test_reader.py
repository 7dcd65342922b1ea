"""`NBCE` says what a plain loop says that reads one context at a time, without any cache."""

import numpy as np
import pytest
import torch
from transformers import set_seed

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.blocks.rotary import LeakyReRoPE, NTKAware, ReRoPE
from ropewalk.llm import NBCE, MergedDecoding, plug

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
MERGES = {
    "default": ContextMerge(),
    "no top-p": ContextMerge(top_p=1.0, eta=0.0, beta=1.0),
    "narrow": ContextMerge(top_p=0.6, eta=1.0),
    "beta -1": ContextMerge(beta=-1.0),
    "renormalised": ContextMerge(top_p=0.6, renormalise_entropy=True),
    "mean": ContextMerge(pooling="mean"),
    "mean, nothing shared": ContextMerge(pooling="mean", top_p=0.05),
    "max": ContextMerge(pooling="max", top_p=0.8),
    "entropy weighted": ContextMerge(pooling="entropy_weighted", eta=0.5),
    "entropy weighted, renormalised": ContextMerge(
        pooling="entropy_weighted", renormalise_entropy=True
    ),
}


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 1.0], [2.0, 0.0, 1.0]], ids=str)
def test_greedy_answers_are_those_of_the_loop(
    model, tokenizer, recorder, loop, same, merge, question, weights
):
    reader = NBCE(model, tokenizer, merge, separator="\n")
    reader.encode(CONTEXTS, prefix=PREFIX)
    answer = reader.ask(question, prior=weights, max_new_tokens=8, logits_processor=[recorder])
    told = loop(model, question, merge=merge, weights=weights)
    same(answer, told)
    for scores, expected in zip(recorder.scores, told.log_probs, strict=True):
        np.testing.assert_allclose(scores[0].exp(), np.exp(expected), atol=1e-6)


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


@pytest.mark.parametrize("size", [2, 3])
def test_what_fills_a_question_up_makes_no_ngrams(reader, size):
    # The separator comes first, and again in the answer; what it is filled up with is of it, too.
    newline = reader.tokenizer("\n", add_special_tokens=False)["input_ids"]
    questions = ["who?", "how many birds flew over the mat?", "why?"]
    options = {
        "max_new_tokens": 8,
        "no_repeat_ngram_size": size,
        "sequence_bias": [[newline, 8.0]],
    }
    together = reader.ask(questions, **options)
    alone = [reader.ask(question, **options) for question in questions]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert any(answer.tokens[0] == newline[0] for answer in together)


def test_what_fills_a_question_up_begins_no_sequence(model, tokenizer):
    # Top-p would cut the token that the bias is for.
    reader = NBCE(model, tokenizer, ContextMerge(top_p=1.0), separator="\n")
    reader.encode(CONTEXTS)
    newline, *asked = tokenizer("\na?", add_special_tokens=False)["input_ids"]
    questions = ["a?", "how many birds flew?"]
    # Of two separators before the question, one is none of it.
    options = {"max_new_tokens": 3, "sequence_bias": [[[newline, newline, *asked, 30], 90.0]]}
    together, alone = reader.ask(questions, **options), reader.ask(questions[0], **options)
    assert together[0].tokens == alone.tokens
    assert alone.tokens[0] != 30


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("separator", ["", "\n"])
def test_nothing_is_needed_around_a_context(model, make_tokenizer, prefix, separator):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    reader = NBCE(model, tokenizer, separator=separator)
    assert len(reader.encode(CONTEXTS, prefix=prefix).base) == len(prefix)
    bare = NBCE(model, tokenizer, separator="")
    bare.encode(CONTEXTS, prefix=prefix)
    for question, answer in zip(QUESTIONS, reader.ask(QUESTIONS, max_new_tokens=6), strict=True):
        assert reader.ask(question, max_new_tokens=6).tokens == answer.tokens
        assert bare.ask(separator + question, max_new_tokens=6).tokens == answer.tokens


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


@pytest.mark.parametrize("pooling", ["min_entropy", "max"])
def test_a_context_twice_is_a_context_once(model, tokenizer, make_recorder, pooling):
    reader = NBCE(model, tokenizer, ContextMerge(pooling=pooling), separator="\n")
    asked = []
    for contexts in (CONTEXTS, CONTEXTS + CONTEXTS[:2]):
        recorder = make_recorder()
        options = {"max_new_tokens": 8, "logits_processor": [recorder]}
        asked.append((reader.ask(QUESTIONS[0], contexts, **options), recorder.scores))
    (once, scores), (twice, same_scores) = asked
    assert twice.tokens == once.tokens
    assert torch.equal(twice.trace.chosen, once.trace.chosen)
    torch.testing.assert_close(twice.trace.entropies[:, :3], once.trace.entropies)
    torch.testing.assert_close(twice.trace.entropies[:, 3:], once.trace.entropies[:, :2])
    torch.testing.assert_close(torch.cat(same_scores).exp(), torch.cat(scores).exp())


def test_every_context_twice_is_every_context_once(model, tokenizer, make_recorder):
    # Under the poolings that mix, how often a context is there counts; all twice changes nothing.
    for pooling in ("mean", "entropy_weighted"):
        reader = NBCE(model, tokenizer, ContextMerge(pooling=pooling, eta=0.0), separator="\n")
        scores = []
        for contexts in (CONTEXTS, CONTEXTS * 2):
            recorder = make_recorder()
            reader.ask(QUESTIONS[0], contexts, max_new_tokens=8, logits_processor=[recorder])
            scores.append(torch.cat(recorder.scores).exp())
        torch.testing.assert_close(scores[1], scores[0])


def test_the_order_of_contexts_is_seen_in_the_trace_only(reader):
    order = [2, 0, 1]
    forward = reader.ask(QUESTIONS[1], CONTEXTS, max_new_tokens=8)
    turned = reader.ask(QUESTIONS[1], [CONTEXTS[place] for place in order], max_new_tokens=8)
    assert turned.tokens == forward.tokens
    assert [order[place] for place in turned.trace.chosen] == forward.trace.chosen.tolist()
    torch.testing.assert_close(turned.trace.entropies, forward.trace.entropies[:, order])


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


def test_a_mixed_answer_is_attributed_to_the_context_that_says_it():
    """And not to the surest one, which may say something else."""
    rows = torch.full((1, 4, 6), 0.0)
    rows[0, 1, 5] = 8.0  # sure of another token
    rows[0, 2:, 3] = 3.0  # two that agree
    decoding = MergedDecoding(ContextMerge(pooling="mean", top_p=1.0), contexts=3)
    decoding._merge(rows)
    source = decoding._source(rows[:, 1:], torch.tensor([3]))
    assert decoding._states[-1].chosen.tolist() == [0]
    assert source.tolist() == [1]


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
