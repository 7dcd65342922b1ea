"""Perplexity of the bundled model under ReRoPE, the reference path against the fastest.

Cases come in pairs: `…/evaluation/8192` is the whole evaluation, `…/attention/8192` the op alone
with the model's heads and as many tokens as it reads, in the same run. How much faster the op is
bounds what the evaluation can gain, since the rest of the model is the same for both; the goals
ask how close to it the evaluation comes, and name the op's own ratio as their target.

On a CPU only: the tolerance is that of float32.
"""

from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.attention import AttentionWorkload, Shape
from benchmarks.case import Case, Suite
from benchmarks.evaluation import (
    BACKENDS,
    ITEMSIZE,
    Evaluation,
    EvaluationWorkload,
    evaluation_work,
    model_sizes,
)
from benchmarks.goals import Results, judge, median_ms
from benchmarks.roofline import attention_work
from ropewalk.blocks.rotary import ReRoPE

ROUNDS = 3  # an evaluation at the longest length takes seconds


class Sizes(NamedTuple):
    """What is measured."""

    lengths: tuple[int, ...]
    windows: tuple[int, ...]
    documents: int
    scored: int


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; without cases on a GPU."""
    if device != "cpu":
        return Suite("evaluation", (), lambda results: [])
    sizes = (
        Sizes((96,), (16, 32), 2, 32) if quick else Sizes((2048, 4096, 8192), (128, 256), 2, 256)
    )
    cases = tuple(
        make_case(window, length, sizes)
        for length in sizes.lengths
        for window in sizes.windows
        for make_case in (_evaluation, _attention)
    )
    return Suite("evaluation", cases, partial(_goals, sizes))


def _evaluation(window: int, length: int, sizes: Sizes) -> Case:
    evaluation = Evaluation(
        ReRoPE(window), length, sizes.lengths[-1], sizes.documents, sizes.scored
    )
    return Case(
        name=f"rerope-{window}/evaluation/{length}",
        parameters=evaluation.parameters,
        work=evaluation_work(evaluation),
        peers=BACKENDS,
        make=lambda: EvaluationWorkload(evaluation),
        figure=f"perplexity, ReRoPE, window {window}",
        x="length",
        rounds=ROUNDS,
    )


def _attention(window: int, length: int, sizes: Sizes) -> Case:
    model, tokens = model_sizes(), length - 1  # the last token is scored and not read
    heads, kv_heads = model["num_attention_heads"], model["num_key_value_heads"]
    head_dim = model["head_dim"]
    shape = Shape(
        1, heads, kv_heads, tokens, tokens, head_dim, torch.float32, "cpu", ReRoPE(window)
    )
    return Case(
        name=f"rerope-{window}/attention/{length}",
        parameters=shape.parameters,
        work=attention_work(
            batch=1,
            heads=heads,
            kv_heads=kv_heads,
            queries=tokens,
            keys=tokens,
            head_dim=head_dim,
            itemsize=ITEMSIZE,
            backward=False,
        ),
        peers=BACKENDS,
        make=lambda: AttentionWorkload(shape),
        figure=f"its attention, ReRoPE, window {window}",
    )


def _goals(sizes: Sizes, results: Results) -> list[dict[str, Any]]:
    longest = sizes.lengths[-1]
    return [
        judge(
            f"evaluation at {longest}, window {window}: speed over the reference path, "
            "wanted as the attention's own",
            "at least",
            partial(_speed, results, f"rerope-{window}/attention/{longest}"),
            partial(_speed, results, f"rerope-{window}/evaluation/{longest}"),
        )
        for window in sizes.windows
    ]


def _speed(results: Results, case: str) -> float:
    """How many times as fast as the reference path."""
    return median_ms(results, case, "reference") / median_ms(results, case, "auto")
