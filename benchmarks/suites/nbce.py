"""Asking many contexts: `NBCE.ask` against a loop over the contexts, by their number.

Answers of 16 tokens on the bundled model, contexts of 384 bytes. Cases are named by contexts and
questions; tokens a second are tokens · questions over the median. Reading the contexts is timed.
"""

from functools import partial
from typing import Any

from benchmarks.case import Case, Suite
from benchmarks.goals import Results, judge, median_ms
from benchmarks.nbce import QUESTIONS, Asked, NBCEWorkload, nbce_work

CONTEXTS = (1, 4, 16, 32)
MAIN = 16
"""The number of contexts whose goal is judged; beyond it the loop in float64 takes minutes."""
LEAST_SPEED = 4.0
PEERS = ("ask", "loop", "batch")
PLAIN = "loop-float64"
ROUNDS = 3


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; its goals are judged by cases of the full size only."""
    sizes = {"context_bytes": 40, "tokens": 3} if quick else {"context_bytes": 384, "tokens": 16}
    counts, many = ((1, 3), 3) if quick else (CONTEXTS, MAIN)
    asked = [Asked(contexts, 1, device=device, **sizes) for contexts in counts]
    asked.append(Asked(many, len(QUESTIONS), device=device, **sizes))
    return Suite("nbce", tuple(map(_case, asked)), _goals)


def _case(asked: Asked) -> Case:
    plain = asked.contexts <= MAIN and asked.questions == 1
    return Case(
        name=_name(asked.contexts, asked.questions),
        parameters=asked.parameters,
        work=nbce_work(asked),
        peers=(*PEERS, PLAIN) if plain else PEERS,
        make=lambda: NBCEWorkload(asked),
        figure="one question, 384 bytes a context" if asked.questions == 1 else "",
        x="contexts",
        rounds=ROUNDS,
    )


def _name(contexts: int, questions: int) -> str:
    return f"contexts-{contexts}/questions-{questions}"


def _goals(results: Results) -> list[dict[str, Any]]:
    """Four times the plain loop; and not slower than those that read each row once for a question.

    For one question they all read as much, and reading takes most of the time of a short answer;
    only `ask` does not read the contexts again for the next one.
    """
    one, several = _name(MAIN, 1), _name(MAIN, len(QUESTIONS))
    return [
        judge(
            f"{name}: speed over {title}",
            "at least",
            least,
            partial(_speed, results, name, peer),
        )
        for name, peer, title, least in (
            (one, PLAIN, "one context at a time in float64", LEAST_SPEED),
            (one, "loop", "one context at a time with caches", 1.0),
            (one, "batch", "one batch that is read anew", 1.0),
            (several, "loop", "one context at a time with caches", 1.0),
            (several, "batch", "one batch that is read anew", 1.0),
        )
    ]


def _speed(results: Results, case: str, peer: str) -> float:
    """A peer's time over ours."""
    return median_ms(results, case, peer) / median_ms(results, case, "ask")
