"""The vocabulary loss without logits: time and peak memory, by tokens and by vocabulary.

On a GPU bfloat16, at the heads of three models: Gemma-2 2B (2304 × 256000), Llama-3 8B
(4096 × 128256) and GPT-2 (768 × 50304); no peer caps its logits. On a CPU float32, dim 256.

Cases are named by what is drawn (`token_distributions`), the pass, and tokens × dim × vocabulary.
On a GPU every timed peer tells its peak memory too; on a CPU the cases named memory do.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch

from benchmarks.case import Case, Kind, Suite
from benchmarks.goals import Results
from benchmarks.linear_cross_entropy import LossShape, LossWorkload
from benchmarks.peers.loss_libraries import BUILDERS
from benchmarks.roofline import linear_cross_entropy_work
from benchmarks.suites.linear_cross_entropy_goals import cpu_goals, cuda_goals
from benchmarks.token_distributions import Distribution

Goals = Callable[[Results], list[dict[str, Any]]]

DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
HALF = 0.5

HEADS = ((8192, 2304, 256000), (8192, 4096, 128256), (4096, 768, 50304))
"""Tokens × dim × vocabulary on a GPU; the tokens of the first are varied too."""
CUDA_TOKENS = (2048, 32768)
QUICK_HEADS = ((96, 32, 500), (128, 64, 256), (32, 32, 100))

CPU_MAIN = (4096, 256, 32768)
CPU_TOKENS = (256, 1024)
CPU_VOCABULARIES = (8192, 50304, 131072)
CPU_SWEPT_TOKENS = 1024

CPU_PEERS = ("auto", "materialised", "torch-fused", "torch-fused-512")
CUDA_PEERS = (
    "triton",
    "triton-skipping",
    "reference",
    "materialised",
    "materialised-compiled",
    "torch-fused",
    "torch-fused-512",
    *BUILDERS,
)
BACKWARD_ONLY = ("triton-skipping", "cce-exact", "cce-kahan", "liger-float32")
"""Forward they are what they are without the suffix."""


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; its goals are judged by cases of the full size only."""
    cases = (_cuda_cases if device == "cuda" else _cpu_cases)(quick)
    return Suite("linear_cross_entropy", tuple(cases), _goals(device))


def _goals(device: str) -> Goals:
    if device == "cpu":
        main = LossShape(*CPU_MAIN, torch.float32, device)
        return partial(cpu_goals, _name(main, "time"), _name(main, "memory"), main.gradient_mib)
    gemma = LossShape(*HEADS[0], torch.bfloat16, device)
    timed = {kind: _name(replace(gemma, distribution=kind), "time") for kind in DISTRIBUTIONS}
    return partial(cuda_goals, timed, gemma.gradient_mib)


def _cpu_cases(quick: bool) -> list[Case]:
    tokens, dim, vocabulary = (96, 32, 500) if quick else CPU_MAIN
    main = LossShape(tokens, dim, vocabulary, torch.float32, "cpu")
    swept = replace(main, tokens=32 if quick else CPU_SWEPT_TOKENS)
    cases = [_case(main, "by tokens"), _case(replace(main, backward=False))]
    for fewer in (16, 32) if quick else CPU_TOKENS:
        cases.append(_case(replace(main, tokens=fewer), "by tokens"))
    for size in (200, 900) if quick else CPU_VOCABULARIES:
        cases.append(_case(replace(swept, vocabulary=size), "by vocabulary", x="vocabulary"))
    cases.append(_case(replace(main, distribution="trained")))
    cases.append(_case(replace(main, ignored=HALF)))
    cases += [_case(replace(main, backward=kept), kind="memory") for kept in (True, False)]
    return cases


def _cuda_cases(quick: bool) -> list[Case]:
    gemma, llama, gpt2 = (
        LossShape(*sizes, torch.bfloat16, "cuda") for sizes in (QUICK_HEADS if quick else HEADS)
    )
    figure, cases = "by tokens, Gemma-2 2B", []
    for head in (gemma, llama, gpt2):
        for distribution in DISTRIBUTIONS:
            shape = replace(head, distribution=distribution)
            swept = head is gemma and distribution == "initial"
            cases.append(_case(shape, figure if swept else ""))
        cases.append(_case(replace(head, backward=False)))
    cases.append(_case(replace(gemma, distribution="trained", ignored=HALF)))
    for tokens in (32, 64) if quick else CUDA_TOKENS:
        cases.append(_case(replace(gemma, tokens=tokens), figure))
    return cases


def _case(shape: LossShape, figure: str = "", *, x: str = "tokens", kind: Kind = "time") -> Case:
    work = linear_cross_entropy_work(
        tokens=shape.tokens,
        valid=shape.valid,
        dim=shape.dim,
        vocabulary=shape.vocabulary,
        itemsize=shape.itemsize,
        backward=shape.backward,
    )
    return Case(
        name=_name(shape, kind),
        parameters=shape.parameters,
        work=work,
        peers=_peers(shape),
        make=lambda: LossWorkload(shape),
        figure=f"forward and backward, {figure}" if figure else "",
        x=x,
        kind=kind,
    )


def _peers(shape: LossShape) -> tuple[str, ...]:
    if shape.device == "cpu":
        # Its smallest chunks take seconds a call: it is measured where the goals are.
        slow = shape.vocabulary > CPU_MAIN[2] or shape.ignored or shape.distribution == "trained"
        return tuple(peer for peer in CPU_PEERS if not (slow and peer == "torch-fused"))
    return CUDA_PEERS if shape.backward else tuple(p for p in CUDA_PEERS if p not in BACKWARD_ONLY)


def _name(shape: LossShape, kind: Kind) -> str:
    parts = [
        f"{shape.distribution}-half-ignored" if shape.ignored else shape.distribution,
        "training" if shape.backward else "forward",
        f"{shape.tokens}x{shape.dim}x{shape.vocabulary}",
    ]
    return "/".join(["memory", *parts] if kind == "memory" else parts)
