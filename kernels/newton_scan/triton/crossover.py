"""Which algorithm "auto" takes: a model of both times, from the sizes alone.

Nobody has measured this; the constants are estimates from instruction counts and latencies of
large chips, in one table, for a measurement to replace. In clock cycles, of T steps of chains that
fill p programs of C channels on P processors, each of which issues four instructions at a time,

    in turn   T · max(latency, n · step / 4)                  n = p / P warps on a processor
    windows   ⌈T / W⌉ · evaluations · (round + q · W C / 32 · linearised / 4)    q = p' / P ≥ 1

Steps in turn wait for their arithmetic until warps are many enough to hide it. Windows do the work
of an evaluation several times over, so they win where chains are few and time is long; where chains
are so many that steps in turn fill the chip, nothing is won by parallel time.
"""

from typing import NamedTuple

import torch

from ropewalk.kernels.chips import processors
from ropewalk.kernels.newton_scan.triton.configurations import Configuration, in_turn
from ropewalk.kernels.sizes import ceil_divide

ISSUED = 4
"""Instructions that a processor issues in a cycle."""
LANES = 32


class Costs(NamedTuple):
    """Of a cell.

    Attributes:
        latency: cycles of a step that waits for the one before.
        step: instructions of it.
        linearised: instructions of a step and its Jacobian in a window, with its part of the scan.
    """

    latency: float
    step: float
    linearised: float


COSTS = {
    "tanh": Costs(latency=120, step=30, linearised=45),
    "gru": Costs(latency=240, step=65, linearised=100),
    "lstm": Costs(latency=330, step=80, linearised=170),
}
EVALUATIONS = 6
"""Iterations that a window usually takes, and one more for windows that take more."""
ROUND = 700
"""Cycles of an iteration's scans and its decision, whatever the window."""


def cycles_in_turn(cell: str, how: Configuration, chains: int, time: int, chips: int) -> float:
    """Of steps that are taken one after another."""
    cost, warps = COSTS[cell], ceil_divide(chains, how.channels) / chips
    return time * max(cost.latency, max(1.0, warps) * cost.step / ISSUED)


def cycles_in_windows(cell: str, how: Configuration, chains: int, time: int, chips: int) -> float:
    """Of windows."""
    busy = max(1.0, ceil_divide(chains, how.channels) / chips)
    work = busy * how.tile * how.channels / LANES * COSTS[cell].linearised / ISSUED
    return ceil_divide(time, how.tile) * EVALUATIONS * (ROUND + work)


def choose(cell: str, windows: Configuration, chains: int, time: int, device: torch.device) -> str:
    """The algorithm that the model finds faster.

    Args:
        cell: its name.
        windows: the configuration of windows.
        chains: sequences times channels.
        time: steps of the longest sequence.
        device: where it runs.
    """
    chips = processors(device)
    turn = in_turn(cell, chains)
    in_one = cycles_in_turn(cell, turn, chains, time, chips)
    return (
        "newton" if cycles_in_windows(cell, windows, chains, time, chips) < in_one else "sequential"
    )
