"""What the vocabulary loss is to reach: on a CPU at 4096 × 256 × 32768, on an H200 at Gemma-2 2B.

Like is compared with like: the form that skips nothing with ml-cross-entropy's exact one and with
Liger, the form that skips what rounds away with ml-cross-entropy's default, which does so too.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.goals import Results, additional_mib, judge, median_ms, peak_mib

MOST_WORKSPACE_MIB = 64
RIVALS = (
    ("triton", "cce-exact", "ml-cross-entropy, exact"),
    ("triton", "liger", "Liger"),
    ("triton-skipping", "cce", "ml-cross-entropy, skipping"),
)


def cpu_goals(
    training: str, memory: str, gradient_mib: float, results: Results
) -> list[dict[str, Any]]:
    """The goals on a CPU, float32, forward and backward.

    Args:
        training: the case that is timed.
        memory: the case whose memory is measured.
        gradient_mib: what its gradients take.
        results: of the run.
    """
    return [
        judge(
            "forward and backward: speed over materialised logits",
            "at least",
            1.0,
            lambda: (
                median_ms(results, training, "materialised") / median_ms(results, training, "auto")
            ),
        ),
        judge(
            "forward and backward: additional memory over that of materialised logits",
            "at most",
            0.2,
            lambda: (
                additional_mib(results, memory, "auto")
                / additional_mib(results, memory, "materialised")
            ),
        ),
        judge(
            "forward and backward: additional memory beside the gradients",
            "at most",
            MOST_WORKSPACE_MIB,
            lambda: additional_mib(results, memory, "auto") - gradient_mib,
            unit=" MiB",
        ),
    ]


def cuda_goals(
    training: Mapping[str, str], gradient_mib: float, results: Results
) -> list[dict[str, Any]]:
    """The goals on an H200, bfloat16, forward and backward.

    Args:
        training: the timed case by what is drawn in it.
        gradient_mib: what its gradients take.
        results: of the run.
    """
    goals = [
        judge(
            f"{kind}, forward and backward: speed over {title}",
            "at least",
            1.0,
            lambda case=case, ours=ours, theirs=theirs: (
                median_ms(results, case, theirs) / median_ms(results, case, ours)
            ),
        )
        for kind, case in training.items()
        for ours, theirs, title in RIVALS
    ]
    goals += [
        judge(
            f"{kind}, forward and backward, {ours}: peak memory over that of the gradients",
            "at most",
            1.1,
            lambda case=case, ours=ours: peak_mib(results, case, ours) / gradient_mib,
        )
        for kind, case in training.items()
        for ours in ("triton", "triton-skipping")
    ]
    return goals
