"""The merge of contexts against sorting: by questions, dtype, and how sure the model is.

32 contexts over 128256 words, Llama-3's vocabulary, and over the bundled model's 264 bytes. On a
GPU the measure is the share of the copy bandwidth: the least work is to read the logits once.

Cases are named by what is drawn, questions × contexts × vocabulary, and dtype.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, Suite
from benchmarks.context_merge import MergeShape, MergeWorkload
from benchmarks.goals import Results, judge, median_ms, of_copy
from benchmarks.peers.context_merge import COPY
from benchmarks.roofline import context_merge_work

DTYPES = (torch.bfloat16, torch.float32)
QUESTIONS = 8
BYTES = 264
"""The bundled model's vocabulary."""
LEAST_SPEED = 3.0
LEAST_BANDWIDTH = 0.8


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; its goals are judged by cases of the full size only."""
    main = _main(device)
    sized = replace(main, contexts=3, vocabulary=500) if quick else main
    small = replace(sized, vocabulary=BYTES, dtype=torch.float32)
    shapes = [
        *(replace(sized, dtype=dtype) for dtype in DTYPES),
        *(replace(sized, dtype=dtype, distribution="initial") for dtype in DTYPES),
        *(replace(sized, questions=QUESTIONS, dtype=dtype) for dtype in DTYPES),
        small,
        replace(small, questions=QUESTIONS),
    ]
    goals: Callable[[Results], list[dict[str, Any]]] = (
        partial(_cuda_goals, main) if device == "cuda" else partial(_cpu_goals, main)
    )
    return Suite("context_merge", tuple(_case(shape, quick) for shape in shapes), goals)


def _main(device: str) -> MergeShape:
    return MergeShape(1, 32, 128256, torch.bfloat16, device)


def _case(shape: MergeShape, quick: bool) -> Case:
    peers = ["triton", "reference"] if shape.device == "cuda" else ["auto"]
    peers.append("sorted")
    if not quick:  # a compilation takes seconds
        peers.append("sorted-compiled")
    if shape.device == "cuda":
        peers.append(COPY)
    return Case(
        name=_name(shape),
        parameters=shape.parameters,
        work=context_merge_work(
            questions=shape.questions,
            contexts=shape.contexts,
            vocabulary=shape.vocabulary,
            itemsize=shape.dtype.itemsize,
        ),
        peers=tuple(peers),
        make=lambda: MergeWorkload(shape),
        figure=f"{shape.distribution}, {_dtype(shape)}, vocabulary {shape.vocabulary}",
        x="questions",
    )


def _dtype(shape: MergeShape) -> str:
    return str(shape.dtype).removeprefix("torch.")


def _name(shape: MergeShape) -> str:
    sizes = f"{shape.questions}x{shape.contexts}x{shape.vocabulary}"
    return f"{shape.distribution}/{sizes}/{_dtype(shape)}"


def _cpu_goals(main: MergeShape, results: Results) -> list[dict[str, Any]]:
    """Speed over the sorted form."""
    return [
        judge(
            f"{name}: speed over the sorted form",
            "at least",
            LEAST_SPEED,
            partial(_speed, results, name, "sorted"),
        )
        for dtype in DTYPES
        for name in [_name(replace(main, dtype=dtype))]
    ]


def _cuda_goals(main: MergeShape, results: Results) -> list[dict[str, Any]]:
    """The share of the bandwidth of a copy of gigabytes, and of a copy of just these logits."""
    goals = []
    for questions in (1, QUESTIONS):
        shape = replace(main, questions=questions)
        name = _name(shape)
        goals += [
            judge(
                f"{name}: share of the copy bandwidth",
                "at least",
                LEAST_BANDWIDTH,
                partial(of_copy, results, name, "triton"),
            ),
            judge(
                f"{name}: share of the bandwidth of a copy of these logits",
                "at least",
                LEAST_BANDWIDTH,
                # The copy moves each byte twice.
                lambda name=name: 0.5 * _speed(results, name, COPY, "triton"),
            ),
        ]
    return goals


def _speed(results: Results, case: str, peer: str, ours: str = "auto") -> float:
    """A peer's time over ours."""
    return median_ms(results, case, peer) / median_ms(results, case, ours)
