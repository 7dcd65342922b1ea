"""What the denoiser is to reach: on an H200 speed, bandwidth and memory; on a CPU memory and speed.

The library's model is judged as it runs by itself and as one compiled graph, each alone: what is
fast in one form and small in another would be neither. Memory is what autograd keeps from a forward
to its backward. The model FLOPs utilisation is that of the chip's published rate, with products
counted once (`benchmarks.roofline.denoiser_work`).

Ops are judged by their share of the copy bandwidth with the published batch, and with a small one,
where launches count for everybody, beside a copy of as many bytes.
"""

from collections.abc import Mapping
from typing import Any

from benchmarks.denoiser import ModelShape
from benchmarks.denoiser_ops import OpShape
from benchmarks.goals import Results, judge, median_ms, of_copy, saved_mib, tflop_s

FORMS = ("auto", "auto-compiled")
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
    goals: Goals = []
    for ours in FORMS:
        goals += [
            _speed(results, case, ours, "dit", OVER_EAGER),
            _speed(results, case, ours, "dit-compiled", OVER_COMPILED),
            _memory(results, case, ours, "dit-compiled"),
            _utilisation(results, case, ours),
        ]
    return [*goals, *(_bandwidth(results, shape, name) for shape, name in ops.items())]


def cpu_goals(models: Models, ops: Ops, results: Results) -> Goals:
    """The goals on a CPU; see `cuda_goals`."""
    case = _training(models)
    return [
        _speed(results, case, "auto", "dit", 1.0),
        _memory(results, case, "auto", "dit"),
        *(_memory(results, case, ours, "dit-compiled") for ours in FORMS),
    ]


def _training(models: Models) -> str:
    return next(name for shape, name in models.items() if shape.backward)


def _speed(results: Results, case: str, ours: str, peer: str, least: float) -> dict[str, Any]:
    return judge(
        f"{case}: speed of {ours} over {peer}",
        "at least",
        least,
        lambda: median_ms(results, case, peer) / median_ms(results, case, ours),
    )


def _memory(results: Results, case: str, ours: str, peer: str) -> dict[str, Any]:
    return judge(
        f"{case}: activation memory that {ours} saves beside {peer}",
        "at least",
        LESS_MEMORY,
        lambda: 1 - saved_mib(results, case, ours) / saved_mib(results, case, peer),
        unit="",
    )


def _utilisation(results: Results, case: str, ours: str) -> dict[str, Any]:
    return judge(
        f"{case}: model FLOPs utilisation of {ours}",
        "at least",
        UTILISATION,
        lambda: tflop_s(results, case, ours) / H200_TFLOP_S,
        unit="",
    )


def _bandwidth(results: Results, shape: OpShape, case: str) -> dict[str, Any]:
    def share() -> float:
        return of_copy(results, case, "triton")

    def beside_copy() -> float:
        return median_ms(results, case, "copy") / median_ms(results, case, "triton")

    if shape.batch == PUBLISHED_BATCH:
        return judge(f"{case}: share of the copy bandwidth", "at least", OF_COPY, share, unit="")
    return judge(f"{case}: speed over a copy of as many bytes", "at least", OF_COPY, beside_copy)
