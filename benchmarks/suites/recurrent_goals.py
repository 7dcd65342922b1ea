"""What recurrences are to reach: on a CPU beside torch's GRU, on an H200 beside memory and cuDNN.

Forward and training are judged apart. "Everywhere" is the worst of the cases that are named.
"""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.goals import Results, judge, median_ms, of_copy
from benchmarks.recurrent import RecurrentShape

OF_COPY = 0.85
"""Of the copy bandwidth, for the linear recurrence of 8 × 2048 × 2048."""
OVER_FLOOR = 2.0
"""The most that the fused GRU may take, over the bytes that it must move."""
OVER_COMPILED_LOOP = 300.0
OVER_TORCH = 1.0

Names = Mapping[RecurrentShape, str]
PASSES = {"forward": False, "training": True}


def cpu_goals(names: Names, results: Results) -> list[dict[str, Any]]:
    """The goals on a CPU: what is taken by itself, and what is left without numba.

    Args:
        names: of the cases, by their shapes.
        results: of the run.
    """
    return [
        _over_torch_gru(names, results, peer, title)
        for peer in ("auto", "reference")
        for title in PASSES
    ]


def cuda_goals(names: Names, results: Results) -> list[dict[str, Any]]:
    """The goals on an H200."""
    goals = []
    for shape, case in names.items():
        large = (shape.batch, shape.time, shape.channels) == (8, 2048, 2048)
        if large and shape.kind == "linear" and not shape.backward:
            name = f"{case}: share of the copy bandwidth"
            goals.append(judge(name, "at least", OF_COPY, _value(of_copy, results, case, "auto")))
        if large and shape.kind == "gru" and not shape.backward:
            name = f"{case}: time over the bytes' floor"
            share = _value(of_copy, results, case, "auto")
            goals.append(judge(name, "at most", OVER_FLOOR, lambda share=share: 1 / share()))
        if shape.time == 16384 and shape.kind == "gru" and not (shape.projected or shape.backward):
            goals.append(
                judge(
                    f"{case}: speed over the compiled loop",
                    "at least",
                    OVER_COMPILED_LOOP,
                    lambda case=case: _speed(results, case, "auto", "loop-compiled"),
                )
            )
    return [*goals, *(_over_torch_gru(names, results, "auto", title) for title in PASSES)]


def _value(figure: Callable[..., float], *arguments: Any) -> Callable[[], float]:
    return lambda: figure(*arguments)


def _over_torch_gru(names: Names, results: Results, peer: str, title: str) -> dict[str, Any]:
    """The least over all layers of a pass."""
    return judge(
        f"{title}: speed of {peer} over nn.GRU everywhere",
        "at least",
        OVER_TORCH,
        lambda: min(
            _speed(results, case, peer, "nn.GRU")
            for shape, case in names.items()
            if shape.projected and shape.backward == PASSES[title]
        ),
    )


def _speed(results: Results, case: str, peer: str, other: str) -> float:
    """Another peer's time over one's."""
    return median_ms(results, case, other) / median_ms(results, case, peer)
