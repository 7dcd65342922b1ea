"""Answers: where they end, their sources as spans of text, and what a streamer hears."""

import pytest
import torch
from transformers import ByT5Tokenizer, TextIteratorStreamer, TextStreamer

from ropewalk.llm import NBCE
from ropewalk.llm.nbce import Span, Trace, answer

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
QUESTIONS = ["who sat?", "how many birds flew?"]
END = 2


def spans_of(text: str, sources: list[int], tokens: list[int] | None = None, stop=()):
    """An answer of a byte tokenizer whose tokens have these sources."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if tokens is None else tokens
    trace = Trace(torch.tensor(sources), torch.zeros(len(sources), 3), ("a", "b", "c"))
    return answer.make_answer(tokenizer, "why?", tokens, trace, stop)


def test_consecutive_tokens_of_one_source_are_one_span():
    made = spans_of("abcdef", [0, 0, 2, 1, 1, 1])
    assert made.spans == [Span("ab", 0, "a"), Span("c", 2, "c"), Span("def", 1, "b")]


def test_a_character_of_several_tokens_belongs_to_the_token_that_completes_it():
    # Each letter here is two bytes, the sign three; a byte is a token.
    assert [span.text for span in spans_of("éä", [0, 1, 1, 1]).spans] == ["éä"]
    assert spans_of("éä", [0, 1, 1, 1]).spans == [Span("éä", 1, "b")]
    assert spans_of("é東", [0, 0, 0, 1, 2]).spans == [Span("é", 0, "a"), Span("東", 2, "c")]


@pytest.mark.parametrize("text", ["abc", "é東 \ufffd!", "👩‍🌾 né"])
def test_the_spans_are_the_text(text):
    length = len(text.encode())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sources = torch.randint(3, (length,), generator=generator).tolist()
        made = spans_of(text, sources)
        assert made.text == text
        assert "".join(span.text for span in made.spans) == text
        assert all(
            one.context != other.context
            for one, other in zip(made.spans, made.spans[1:], strict=False)
        )


def test_bytes_that_are_no_character_lose_no_text():
    broken = spans_of("", [0, 1, 2], tokens=[200, 100, 201])
    assert "".join(span.text for span in broken.spans) == broken.text != ""


def test_tokens_without_text_make_no_span():
    end = 1
    made = spans_of("", [0, 0, 1, 2], tokens=[*b"\x68\x69", end, end])
    assert made.spans == [Span(made.text, 0, "a")]
    assert spans_of("", [1], tokens=[end]).spans == []
    between = spans_of("", [0, 1, 0], tokens=[100, end, 101])
    assert between.spans == [Span(between.text, 0, "a")]


def test_the_text_ends_before_the_first_stop_text():
    made = spans_of("one. two; three.", [0] * 4 + [1] * 12, stop=["; ", ". "])
    assert made.text == "one"
    assert made.spans == [Span("one", 0, "a")]
    assert len(made.tokens) == len(made.trace.chosen) == 16


def test_generation_stops_at_a_text(reader, tokenizer):
    whole = reader.ask(QUESTIONS[1], max_new_tokens=12)
    assert len(whole.tokens) == 12
    stop = whole.text[4:6]
    assert len(stop) == 2
    stopped = reader.ask(QUESTIONS[1], max_new_tokens=12, stop=["never so", stop])
    first = whole.text.index(stop)
    assert stopped.text == whole.text[:first]
    assert stopped.tokens == whole.tokens[: first + 2]
    assert len(stopped.trace.chosen) == len(stopped.trace.entropies) == first + 2
    assert "".join(span.text for span in stopped.spans) == stopped.text
    both = reader.ask(QUESTIONS, max_new_tokens=12, stop=stop)
    assert both[1].text == stopped.text
    assert stop not in both[0].text


def test_a_special_token_can_be_a_stop_text(reader):
    whole = reader.ask(QUESTIONS[1], max_new_tokens=12)
    again = reader.ask(QUESTIONS[1], max_new_tokens=12, stop="</s>", eos_token_id=None)
    assert again.text == whole.text


def test_an_end_of_text_token_ends_an_answer(reader):
    whole = reader.ask(QUESTIONS, max_new_tokens=10, min_new_tokens=10)
    token = whole[0].tokens[3]
    ended = reader.ask(QUESTIONS, max_new_tokens=10, eos_token_id=token)
    for long, short in zip(whole, ended, strict=True):
        expected = long.tokens[: long.tokens.index(token) + 1] if token in long.tokens else None
        if expected is not None:
            assert short.tokens == expected
            assert len(short.trace.chosen) == len(expected)


def test_names_are_in_trace_and_spans(model, tokenizer):
    reader = NBCE(model, tokenizer, separator="\n")
    by_name = reader.ask(QUESTIONS[0], dict(zip("xyz", CONTEXTS, strict=True)), max_new_tokens=6)
    assert by_name.trace.names == tuple("xyz")
    assert {span.name for span in by_name.spans} <= set("xyz")
    assert all("xyz"[span.context] == span.name for span in by_name.spans)
    assert reader.encode(CONTEXTS, names=["p", "q", "r"]).names == ("p", "q", "r")
    assert reader.encode(CONTEXTS).names == ("context 1", "context 2", "context 3")
    assert len(reader.encode(CONTEXTS)) == 3


def test_the_streamer_hears_question_and_answer(reader, tokenizer, capsys):
    answer = reader.ask(
        QUESTIONS[0], max_new_tokens=8, streamer=TextStreamer(tokenizer, skip_special_tokens=True)
    )
    assert capsys.readouterr().out == "\n" + QUESTIONS[0] + answer.text + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert reader.ask([QUESTIONS[0]], max_new_tokens=8, streamer=streamer)[0].text == "".join(
        streamer
    )


def test_the_streamer_hears_the_same_where_contexts_are_read_every_time(
    make_model, tokenizer, capsys
):
    reader = NBCE(make_model("mamba"), tokenizer, separator="\n")
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    answer = reader.ask(QUESTIONS[0], CONTEXTS, max_new_tokens=8, streamer=streamer)
    assert capsys.readouterr().out == "\n" + QUESTIONS[0] + answer.text + "\n"
