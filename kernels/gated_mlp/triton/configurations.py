"""Sizes of a program, by the width and the work there is: a static table, no autotuning.

The work is a few reads and writes of neighbours, so what counts is that enough bytes are under way:
a thread holds 32 elements of each half in the forward and 16 of each tensor in the backward, in
runs of 16 bytes, and at least four programs of 128 threads fit on a multiprocessor.
"""

from dataclasses import dataclass

from ropewalk.kernels.chips import most_registers
from ropewalk.kernels.sizes import ceil_divide, power_of_two

ELEMENTS = {"forward": 4096, "backward": 2048}
"""Elements of a tile."""
LEAST_ELEMENTS = 512
"""Of a tile where there is little to do."""
PROGRAMS = 1024
"""Programs that fill a large GPU; tiles shrink until there are so many."""
COLUMNS = 1024
"""Of a tile at most; rows of a run of tiles are then read in order."""
LEAST_COLUMNS = 128
WASTE = 16
"""A tile's columns are halved until no more than one in so many would lie beyond the row."""
WARPS = 4


@dataclass(frozen=True)
class Configuration:
    """Constants of a kernel; both are powers of two."""

    rows: int
    columns: int

    def programs(self, rows: int, hidden: int) -> int:
        """Tiles that cover so many rows of so many features."""
        return ceil_divide(rows, self.rows) * ceil_divide(hidden, self.columns)

    def launch(self) -> dict[str, int]:
        """Options of a launch."""
        return {"num_warps": WARPS, "maxnreg": most_registers(4 * WARPS)}


def configuration(rows: int, hidden: int, kernel: str) -> Configuration:
    """Sizes for `rows` rows of `hidden` features; `kernel` is "forward" or "backward"."""
    columns = min(COLUMNS, power_of_two(hidden))
    while columns > LEAST_COLUMNS and -hidden % columns * WASTE > hidden:
        columns //= 2
    elements = ELEMENTS[kernel]
    while elements > LEAST_ELEMENTS and rows * hidden < elements * PROGRAMS:
        elements //= 2
    return Configuration(min(max(1, elements // columns), power_of_two(rows)), columns)
