"""Sizes of the programs: a table, not a search at run time.

Chosen by reasoning and not by the clock. A thread has so many rows of a window that their inputs,
states, residuals and Jacobians fit its registers. Where chains are many, 32 channels, a line of
float32, and windows of 32 steps and less are enough to fill the chip, and short windows take few
iterations. Where they are few, a program has eight channels, a sector, or four, and eight warps, so
that windows are 8 or 16 times as long: a window's iterations wait for each other, and longer
windows are fewer. Steps in turn have a thread for each chain.
"""

from typing import NamedTuple

import torch

from ropewalk.kernels.chips import most_registers, processors
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.sizes import ceil_divide, power_of_two

LANES = 32
ROWS = {"tanh": 8, "gru": 8, "lstm": 4}
"""Of a thread, by cell."""
WIDE, NARROW = (32, 4), (8, 8)
"""Channels and warps of a program, where chains are many and where they are few."""
MOST_WARPS = 8
LEAST_CHANNELS = 4
"""Of a program: half a sector."""


class Configuration(NamedTuple):
    """How a recurrence runs.

    Attributes:
        channels: of a program.
        groups: of neighbouring steps that are walked side by side; 1 takes steps in turn.
        rows: steps of a group.
        warps: of a program.
    """

    channels: int
    groups: int
    rows: int
    warps: int

    @property
    def tile(self) -> int:
        """Steps that a program has in registers."""
        return self.groups * self.rows

    def constants(self) -> dict[str, int]:
        """Compile-time arguments and options of a launch."""
        return {
            "CHANNELS": self.channels,
            "GROUPS": self.groups,
            "ROWS": self.rows,
            "num_warps": self.warps,
            "maxnreg": most_registers(self.warps),
        }


INTERPRETED = Configuration(2, 2, 2, 1)
"""Of Triton's interpreter: small, so that small inputs meet every kind of window."""


def in_windows(
    cell: str, sequences: int, time: int, channels: int, device: torch.device, window: int | None
) -> Configuration:
    """Of windows, whose length `Configuration.tile` is unless a shorter one is asked for.

    Args:
        cell: its name.
        sequences: how many there are.
        time: steps of the longest.
        channels: of each step.
        device: where they are.
        window: steps that are to be solved at once; longer ones are cut to what fits.
    """
    rows = ROWS[cell]
    if interpreted():
        wanted = INTERPRETED.tile if window is None else window
        return INTERPRETED._replace(groups=_groups(wanted, INTERPRETED.rows, 8))
    chips, (block, warps) = processors(device), WIDE
    if sequences * ceil_divide(channels, block) < chips:
        block, warps = NARROW
    while block > LEAST_CHANNELS and 2 * sequences * ceil_divide(channels, block) <= chips:
        block //= 2
    block = min(block, power_of_two(channels))
    most = warps * LANES // block
    if window is not None:
        block = min(block, max(LEAST_CHANNELS, MOST_WARPS * LANES * rows // power_of_two(window)))
        most = MOST_WARPS * LANES // block
        groups = _groups(min(window, time), rows, most)
    else:
        groups = _groups(time, rows, most)
    return Configuration(block, groups, rows, max(1, groups * block // LANES))


def _groups(steps: int, rows: int, most: int) -> int:
    """As many as hold the steps, if they fit."""
    return min(most, power_of_two(ceil_divide(max(1, steps), rows)))


def in_turn(cell: str, channels: int) -> Configuration:
    """Of steps that are taken one after another."""
    if interpreted():
        return INTERPRETED._replace(groups=1)
    return Configuration(min(LANES, power_of_two(channels)), 1, ROWS[cell], 1)
