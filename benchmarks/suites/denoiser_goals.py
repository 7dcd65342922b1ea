"""What the denoiser is to reach: on an H200 speed, bandwidth and memory; on a CPU memory and speed.

Ops are judged by their share of the copy bandwidth with the published batch, and with a small one,
where launches count for everybody, beside a copy of as many bytes. Memory is what autograd keeps
from a forward to its backward. The model FLOPs utilisation is that of the chip's published rate,
with products counted once (`benchmarks.roofline.denoiser_work`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.denoiser import ModelShape
from benchmarks.denoiser_ops import OpShape
from benchmarks.goals import (
    Results,
    fastest_ms,
    judge,
    median_ms,
    of_copy,
    saved_mib,
    tflop_s,
)

OF_COPY = 0.85
PUBLISHED_BATCH = 256
OVER_EAGER, OVER_COMPILED = 1.3, 1.05
LESS_MEMORY = 0.25
UTILISATION = 0.4
H200_TFLOP_S = 989.4
"""Dense bfloat16, as NVIDIA gives it."""

Models = Mapping[ModelShape, str]
Ops = Mapping[OpShape, str]
Goals = list[dict[str, Any]]


def cuda_goals(models: Models, ops: Ops, results: Results) -> Goals:
    """The goals on an H200.

    Args:
        models: names of the cases, by their shapes.
        ops: likewise.
        results: of the run.
    """
    case = _training(models)
    utilisation = _value(lambda: tflop_s(results, case, _faster(results, case)) / H200_TFLOP_S)
    return [
        _speed(results, case, "dit", OVER_EAGER),
        _speed(results, case, "dit-compiled", OVER_COMPILED),
        *_memory(results, case),
        judge(f"{case}: model FLOPs utilisation", "at least", UTILISATION, utilisation),
        *(_bandwidth(results, shape, name) for shape, name in ops.items()),
    ]


def cpu_goals(models: Models, ops: Ops, results: Results) -> Goals:
    """The goals on a CPU; see `cuda_goals`."""
    case = _training(models)
    return [_speed(results, case, "dit", 1.0), *_memory(results, case)]


def _training(models: Models) -> str:
    return next(name for shape, name in models.items() if shape.backward)


def _faster(results: Results, case: str) -> str:
    """Which of our forms takes less time."""
    fastest = fastest_ms(results, case, ("auto", "auto-compiled"))
    compiled = results[case]["peers"].get("auto-compiled", {})
    return "auto-compiled" if compiled.get("median_ms") == fastest else "auto"


def _speed(results: Results, case: str, peer: str, least: float) -> dict[str, Any]:
    def value() -> float:
        ours = fastest_ms(results, case, ("auto", "auto-compiled"))
        return median_ms(results, case, peer) / ours

    return judge(f"{case}: speed over {peer}", "at least", least, value)


def _memory(results: Results, case: str) -> Goals:
    """Of the eager form, which plans nothing: less than the eager and the compiled peer keep."""
    return [
        judge(
            f"{case}: activation memory saved beside {peer}",
            "at least",
            LESS_MEMORY,
            lambda peer=peer: 1 - saved_mib(results, case, "auto") / saved_mib(results, case, peer),
            unit="",
        )
        for peer in ("dit", "dit-compiled")
    ]


def _bandwidth(results: Results, shape: OpShape, case: str) -> dict[str, Any]:
    if shape.batch == PUBLISHED_BATCH:
        share = _value(of_copy, results, case, "triton")
        return judge(f"{case}: share of the copy bandwidth", "at least", OF_COPY, share, unit="")

    def beside_copy() -> float:
        return median_ms(results, case, "copy") / median_ms(results, case, "triton")

    return judge(f"{case}: speed of a copy of as many bytes", "at least", OF_COPY, beside_copy)


def _value(figure: Callable[..., float], *arguments: Any) -> Callable[[], float]:
    return lambda: figure(*arguments)
