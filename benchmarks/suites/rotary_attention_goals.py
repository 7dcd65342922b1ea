"""What rotary attention is to reach, per length and window, on an H200 and on a CPU."""

from typing import Any

from benchmarks.goals import Results, additional_gb, fastest_ms, judge, median_ms

SDPA = ("sdpa-flash-alone", "sdpa-cudnn-alone")
TWO_MATRIX = ("two-matrix", "two-matrix-compiled")
LONG = (16384, 32768, 65536)


def cuda_goals(results: Results) -> list[dict[str, Any]]:
    """The goals on an H200, bfloat16, head_dim 128, 32 query heads on 8."""
    goals = [
        judge(
            f"plain forward at {length}: speed over torch's best attention without RoPE",
            "at least",
            0.75,
            lambda case=f"plain/forward/{length}": (
                fastest_ms(results, case, SDPA) / median_ms(results, case, "triton")
            ),
        )
        for length in LONG
    ]
    for window in (1024, 2048, 4096):
        for name, target in (("forward", 1.10), ("training", 1.15)):
            goals += [
                judge(
                    f"ReRoPE {name}, window {window}, at {length}: time over our plain",
                    "at most",
                    target,
                    lambda case=f"rerope-{window}/{name}/{length}": (
                        median_ms(results, case, "triton")
                        / median_ms(results, case, "triton:plain")
                    ),
                )
                for length in LONG
            ]
    for name in ("forward", "training"):
        goals += [
            judge(
                f"ReRoPE {name}, window 2048, at {length}: speed over the two-matrix form",
                "at least",
                1.9,
                lambda case=f"rerope-2048/{name}/{length}": (
                    fastest_ms(results, case, TWO_MATRIX) / median_ms(results, case, "triton")
                ),
            )
            for length in LONG
        ]
    goals += [
        judge(
            f"decoding, {rule}, batch {batch}, 131072 keys: share of copy bandwidth",
            "at least",
            0.85,
            lambda case=f"{rule}/decode/batch-{batch}/131072": _of_copy(results, case),
            unit="",
        )
        for rule in ("plain", "rerope-2048")
        for batch in (1, 8)
    ]
    return goals


def _of_copy(results: Results, case: str) -> float:
    """Share of the copy bandwidth that decoding reaches."""
    median_ms(results, case, "triton")  # says why, if it was not measured
    return float(results[case]["peers"]["triton"]["of_copy"])


def cpu_goals(results: Results) -> list[dict[str, Any]]:
    """The goals on a CPU, float32, head_dim 64, 8 heads."""
    case, memory = "rerope-512/forward/8192", "rerope-512/memory/16384"
    return [
        judge(
            "ReRoPE forward at 8192, window 512: time over torch's attention with RoPE",
            "at most",
            1.35,
            lambda: median_ms(results, case, "auto") / median_ms(results, case, "sdpa:plain"),
        ),
        judge(
            "ReRoPE forward at 8192, window 512: speed over the reference backend",
            "at least",
            1.0,
            lambda: median_ms(results, case, "reference") / median_ms(results, case, "auto"),
        ),
        judge(
            "ReRoPE forward at 16384: additional memory in GB",
            "at most",
            1.5,
            lambda: additional_gb(results, memory, "auto"),
            unit="GB",
        ),
    ]
