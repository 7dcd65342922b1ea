"""Answers with their sources: which context each token came from, and how sure each context was."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """How an answer came about, step by step.

    Attributes:
        chosen: int64 (steps,): the context that each token came from: the one of least (adjusted)
            entropy where that is the pooling, the one that thinks the token most probable (by its
            prior weight) where contexts are mixed.
        entropies: float (steps, contexts): of each context's prediction, in nats.
        names: of the contexts.
    """

    chosen: Int[Tensor, " steps"]
    entropies: Float[Tensor, "steps contexts"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """A stretch of an answer that came from one context.

    Attributes:
        text: of the answer.
        context: which one, by its place.
        name: which one, by its name.
    """

    text: str
    context: int
    name: str


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a question.

    Attributes:
        question: as it was asked.
        text: the answer, without special tokens and cut before the stop text.
        tokens: everything that was generated, one for each step of the trace; an end-of-text token
            and the stop text are among them.
        trace: which context each token came from.
        spans: the text by source; the texts of all spans together are `text`.
    """

    question: str
    text: str
    tokens: list[int] = field(repr=False)
    trace: Trace = field(repr=False)
    spans: list[Span] = field(repr=False)


def make_answer(
    tokenizer: Any, question: str, tokens: Sequence[int], trace: Trace, stop: Sequence[str]
) -> Answer:
    """An answer from its tokens.

    Args:
        tokenizer: decodes them.
        question: as it was asked.
        tokens: generated, without padding.
        trace: of as many steps.
        stop: texts before the first of which the answer is cut.
    """
    tokens = list(tokens)
    text = cut_before(decode(tokenizer, tokens), stop)
    return Answer(question, text, tokens, trace, _spans(tokenizer, text, tokens, trace))


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text of tokens, special ones left out."""
    return tokenizer.decode(list(tokens), skip_special_tokens=True)


def cut_before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts in it."""
    found = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(found)] if found else text


def _spans(tokenizer: Any, text: str, tokens: Sequence[int], trace: Trace) -> list[Span]:
    """Consecutive tokens of one source together.

    A character of which several tokens are parts belongs to the token that completes it: up to
    there, the decoded beginning is no beginning of the text.
    """
    sources = trace.chosen.tolist()
    spans: list[Span] = []
    start = 0
    for step, source in enumerate(sources):
        last = step + 1 == len(sources)
        if not last and sources[step + 1] == source:
            continue
        end = len(text) if last else _common_length(text, decode(tokenizer, tokens[: step + 1]))
        if end <= start:
            continue
        piece, start = text[start:end], end
        if spans and spans[-1].context == source:
            piece = spans.pop().text + piece
        spans.append(Span(piece, source, trace.names[source]))
    return spans


def _common_length(one: str, other: str) -> int:
    """How many characters two texts begin alike with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
