"""Tile sizes, warps and pipeline stages of every kernel: a table, not a search at run time.

Tiles were chosen by reasoning and not by the clock: a tile of 128 × 256 logits reads the fewest
bytes for each product that still fits the registers, and is a tile of the filter; few tokens take
fewer rows. tests/kernels/linear_cross_entropy/test_triton_compile.py compiles the kernels ahead of
time and finds each within its chip's shared memory and without a spilled register, with Triton 3.7
as with 3.6. Chips:

    sm_90   Hopper and later data-centre chips, 227 KiB of shared memory a block
    sm_80   A100, 163 KiB
    small   everything else (sm_86, sm_89, sm_120), 99 KiB
"""

from typing import Literal, NamedTuple

import torch

from ropewalk.kernels.chips import Chip, chip, most_registers
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.sizes import power_of_two

Kernel = Literal["statistics", "gradient", "product"]


class Configuration(NamedTuple):
    """How one kernel runs.

    Attributes:
        rows: tokens in a tile, of a product rows of its result.
        columns: columns in a tile.
        depth: dimensions, of a product tokens or columns, that are loaded at once.
        warps: warps of a program.
        stages: loads in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def parts(self) -> int:
        """How many parts of a tile are finished one after the other: of 32 elements a thread."""
        return min(4, max(1, self.rows * self.columns // (32 * 32 * self.warps)))

    def launch(self) -> dict[str, int]:
        """Options of a launch."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": most_registers(self.warps),
        }


INTERPRETED = Configuration(16, 64, 32, 4, 1)
"""Tiles of Triton's interpreter: small, so that small inputs meet every kind of tile."""

GROUP = 8
"""Tiles of columns that go with all tokens before the next ones begin; see `tile_of_program`."""

HALF: dict[Chip, dict[Kernel, Configuration]] = {
    "sm_90": {
        "statistics": Configuration(128, 256, 64, 8, 4),
        "gradient": Configuration(128, 256, 64, 8, 4),
        "product": Configuration(128, 256, 64, 8, 4),
    },
    "sm_80": {
        "statistics": Configuration(128, 256, 32, 8, 4),
        "gradient": Configuration(128, 256, 32, 8, 4),
        "product": Configuration(128, 128, 32, 8, 4),
    },
    "small": {
        "statistics": Configuration(128, 256, 32, 8, 4),
        "gradient": Configuration(128, 256, 32, 8, 4),
        "product": Configuration(128, 128, 32, 8, 4),
    },
}
"""16-bit elements."""

SINGLE: dict[Chip, dict[Kernel, Configuration]] = {
    "sm_90": {
        "statistics": Configuration(128, 128, 32, 8, 3),
        "gradient": Configuration(128, 128, 32, 8, 3),
        "product": Configuration(128, 128, 32, 8, 3),
    },
    "sm_80": {
        "statistics": Configuration(64, 128, 32, 8, 3),
        "gradient": Configuration(64, 128, 32, 8, 3),
        "product": Configuration(64, 128, 32, 8, 3),
    },
    "small": {
        "statistics": Configuration(64, 128, 32, 8, 3),
        "gradient": Configuration(64, 128, 32, 8, 3),
        "product": Configuration(64, 128, 32, 8, 3),
    },
}
"""32-bit elements."""

FEW = 64
"""Tokens up to which a tile has only as many rows as there are tokens, at least 16."""


def configuration(
    kernel: Kernel,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    awkward: bool = False,
) -> Configuration:
    """The shipped configuration of a kernel.

    Args:
        kernel: which one.
        rows: how many there are, tokens or rows of a product.
        dtype: of the matrices.
        device: where they are.
        awkward: whether a matrix lies in columns or in rows that do not begin at multiples of 16
            bytes, which takes more registers.
    """
    if interpreted():
        return INTERPRETED
    how = (HALF if dtype.itemsize == 2 else SINGLE)[chip(device)][kernel]
    if awkward:
        how = how._replace(columns=min(how.columns, 128))
    if rows > FEW:
        return how
    return how._replace(rows=max(16, power_of_two(rows)))
