"""Sizes of the programs, and whether time is split among them: a table, not a search at run time.

Chosen by reasoning and not by the clock. A scan is worth what it keeps under way: on an H200 about
4 MB, 30 KiB of each multiprocessor, all the time. A thread that walks 16 rows of a and b has
128 bytes under way, 32 channels of float32 are a whole line of memory, and four warps that walk 64
steps of them load 16 KiB at once. With a batch of 8 × 2048 channels there are 512 such programs,
four on each multiprocessor, all of them at once if a thread has no more than 128 registers: 64 KiB
while they wait, and while one walks the others wait. Half precision takes two channels a thread, so
that a row is a whole line again, and half as many programs of as many warps: half the bytes leave
half the time for instructions, and where groups meet each more of them costs some for every
channel. For the same reason threads have one channel of blocks, whatever their precision.

With fewer programs each takes more warps, more steps at once. If that still leaves processors idle
and a program would take many tiles, time is split into chunks (`chunks_of`): a first pass finds
what each chunk does to a state, a scan over the chunks the states between them, and a last pass
computes as if chunks were sequences. That reads a and b twice, so it must win more than that. The
two other passes are short.

Warps are few enough that a thread has registers for its rows.
"""

from typing import NamedTuple

import torch

from ropewalk.kernels.chips import most_registers, processors
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.sizes import ceil_divide, power_of_two

LANES = 32


class Thread(NamedTuple):
    """What a thread has.

    Attributes:
        channels: neighbours of a row, loaded at once.
        rows: of a tile, forward and backward.
        resident: warps that a processor must hold at once, which bounds a thread's registers.
        enough: warps that a processor must have for enough loads to be under way.
    """

    channels: int
    rows: tuple[int, int]
    resident: int
    enough: int


THREADS = {
    ("real", 4): Thread(1, (16, 8), 16, 12),
    ("real", 2): Thread(2, (16, 8), 12, 7),
    ("complex", 8): Thread(1, (8, 4), 16, 12),
    ("block2", 4): Thread(1, (8, 4), 8, 12),
    ("block2", 2): Thread(1, (8, 4), 8, 12),
}
"""By structure and bytes of a number."""
WARPS = (4, 8)
"""Of a program: the fewest that give a processor enough, else the most."""
MANY_TILES = 24
"""Of a program that leaves processors idle, beyond which time is split: 20 µs or more."""
LEAST_TILES = 4
"""Of a chunk."""
WAVES = 2
"""Programs for each processor that a split makes."""


class Configuration(NamedTuple):
    """How a scan runs.

    Attributes:
        channels: of a program.
        groups: of neighbouring steps that are walked side by side.
        rows: steps of a group.
        warps: of a program.
        registers: of a thread, at most.
    """

    channels: int
    groups: int
    rows: int
    warps: int
    registers: int

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
            "maxnreg": self.registers,
        }


INTERPRETED = Configuration(2, 2, 2, 1, 255)
"""Of Triton's interpreter: small, so that small inputs meet every kind of tile."""
INTERPRETED_CHUNK = 8
"""Steps of a chunk there."""


def configuration(
    structure: str,
    dtype: torch.dtype,
    sequences: int,
    time: int,
    channels: int,
    device: torch.device,
    *,
    backward: bool = False,
) -> Configuration:
    """The shipped configuration of a problem.

    Args:
        structure: "real", "complex" or "block2".
        dtype: of the tensors.
        sequences: how many there are.
        time: steps of the longest.
        channels: of each step.
        device: where they are.
        backward: whether three tensors are read instead of two.
    """
    if interpreted():
        return INTERPRETED
    thread = THREADS[structure, dtype.itemsize]
    block = min(LANES * thread.channels, power_of_two(channels))
    programs = sequences * ceil_divide(channels, block)
    wanted = thread.enough * processors(device)
    warps = next((some for some in WARPS if programs * some >= wanted), WARPS[-1])
    groups = warps * LANES * thread.channels // block
    registers = most_registers(thread.resident)
    how = Configuration(block, groups, thread.rows[backward], warps, registers)
    while how.warps > 1 and how.tile >= 2 * time:
        how = how._replace(warps=how.warps // 2, groups=max(1, how.groups // 2))
    return how


def chunks_of(
    how: Configuration, sequences: int, time: int, channels: int, device: torch.device
) -> tuple[int, int]:
    """(chunks that time is split into, steps of each); one chunk is no split."""
    if interpreted():
        return max(1, ceil_divide(time, INTERPRETED_CHUNK)), INTERPRETED_CHUNK
    programs = sequences * ceil_divide(channels, how.channels)
    tiles = ceil_divide(time, how.tile)
    wanted = WAVES * processors(device) // max(1, programs)
    if tiles <= MANY_TILES or wanted <= WAVES:
        return 1, max(1, time)
    steps = ceil_divide(tiles, min(wanted, tiles // LEAST_TILES)) * how.tile
    return ceil_divide(time, steps), steps
