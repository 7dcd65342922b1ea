"""What the Monarch product is to reach: on a CPU at 4096 features, on an H200 by features.

Forward and training are judged apart. "Everywhere" is the worst of all cases of the suite.
"""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.goals import Results, judge, median_ms
from benchmarks.monarch import ProductShape

CPU_SPEED = 9.0
"""Over dense: 64 blocks of 64 features, one thread."""
CUDA_SPEEDS = {1024: 1.0, 2048: 2.0, 4096: 4.0}
"""Over dense by features, with 16 blocks; 1 is the break-even."""
CUDA_BLOCKS = 16
OVER_TWO_PRODUCTS = {"cpu": 1.0, "cuda": 1.5}

Names = Mapping[ProductShape, str]


def cpu_goals(names: Names, results: Results) -> list[dict[str, Any]]:
    """The goals on a CPU.

    Args:
        names: of the cases, by their shapes.
        results: of the run.
    """
    goals = [
        _over_dense(results, names[shape], CPU_SPEED)
        for shape in names
        if (shape.features, shape.blocks, shape.dtype) == (4096, 64, torch.float32)
    ]
    return [*goals, *_over_two_products(names, results, "cpu")]


def cuda_goals(names: Names, results: Results) -> list[dict[str, Any]]:
    """The goals on an H200."""
    goals = [
        _over_dense(results, names[shape], CUDA_SPEEDS[shape.features])
        for shape in names
        if shape.blocks == CUDA_BLOCKS and shape.features in CUDA_SPEEDS
    ]
    return [*goals, *_over_two_products(names, results, "cuda")]


def _over_dense(results: Results, case: str, least: float) -> dict[str, Any]:
    return judge(
        f"{case}: speed over the dense product",
        "at least",
        least,
        lambda: _speed(results, case, "dense"),
    )


def _over_two_products(names: Names, results: Results, device: str) -> list[dict[str, Any]]:
    """The least over all cases of a pass."""
    return [
        judge(
            f"{title}: speed over two-bmm everywhere",
            "at least",
            OVER_TWO_PRODUCTS[device],
            lambda backward=backward: min(
                _speed(results, case, "two-bmm")
                for shape, case in names.items()
                if shape.backward == backward
            ),
        )
        for title, backward in (("forward", False), ("training", True))
    ]


def _speed(results: Results, case: str, peer: str) -> float:
    """A peer's time over ours."""
    return median_ms(results, case, peer) / median_ms(results, case, "auto")
