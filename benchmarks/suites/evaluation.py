"""Perplexity of the bundled model under ReRoPE: the fastest path, the reference path, and before.

Cases come in pairs: `…/evaluation/8192` is the whole evaluation, `…/attention/8192` the op alone
with the model's heads and as many tokens as it reads, in the same run. The goals name the op's own
ratio as their target, and ask of the evaluation

    over the commit before the kernels    to gain as much as the op did, or more, since all around
                                          the op may have become faster too; in time, and in
                                          processor time, which other programs disturb less
    over today's reference path           how close it comes: all around the op is the same for
                                          both, and bounds it

On a CPU only: the tolerance is that of float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.attention import Shape
from benchmarks.case import Case, Suite
from benchmarks.earlier import BEFORE, DEFAULT
from benchmarks.earlier.attention import AttentionBesideEarlier
from benchmarks.evaluation import (
    BACKENDS,
    ITEMSIZE,
    Evaluation,
    EvaluationWorkload,
    evaluation_work,
    model_sizes,
)
from benchmarks.goals import Results, host_ms, judge, median_ms
from benchmarks.roofline import attention_work
from ropewalk.blocks.rotary import ReRoPE

# An evaluation at the longest length takes seconds; attention is a target, and short, so noisier.
ROUNDS = 5
ATTENTION_ROUNDS = 15
PEERS = (*BACKENDS, BEFORE)


class Sizes(NamedTuple):
    """What is measured."""

    lengths: tuple[int, ...]
    windows: tuple[int, ...]
    documents: int
    scored: int


def make(device: str, quick: bool, before: str = DEFAULT) -> Suite:
    """The suite for a device; without cases on a GPU.

    Args:
        device: "cpu" or "cuda".
        quick: a length that shows nothing but that everything runs.
        before: the commit that is the peer of that name.
    """
    if device != "cpu":
        return Suite("evaluation", (), lambda results: [])
    sizes = (
        Sizes((96,), (16, 32), 2, 32) if quick else Sizes((2048, 4096, 8192), (128, 256), 2, 256)
    )
    cases = tuple(
        make_case(window, length, sizes, before)
        for length in sizes.lengths
        for window in sizes.windows
        for make_case in (_evaluation, _attention)
    )
    return Suite("evaluation", cases, partial(_goals, sizes, before))


def _evaluation(window: int, length: int, sizes: Sizes, before: str) -> Case:
    evaluation = Evaluation(
        ReRoPE(window), length, sizes.lengths[-1], sizes.documents, sizes.scored
    )
    return Case(
        name=f"rerope-{window}/evaluation/{length}",
        parameters=evaluation.parameters,
        work=evaluation_work(evaluation),
        peers=PEERS,
        make=lambda: EvaluationWorkload(evaluation, before),
        figure=f"perplexity, ReRoPE, window {window}",
        x="length",
        rounds=ROUNDS,
    )


def _attention(window: int, length: int, sizes: Sizes, before: str) -> Case:
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
        peers=PEERS,
        make=lambda: AttentionBesideEarlier(shape, before),
        figure=f"its attention, ReRoPE, window {window}",
        rounds=ATTENTION_ROUNDS,
    )


def _goals(sizes: Sizes, before: str, results: Results) -> list[dict[str, Any]]:
    longest, commit = sizes.lengths[-1], f"commit {before[:7]}"
    return [
        judge(
            f"evaluation at {longest}, window {window}: {what}, wanted as the attention's own",
            "at least",
            partial(_speed, results, f"rerope-{window}/attention/{longest}", peer, figure),
            partial(_speed, results, f"rerope-{window}/evaluation/{longest}", peer, figure),
        )
        for window in sizes.windows
        for what, peer, figure in (
            (f"speed over {commit}", BEFORE, median_ms),
            (f"processor time of {commit} over today's", BEFORE, host_ms),
            ("speed over the reference path", "reference", median_ms),
        )
    ]


def _speed(results: Results, case: str, peer: str, figure: Callable[..., float]) -> float:
    """A peer's figure over that of the fastest path."""
    return figure(results, case, peer) / figure(results, case, "auto")
